"""Errors of an encoder while it loads or encodes: reported, raised, or the end of its process."""

import os
import threading
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from embedding import pipeline
from embedding.errors import RequestError, RunError
from embedding.pipeline import EncodeStage
from embedding.planning.placement import Placement
from embedding.ray_runtime.gpus import Gpu
from embedding.ray_runtime.progress_actor import ENCODE_TRIES

PLACEMENT = Placement("cpu", 1, 0.75, 0.0, 1, 0.125, 1, 0.0625, 1)
GPU = Gpu("node", "host", ("2",))
WINDOWS: Any = pa.table({"file": ["a.wav"], "window_index": [0], "n_windows": [1], "window_16000": [[0.0]]})
BATCH = "window 0 of a.wav"
BROKEN = RuntimeError("CUDA error: uncorrectable ECC error encountered")
NO_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class ProcessEndedError(BaseException):
    """Stands for the end of the process."""


class FakeReporter:
    """Stands for a ProgressReporter; records its calls."""

    def __init__(self, *, stopping: bool = False, open_batches: dict[str, int] | None = None) -> None:
        self.is_stopping = lambda: stopping
        self.open_batches = lambda: open_batches or {}
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **more: self.calls.append((name, arguments))


def stage_of(monkeypatch: pytest.MonkeyPatch, reporter: FakeReporter, error: Exception | None = None) -> EncodeStage:
    """Start an encoder on a node where ``error`` is raised before the encoder has loaded."""

    def check() -> None:
        if error is not None:
            raise error

    def exit_process(code: int) -> None:
        assert code == 1
        raise ProcessEndedError

    monkeypatch.setattr(os, "_exit", exit_process)
    monkeypatch.setattr(pipeline, "own_gpu", lambda: GPU)
    monkeypatch.setattr(pipeline, "ProgressReporter", lambda _: reporter)
    monkeypatch.setattr(EncodeStage, "_load", lambda *_: ["a loaded encoder"])
    job: Any = SimpleNamespace(shared_paths=SimpleNamespace(check=check), batch_size=1, targets=())
    return EncodeStage(job, PLACEMENT, None, None)


def make_encoding_fail(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("embedding.encoding.encode_batch.encode_batch", fail)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), RunError("damaged weights"), RuntimeError("a bug")])
def test_an_error_of_the_request_or_a_bug_is_raised_by_the_first_call(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(monkeypatch, FakeReporter(), error)
    with pytest.raises(type(error), match=str(error)):
        stage(WINDOWS)


def test_an_error_of_the_node_ends_the_encoder_so_that_ray_starts_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(OSError, match="No space left"):
        stage_of(monkeypatch, FakeReporter(), OSError(28, "No space left on device"))


def test_a_gpu_that_fails_while_an_encoder_loads_is_reported_and_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reporter = FakeReporter()
    with pytest.raises(ProcessEndedError):
        stage_of(monkeypatch, reporter, BROKEN)
    assert reporter.calls == [("gpu_failed", (GPU, BROKEN, []))]


def test_a_gpu_that_fails_during_a_batch_is_reported_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = FakeReporter()
    stage = stage_of(monkeypatch, reporter)
    make_encoding_fail(BROKEN, monkeypatch)
    with pytest.raises(ProcessEndedError):
        stage(WINDOWS)
    # There is no end_batch: the batch stays open.
    assert [name for name, _ in reporter.calls] == ["begin_batch", "gpu_failed"]


def test_a_gpu_fault_in_both_threads_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = FakeReporter()
    stage = stage_of(monkeypatch, reporter)
    together, ended = threading.Barrier(2), threading.Event()

    def fail(*_: object) -> None:
        together.wait(30)
        raise RuntimeError(str(BROKEN))

    def exit_process(_: int) -> None:
        ended.set()
        threading.Event().wait()  # a process that has ended runs no more code

    monkeypatch.setattr("embedding.encoding.encode_batch.encode_batch", fail)
    monkeypatch.setattr(os, "_exit", exit_process)
    for _ in range(2):
        threading.Thread(target=stage, args=(WINDOWS,), daemon=True).start()
    assert ended.wait(30)
    assert [name for name, _ in reporter.calls].count("gpu_failed") == 1


def test_too_little_gpu_memory_for_one_window_ends_the_run_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "GPU 2 of host has too little memory for the model and one window"
    with pytest.raises(RunError, match=line):
        stage_of(monkeypatch, FakeReporter(), NO_MEMORY)(WINDOWS)
    stage = stage_of(monkeypatch, FakeReporter())
    make_encoding_fail(NO_MEMORY, monkeypatch)
    with pytest.raises(RunError, match=line):
        stage(WINDOWS)


def test_a_bug_during_a_batch_is_raised_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(monkeypatch, FakeReporter())
    bug = RuntimeError("shapes cannot be multiplied")
    make_encoding_fail(bug, monkeypatch)
    with pytest.raises(RuntimeError) as raised:
        stage(WINDOWS)
    assert raised.value is bug
    assert raised.value.__cause__ is None


def test_an_encoder_that_starts_while_the_leg_ends_loads_nothing_and_drops_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = stage_of(monkeypatch, FakeReporter(stopping=True), None)
    assert stage._encoders is None
    assert stage(WINDOWS).num_rows == 0


def test_a_batch_that_ended_too_many_encoders_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(monkeypatch, FakeReporter(open_batches={BATCH: ENCODE_TRIES}))
    with pytest.raises(RunError, match=f"died {ENCODE_TRIES} times over the windows from {BATCH} on"):
        stage(WINDOWS)


def test_a_batch_is_compared_with_fp32_before_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(monkeypatch, FakeReporter())
    make_encoding_fail(ZeroDivisionError("it was encoded"), monkeypatch)

    def refuse(batch: str, _: Any) -> None:
        raise RequestError(f"{batch} differs")

    stage._agreement = SimpleNamespace(run=refuse)  # type: ignore[assignment]
    with pytest.raises(RequestError, match=f"{BATCH} differs"):
        stage(WINDOWS)


def test_a_batch_over_which_a_process_died_is_not_compared_with_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may have died of the second model, and would die again."""
    stage = stage_of(monkeypatch, FakeReporter(open_batches={BATCH: 1}))
    make_encoding_fail(ZeroDivisionError("it was encoded"), monkeypatch)
    stage._agreement = SimpleNamespace()  # type: ignore[assignment] — any use would fail
    with pytest.raises(ZeroDivisionError):
        stage(WINDOWS)


def test_the_first_window_is_reported_before_the_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = FakeReporter()
    stage = stage_of(monkeypatch, reporter)
    reported = []

    def encode(_encoders: Any, windows: pa.Table, stopping: Any) -> tuple[pa.Table, list[Any]]:
        for _ in range(3):  # passes
            assert not stopping()
            reported.append(("window_encoded", ()) in reporter.calls)
        return windows.slice(0, 0), []

    monkeypatch.setattr("embedding.encoding.encode_batch.encode_batch", encode)
    monkeypatch.setattr(pipeline, "_count_encoded", lambda *_: {})
    stage(WINDOWS)
    assert reported == [False, True, True]
    assert reporter.calls.count(("window_encoded", ())) == 1
