"""A cluster that Ray's autoscaler scales from zero; its nodes are processes on this machine."""

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

from tests.support.cluster_jobs import ON_GPUS, assert_complete, read_until, run_on_cluster, write_archive
from tests.support.clusters import LocalCluster
from tests.support.commands import environment


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


IDLE_MINUTES = 0.1
# Lists that the launcher would fill in.
EMPTY_LISTS = (
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
    """A folder with a short name: sockets of Ray cannot have the long names of pytest's folders."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def autoscaled(tmp_path: Path, short_path: str) -> Iterator[LocalCluster]:
    """A head that runs no work, and an autoscaler that adds nodes: with a CPU, or with a CPU and a GPU."""
    address = f"127.0.0.1:{free_port()}"
    config = {
        "cluster_name": "fake",
        "max_workers": 4,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,  # all nodes have the address of this machine, which cannot identify them
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
        **{name: [] for name in EMPTY_LISTS},
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
                RAY_enable_autoscaler_v2="0",  # the fake provider of version 2 needs a file that is not in the wheel
                AUTOSCALER_UPDATE_INTERVAL_S="1",
                PYTHONUNBUFFERED="1",
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            deadline_s = time.monotonic() + 60
            while "Ray runtime started" not in (log_text := (tmp_path / "ray.log").read_text()):
                assert time.monotonic() < deadline_s, log_text
                assert process.poll() is None, log_text
                time.sleep(0.2)
            yield LocalCluster(address, "", StringIO(), StringIO())  # the autoscaler, not the test, adds nodes
        finally:
            os.killpg(process.pid, signal.SIGKILL)


# Waits until one node is left, at most for some seconds, and prints the number of nodes.
WAIT_FOR_ONE_NODE = """
import sys, time
import ray

ray.init(sys.argv[1], log_to_driver=False)
deadline_s = time.monotonic() + float(sys.argv[2])
while (n := sum(node["Alive"] for node in ray.nodes())) > 1 and time.monotonic() < deadline_s:
    time.sleep(0.5)
print(n)
"""
WAIT_S = 120


@pytest.mark.long
def test_nodes_are_added_for_the_job_and_removed_after_it(autoscaled: LocalCluster, tmp_path: Path) -> None:
    archive, output = write_archive(tmp_path / "archive"), tmp_path / "out"
    with run_on_cluster(autoscaled, archive, output, *ON_GPUS, "--actors", 2) as process:
        read_until(process, "not all workers fit yet")
        assert_complete(process, output)
    command = [sys.executable, "-c", WAIT_FOR_ONE_NODE, autoscaled.address, str(WAIT_S)]
    nodes = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert nodes.stdout.split()[-1] == "1", (tmp_path / "ray.log").read_text()
