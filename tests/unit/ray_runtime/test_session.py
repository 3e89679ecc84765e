"""The connection to Ray, as its users see it. Each test in a process of its own, which connects to the shared Ray."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from embedding.output.inventory import Inventory
from embedding.output.store import Store
from embedding.schema.failures import Failure
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, environment, run_embed
from tests.support.models import EFFICIENTNET
from tests.unit.output.test_store import shard


def python(program: str, ray_address: str, *arguments: object) -> str:
    """What ``program`` prints, with a connection to the Ray at that address around it."""
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
    stored = Store(sys.argv[1], "{}").read(parallel_map=node_tasks.map_on_nodes)
print(json.dumps([len(stored.shards), stored.totals(), stored.windows(7)]))
"""


def test_reading_back_may_be_spread_over_the_nodes(tmp_path: Path, ray_address: str) -> None:
    store = Store(str(tmp_path), "{}")
    rng = np.random.default_rng(0)
    for name in range(150):  # more than one task's
        store.write_shard(shard(*((int(id_), int(i), 9) for id_, i in rng.integers(0, 9, (20, 2)))), f"s{name}")
    store.write_failures([Failure("/a", 3, 1, "decode", "empty", "no bytes in it")], "run")
    here: Inventory = store.read()
    assert json.loads(python(READ, ray_address, tmp_path)) == [150, here.totals(), here.windows(7)]


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


def test_a_workers_storage_error_is_the_drivers_in_one_line(ray_address: str) -> None:
    said = python(FAIL, ray_address)
    assert said.splitlines() == [
        "the storage failed: No space left on device; what is stored stays valid, run the same command again to go on"
    ]


EVERY_NODE = """
import ray
from embedding.ray_runtime import node_tasks, session, worker_errors

class There:  # a method, as the job asks it
    def name(self):
        return "here"

with session.session(verbose=False):
    nodes = ray.nodes()
    lost = {**nodes[0], "NodeID": "ab" * 28, "NodeManagerHostname": "lost"}
    head = {**nodes[0], "Resources": {}}  # it takes no work, and so is not asked
    ray.nodes = lambda: [lost, head, *nodes]
    print([answer for _, answer in node_tasks.call_on_each_node(There().name)])
"""


def test_a_node_that_is_lost_while_all_are_asked_says_nothing(ray_address: str) -> None:
    assert python(EVERY_NODE, ray_address).splitlines()[-1] == "['here']"


def test_the_address_of_a_dashboard_is_refused_in_one_line(tmp_path: Path) -> None:
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
    with socket.socket() as bound:  # and nobody listens
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


def test_a_jobs_directory_that_ray_has_removed_is_named_in_one_line(ray_address: str) -> None:
    said = python(REMOVED, ray_address).splitlines()[-1]
    assert "change any file in it and submit again" in said
    assert "Failed to download" in said


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


def test_why_encoders_could_not_load_is_said_in_one_line(ray_address: str) -> None:
    said = python(UNLOADED, ray_address).splitlines()[-1]
    assert said.startswith("no encoder could load the model, on any node: OSError: [Errno 28] No space left")


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
    assert ray.get(add.remote(channel.actor, 4)) == 1  # a new process knows nothing of tries
    print(channel.read().counters.windows_encoded, channel.read().counters.busy_s)
"""


def test_counts_survive_the_process_that_counts(ray_address: str) -> None:
    assert python(COUNT, ray_address).splitlines()[-1] == "7 {'encode': 1.0}"  # Ray may have had something to say


KEEP = """
import os, sys, time
from pathlib import Path
import psutil, ray
from embedding.ray_runtime import node_tasks, session, worker_errors

N = 2 * (os.cpu_count() or 1) + 1

@ray.remote(num_cpus=0.01)
def meet(folder):  # all at the same time, so each in a process of its own
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


# Half a minute of waiting for workers that do not go.
@pytest.mark.long
def test_a_ray_of_our_own_keeps_its_idle_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends those beyond one per CPU, unless told otherwise: then each write would start a process."""
    monkeypatch.delenv("RAY_num_workers_soft_limit", raising=False)
    (tmp_path / "kept").mkdir()
    assert python(KEEP, "", tmp_path / "kept", "6").strip() == "True"
    monkeypatch.setenv("RAY_num_workers_soft_limit", "1")  # as Ray would have it: shows that 6 s are enough to see it
    (tmp_path / "ended").mkdir()
    assert python(KEEP, "", tmp_path / "ended", "6").strip() == "False"
