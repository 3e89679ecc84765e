"""The connection to Ray. Each test connects to the shared Ray in a process of its own."""

import gc
import json
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from embedding.errors import RunError
from embedding.output.inventory import Inventory
from embedding.output.store import Store
from embedding.ray_runtime.session import session
from embedding.ray_runtime.worker_errors import raise_worker_errors
from embedding.schema.failures import Failure
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, environment, run_embed
from tests.support.models import EFFICIENTNET
from tests.support.shards import shard


def run_python(program: str, ray_address: str, *arguments: object) -> str:
    """Run a program that connects to the Ray at ``ray_address``; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env=environment(RAY_ADDRESS=ray_address),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


READ = """
import json, sys
from embedding.ray_runtime import node_tasks, session, worker_errors
from embedding.output.store import Store

with session.session(verbose=False):
    inventory = Store(sys.argv[1], "{}").read(parallel_map=node_tasks.map_on_nodes)
print(json.dumps([len(inventory.shards), inventory.totals(), inventory.window_indices(7)]))
"""


def test_nodes_read_the_same_inventory_as_the_driver(tmp_path: Path, ray_address: str) -> None:
    store = Store(str(tmp_path), "{}")
    rng = np.random.default_rng(0)
    for name in range(150):  # more than a task reads
        store.write_shard(shard(*((int(id_), int(i), 9) for id_, i in rng.integers(0, 9, (20, 2)))), f"s{name}")
    store.write_failures([Failure("/a", 3, 1, "decode", "empty", "the file has no bytes")], "run")
    inventory: Inventory = store.read()
    assert json.loads(run_python(READ, ray_address, tmp_path)) == [150, inventory.totals(), inventory.window_indices(7)]


FAIL = """
import sys
from embedding.ray_runtime import node_tasks, session, worker_errors
from embedding.errors import RunError

def fail(number):
    raise OSError(28, "No space left on device")

try:
    with session.session(verbose=False):
        list(node_tasks.map_on_nodes(fail, [(1,)]))
except RunError as error:
    print(error)
"""


def test_a_storage_error_of_a_worker_is_one_line_in_the_driver(ray_address: str) -> None:
    printed = run_python(FAIL, ray_address)
    assert printed.splitlines() == [
        "the storage failed: No space left on device; what is stored stays valid, run the same command again to go on"
    ]


EVERY_NODE = """
import ray
from embedding.ray_runtime import node_tasks, session, worker_errors

class Host:  # a method, as in a run
    def name(self):
        return "here"

with session.session(verbose=False):
    nodes = ray.nodes()
    lost = {**nodes[0], "NodeID": "ab" * 28, "NodeManagerHostname": "lost"}
    head = {**nodes[0], "Resources": {}}  # takes no tasks
    ray.nodes = lambda: [lost, head, *nodes]
    print([answer for _, answer in node_tasks.call_on_each_node(Host().name)])
"""


def test_a_lost_node_is_missing_from_the_results_of_all_nodes(ray_address: str) -> None:
    assert run_python(EVERY_NODE, ray_address).splitlines()[-1] == "['here']"


def test_the_address_of_a_dashboard_is_refused_with_one_line(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(1.0, 16_000), 16_000)
    done = run_embed(
        *("--input", tmp_path, "--output", tmp_path / "out", "--model", EFFICIENTNET, "--checkpoint", "random"),
        env={"RAY_ADDRESS": "http://localhost:8265"},
    )
    assert done.code == 2
    assert done.stderr.startswith("avex-batch: RAY_ADDRESS=http://localhost:8265 is the address of a dashboard")
    assert len(done.stderr.splitlines()) == 1


def test_an_address_where_no_ray_listens_is_refused_in_seconds(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(1.0, 16_000), 16_000)
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        began = time.monotonic()
        done = run_embed(
            *("--input", tmp_path, "--output", tmp_path / "out", "--model", EFFICIENTNET, "--checkpoint", "random"),
            env={"RAY_ADDRESS": address},
        )
    assert time.monotonic() - began < 60  # Ray itself would wait for two minutes
    assert done.code == 1
    assert done.stderr.splitlines()[-1] == f"avex-batch: no Ray answers at RAY_ADDRESS={address}: Connection refused"


REMOVED = """
import ray
from embedding.ray_runtime import node_tasks, session, worker_errors
from embedding.errors import RunError

with session.session(verbose=False):
    task = ray.remote(lambda: None).options(runtime_env={"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"})
    try:
        with worker_errors.raise_worker_errors():
            ray.get(task.remote())
    except RunError as error:
        print(error)
