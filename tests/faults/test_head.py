"""The head of Ray, or the raylet of the driver's node, dies under a run."""

import random
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from embedding.errors import RunError
from embedding.ray_runtime import liveness
from embedding.ray_runtime.liveness import RequiredProcess, watch_processes
from local_ray import ray_of
from tests.support.kills import Job, wait_for
from tests.support.soak import OPTIONS, Archive


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "ASK_EVERY_S", 0.02)


def watched(server: socket.socket, gone_after_s: float) -> RequiredProcess:
    return RequiredProcess("the head of Ray", "{}:{}".format(*server.getsockname()), gone_after_s)


@pytest.mark.usefixtures("quick")
def test_a_process_that_is_gone_is_one_line_once() -> None:
    said: list[RunError] = []
    heard = threading.Event()

    def hear(error: RunError) -> None:
        said.append(error)
        heard.set()

    with socket.create_server(("127.0.0.1", 0)) as dies, socket.create_server(("127.0.0.1", 0)) as lives:
        processes = [watched(lives, 0.2), watched(dies, 0.2)]
        with watch_processes(processes, hear):
            dies.close()
            assert heard.wait(30)
    gone = f"the head of Ray ({processes[1].address}) has not answered for 0.2 s"
    go_on = "what is stored stays valid, run the same command again to go on"
    assert [str(error) for error in said] == [f"{gone}; {go_on}"]


@pytest.mark.usefixtures("quick")
def test_a_head_that_is_started_anew_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False, False, True])
    asked_enough = threading.Event()

    def answer(_: RequiredProcess) -> bool:
        found = next(answers, None)
        if found is None:
            asked_enough.set()
        return found is None or found

    monkeypatch.setattr(RequiredProcess, "answers", answer)
    said: list[RunError] = []
    with watch_processes([RequiredProcess("the head of Ray", "127.0.0.1:1", 60.0)], said.append):
        assert asked_enough.wait(30)
    assert not said


@pytest.mark.long
@pytest.mark.parametrize(("name", "within_s"), [("gcs_server", 58), ("raylet", 30)])
def test_a_run_whose_ray_is_killed_says_so_and_the_same_command_goes_on(
    name: str, within_s: float, tmp_path: Path
) -> None:
    """Both limits are below those of Ray, which would end the process without a word."""
    archive = Archive(tmp_path / "in", 1_000, 100, random.Random(1))
    output = tmp_path / "out"
    with ray_of(2) as address:
        job = Job(archive.folder, output, {"RAY_ADDRESS": address}, 64, OPTIONS)
        with job.running() as process:
            assert wait_for(lambda: bool(job.shards()), process)
            victims = [child for child in psutil.Process().children(recursive=True) if child.name() == name]
            assert len(victims) == 1
            victims[0].send_signal(signal.SIGKILL)
            killed_s = time.monotonic()
            said, _ = process.communicate(timeout=300)
        assert process.returncode == 1, said
        assert time.monotonic() - killed_s < within_s
        ours = [line for line in said.splitlines() if line.startswith("avex-batch: ")]
        assert len(ours) == 1
        assert "has not answered for" in ours[0]
        assert "Traceback" not in said
    with ray_of(2) as address:
        Job(archive.folder, output, {"RAY_ADDRESS": address}, 64, OPTIONS).finish()
