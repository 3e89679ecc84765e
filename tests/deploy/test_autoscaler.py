"""A cluster scaled from zero by Ray's own autoscaler, whose nodes are processes of this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from tests.deploy.test_small_clusters import GPUS, archive, assert_done, job, until  # noqa: F401 — archive is a fixture
from tests.support.clusters import Nodes
from tests.support.commands import environment


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


IDLE_MINUTES = 0.1
# What the launcher would fill in.
NOTHING = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@pytest.fixture
def short_path() -> Iterator[str]:
    """Pytest's own are too long for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def autoscaled(tmp_path: Path, short_path: str) -> Iterator[Nodes]:
    """A head that runs no work, and an autoscaler that may bring nodes: of a CPU, or of a CPU and a GPU."""
    address = f"127.0.0.1:{free_port()}"
    config = {
        "cluster_name": "fake",
        "max_workers": 4,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,  # all nodes have this machine's, by which they would be told apart
            "disable_launch_config_check": True,
            "disable_node_updaters": True,
            "gcs_address": address,
        },
        "auth": {},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
            "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in NOTHING},
    }
    path = tmp_path / "autoscaling.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={address[10:]}"]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=0", f"--object-store-memory={256 << 20}"]
    command += [f"--autoscaling-config={path}", "--include-dashboard=false", f"--temp-dir={short_path}"]
    with (
        (tmp_path / "ray.log").open("w") as log,
        subprocess.Popen(
            command,
            env=environment(
                RAY_FAKE_CLUSTER="1",
                RAY_enable_autoscaler_v2="0",  # its fake provider wants a file that is not in the wheel
                AUTOSCALER_UPDATE_INTERVAL_S="1",
                PYTHONUNBUFFERED="1",
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            until_s = time.monotonic() + 60
            while "Ray runtime started" not in (said := (tmp_path / "ray.log").read_text()):
                assert time.monotonic() < until_s, said
                assert process.poll() is None, said
                time.sleep(0.2)
            yield Nodes(address, "", StringIO(), StringIO())  # nodes come by themselves
        finally:
            os.killpg(process.pid, signal.SIGKILL)


# Prints how many nodes are left once it is only one, or after so many seconds.
LEFT = """
import sys, time
import ray

ray.init(sys.argv[1], log_to_driver=False)
until_s = time.monotonic() + float(sys.argv[2])
while (n := sum(node["Alive"] for node in ray.nodes())) > 1 and time.monotonic() < until_s:
    time.sleep(0.5)
print(n)
"""
GONE_S = 120


@pytest.mark.long
def test_nodes_come_for_the_job_and_go_after_it(autoscaled: Nodes, archive: Path, tmp_path: Path) -> None:  # noqa: F811
    with job(autoscaled, archive, tmp_path / "out", *GPUS, "--actors", 2) as process:
        until(process, "not all workers fit yet")
        assert_done(process, tmp_path / "out")
    command = [sys.executable, "-c", LEFT, autoscaled.address, str(GONE_S)]
    left = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert left.stdout.split()[-1] == "1", (tmp_path / "ray.log").read_text()