"""


def test_a_working_directory_that_ray_has_removed_is_reported_with_one_line(ray_address: str) -> None:
    last_line = run_python(REMOVED, ray_address).splitlines()[-1]
    assert "change any file in it and submit again" in last_line
    assert "Failed to download" in last_line


UNLOADED = """
import ray
from embedding.errors import RunError
from embedding.ray_runtime import node_tasks, session, worker_errors

@ray.remote
class Encoder:
    def __init__(self):
        raise OSError(28, "No space left on device")

    def encode(self):
        pass

with session.session(verbose=False):
    try:
        with worker_errors.raise_worker_errors():
            ray.get(Encoder.remote().encode.remote())
    except RunError as error:
        print(error)
"""


def test_the_reason_why_no_encoder_could_load_is_one_line(ray_address: str) -> None:
    last_line = run_python(UNLOADED, ray_address).splitlines()[-1]
    assert last_line.startswith("no encoder could load the model, on any node: OSError: [Errno 28] No space left")


COUNT = """
import os, signal, time
import ray
from embedding.ray_runtime import node_tasks, session, worker_errors
from embedding.ray_runtime.progress_channel import ProgressChannel

@ray.remote
def add(progress, n):
    ray.get(progress.add.remote("encode", 0.5, windows_encoded=n))
    return ray.get(progress.begin_task.remote("task"))

with session.session(verbose=False):
    channel = ProgressChannel()
    ray.get(add.remote(channel.actor, 3))
    before = channel.read().counters
    assert before.windows_encoded == 3
    ray.kill(channel.actor, no_restart=False)  # as if its process had died
    while ray.get(channel.actor.snapshot.remote())[0].origin == before.origin:
        time.sleep(0.05)
    assert ray.get(add.remote(channel.actor, 4)) == 1  # a new process has counted no tries
    print(channel.read().counters.windows_encoded, channel.read().counters.busy_s)
"""


def test_counters_survive_a_restart_of_the_progress_actor(ray_address: str) -> None:
    assert run_python(COUNT, ray_address).splitlines()[-1] == "7 {'encode': 1.0}"  # Ray may have printed lines before


KEEP = """
import os, sys, time
from pathlib import Path
import psutil, ray
from embedding.ray_runtime import node_tasks, session, worker_errors

N = 2 * (os.cpu_count() or 1) + 1

@ray.remote(num_cpus=0.01)
def meet(folder):  # all at the same time, so that each needs a process of its own
    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < N:
        time.sleep(0.05)
    return os.getpid()

with session.session(verbose=False):
    pids = ray.get([meet.remote(sys.argv[1]) for _ in range(N)])
    until_s = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until_s and all(map(psutil.pid_exists, pids)):
        time.sleep(0.1)
    print(sum(map(psutil.pid_exists, pids)) == N)
"""


# Waits half a minute for workers that stay.
@pytest.mark.long
def test_our_own_ray_keeps_its_idle_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default Ray ends idle workers beyond one per CPU, and then each write task starts a process."""
    monkeypatch.delenv("RAY_num_workers_soft_limit", raising=False)
    (tmp_path / "kept").mkdir()
    assert run_python(KEEP, "", tmp_path / "kept", "6").strip() == "True"
    monkeypatch.setenv("RAY_num_workers_soft_limit", "1")  # Ray's default: shows that 6 s are long enough
    (tmp_path / "ended").mkdir()
    assert run_python(KEEP, "", tmp_path / "ended", "6").strip() == "False"


@pytest.mark.parametrize("error_type", [RunError, KeyboardInterrupt])
def test_objects_of_a_failed_run_are_released_although_its_error_is_kept(error_type: type[BaseException]) -> None:
    """A notebook keeps the last error; its traceback would keep the encoders, and they the CPUs of the next run."""

    class Encoders:
        def __init__(self) -> None:
            self.itself = self  # as Ray Data's operators refer to each other

    kept: list[weakref.ref[Encoders]] = []

    def run() -> None:
        encoders = Encoders()
        kept.append(weakref.ref(encoders))
        raise error_type("a fault")

    with pytest.raises(error_type, match="a fault") as error, raise_worker_errors():
        run()
    assert error.value.__traceback__ is not None
    assert kept[0]() is None


class Left:
    """Something that refers to itself."""

    itself: object = None


def test_a_connection_that_is_used_again_frees_what_a_failed_run_left(connection: None) -> None:
    """Encoders in a cycle of references would keep the CPUs for which the next run waits."""
    left = Left()
    left.itself = left
    alive = weakref.ref(left)
    gc.disable()
    try:
        del left
        assert alive() is not None
        with session(verbose=False):
            assert alive() is None
    finally:
        gc.enable()
