"""Runs in which the head of Ray or the raylet of the driver's node dies."""

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
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "ASK_EVERY_S", 0.02)


def required_process(server: socket.socket, gone_after_s: float) -> RequiredProcess:
    return RequiredProcess("the head of Ray", "{}:{}".format(*server.getsockname()), gone_after_s)


@pytest.mark.usefixtures("short_interval")
def test_a_dead_process_is_reported_once_in_one_line() -> None:
    errors: list[RunError] = []
    reported = threading.Event()

    def report(error: RunError) -> None:
        errors.append(error)
        reported.set()

    with socket.create_server(("127.0.0.1", 0)) as dies, socket.create_server(("127.0.0.1", 0)) as lives:
        processes = [required_process(lives, 0.2), required_process(dies, 0.2)]
        with watch_processes(processes, report):
            dies.close()
            assert reported.wait(30)
    reason = f"the head of Ray ({processes[1].address}) has not answered for 0.2 s"
    advice = "what is stored stays valid, run the same command again to go on"
    assert [str(error) for error in errors] == [f"{reason}; {advice}"]


@pytest.mark.usefixtures("short_interval")
def test_a_head_that_restarts_in_time_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False, False, True])
    asked_enough = threading.Event()

    def answer(_: RequiredProcess) -> bool:
        is_alive = next(answers, None)
        if is_alive is None:
            asked_enough.set()
        return is_alive is None or is_alive

    monkeypatch.setattr(RequiredProcess, "answers", answer)
    errors: list[RunError] = []
    with watch_processes([RequiredProcess("the head of Ray", "127.0.0.1:1", 60.0)], errors.append):
        assert asked_enough.wait(30)
    assert not errors


def processes_named(name: str) -> set[psutil.Process]:
    """Return the processes of a name that this process and its children have started."""
    return {child for child in psutil.Process().children(recursive=True) if child.name() == name}


@pytest.mark.long
@pytest.mark.parametrize(("name", "within_s"), [("gcs_server", 58), ("raylet", 30)])
def test_a_run_without_its_ray_ends_with_one_line_and_the_same_command_resumes(
    name: str, within_s: float, tmp_path: Path
) -> None:
    """Both limits are below those of Ray, at which Ray ends the process without a message."""
    archive = Archive(tmp_path / "in", 1_000, 100, random.Random(1))
    output = tmp_path / "out"
    of_other_rays = processes_named(name)
    with ray_of(2) as address:
        job = Job(archive.folder, output, {"RAY_ADDRESS": address}, 64, OPTIONS)
        with job.running() as process:
            assert wait_for(lambda: bool(job.shards()), process)
            (victim,) = processes_named(name) - of_other_rays
            victim.send_signal(signal.SIGKILL)
            killed_s = time.monotonic()
            printed, _ = process.communicate(timeout=300)
        assert process.returncode == 1, printed
        assert time.monotonic() - killed_s < within_s
        errors = [line for line in printed.splitlines() if line.startswith("avex-batch: ")]
        assert len(errors) == 1
        assert "has not answered for" in errors[0]
        assert "Traceback" not in printed
    with ray_of(2) as address:
        Job(archive.folder, output, {"RAY_ADDRESS": address}, 64, OPTIONS).finish()
