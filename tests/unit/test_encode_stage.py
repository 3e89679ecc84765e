"""Errors of an encoder while it loads or encodes: who is told, and which of them end the process."""

import os
import threading
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from embedding import pipeline
from embedding.errors import RunError
from embedding.pipeline import EncodeStage
from embedding.planning.placement import Placement
from embedding.ray_runtime.gpus import Gpu
from embedding.ray_runtime.progress_actor import ENCODE_TRIES

PLAN = Placement("cpu", 1, 0.75, 0.0, 1, 0.125, 1, 0.0625, 1)
GPU = Gpu("node", "host", ("2",))
WINDOWS: Any = pa.table({"file": ["a.wav"], "window_index": [0], "n_windows": [1], "window_16000": [[0.0]]})
BATCH = "window 0 of a.wav"
BROKEN = RuntimeError("CUDA error: uncorrectable ECC error encountered")
NO_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Ended(BaseException):
    """In the place of the end of the process."""


class Reports:
    """In the place of a ProgressReporter: remembers what it was told."""

    def __init__(self, *, stopping: bool = False, open_batches: dict[str, int] | None = None) -> None:
        self.is_stopping = lambda: stopping
        self.open_batches = lambda: open_batches or {}
        self.told: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **more: self.told.append((name, arguments))


def stage_of(monkeypatch: pytest.MonkeyPatch, reports: Reports, error: Exception | None = None) -> EncodeStage:
    """An encoder on a node where ``error`` is raised before it has loaded."""

    def check() -> None:
        if error is not None:
            raise error

    def exit_process(code: int) -> None:
        assert code == 1
        raise Ended

    monkeypatch.setattr(os, "_exit", exit_process)
    monkeypatch.setattr(pipeline, "own_gpu", lambda: GPU)
    monkeypatch.setattr(pipeline, "ProgressReporter", lambda _: reports)
    monkeypatch.setattr(EncodeStage, "_load", lambda *_: ["a loaded encoder"])
    job: Any = SimpleNamespace(shared_paths=SimpleNamespace(check=check), batch_size=1)
    return EncodeStage(job, PLAN, None, None)


def encoding_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("embedding.encoding.encode_batch.encode_batch", fail)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), RunError("damaged weights"), RuntimeError("a bug")])
def test_an_error_that_every_encoder_would_meet_is_raised_by_the_first_call(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(monkeypatch, Reports(), error)
    with pytest.raises(type(error), match=str(error)):
        stage(WINDOWS)


def test_an_error_that_may_be_this_nodes_alone_ends_the_encoder_so_that_another_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(OSError, match="No space left"):
        stage_of(monkeypatch, Reports(), OSError(28, "No space left on device"))


def test_a_gpu_that_fails_while_an_encoder_loads_is_told_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports()
    with pytest.raises(Ended):
        stage_of(monkeypatch, reports, BROKEN)
    assert reports.told == [("gpu_failed", (GPU, BROKEN, []))]


def test_a_gpu_that_fails_under_a_batch_is_told_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports()
    stage = stage_of(monkeypatch, reports)
    encoding_fails(BROKEN, monkeypatch)
    with pytest.raises(Ended):
        stage(WINDOWS)
    assert [name for name, _ in reports.told] == ["begin_batch", "gpu_failed"]  # and no end: it is open


def test_a_fault_that_shows_in_both_threads_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports()
    stage = stage_of(monkeypatch, reports)
    together, ended = threading.Barrier(2), threading.Event()

    def fail(*_: object) -> None:
        together.wait(30)
        raise RuntimeError(str(BROKEN))

    def exit_process(_: int) -> None:
        ended.set()
        threading.Event().wait()  # nothing goes on in a process that has ended

    monkeypatch.setattr("embedding.encoding.encode_batch.encode_batch", fail)
    monkeypatch.setattr(os, "_exit", exit_process)
    for _ in range(2):
        threading.Thread(target=stage, args=(WINDOWS,), daemon=True).start()
    assert ended.wait(30)
    assert [name for name, _ in reports.told].count("gpu_failed") == 1


def test_a_gpu_too_small_for_the_model_or_for_one_window_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "GPU 2 of host has too little memory for the model and one window"
    with pytest.raises(RunError, match=line):
        stage_of(monkeypatch, Reports(), NO_MEMORY)(WINDOWS)
    stage = stage_of(monkeypatch, Reports())
    encoding_fails(NO_MEMORY, monkeypatch)
    with pytest.raises(RunError, match=line):
        stage(WINDOWS)


def test_a_bug_under_a_batch_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(monkeypatch, Reports())
    bug = RuntimeError("shapes cannot be multiplied")
    encoding_fails(bug, monkeypatch)
    with pytest.raises(RuntimeError) as raised:
        stage(WINDOWS)
    assert raised.value is bug
    assert raised.value.__cause__ is None


def test_an_encoder_that_is_started_while_the_leg_ends_loads_nothing_and_lets_windows_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = stage_of(monkeypatch, Reports(stopping=True), None)
    assert stage._encoders is None
    assert stage(WINDOWS).num_rows == 0


def test_a_batch_that_ended_its_encoder_too_often_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(monkeypatch, Reports(open_batches={BATCH: ENCODE_TRIES}))
    with pytest.raises(RunError, match=f"died {ENCODE_TRIES} times over the windows from {BATCH} on"):
        stage(WINDOWS)
