"""Turns of batches in one process: two at once, but a suspect alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from embedding.encoding.batch_turns import BatchTurns

LIMIT_S = 30.0


@contextmanager
def another_thread_encodes(turns: BatchTurns, batch: str) -> Iterator[None]:
    """Keep another thread in the turn of ``batch`` until the block ends."""
    began, may_end = threading.Event(), threading.Event()

    def work() -> None:
        with turns.turn(batch):
            began.set()
            may_end.wait(LIMIT_S)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert began.wait(LIMIT_S)
        yield
    finally:
        may_end.set()
        thread.join()


def start_thread(turns: BatchTurns, batch: str) -> tuple[threading.Thread, threading.Event]:
    """Start a thread that waits for the turn of ``batch``; return it and the event of the turn's start."""
    began = threading.Event()

    def work() -> None:
        with turns.turn(batch):
            began.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread, began


def test_two_batches_are_encoded_at_once() -> None:
    turns = BatchTurns()
    with another_thread_encodes(turns, "a"), another_thread_encodes(turns, "b"):
        pass


@pytest.mark.parametrize(("first", "second"), [("suspect", "b"), ("a", "suspect"), ("suspect", "other suspect")])
def test_a_suspect_is_encoded_alone(first: str, second: str) -> None:
    turns = BatchTurns({"suspect", "other suspect"})
    with another_thread_encodes(turns, first):
        thread, began = start_thread(turns, second)
        assert not began.wait(0.2)
    thread.join(LIMIT_S)
    assert began.is_set()


def test_an_error_ends_the_turn() -> None:
    turns = BatchTurns({"suspect"})
    with pytest.raises(ZeroDivisionError), turns.turn("suspect"):
        raise ZeroDivisionError
    with another_thread_encodes(turns, "a"), another_thread_encodes(turns, "b"):
        pass


def test_time_that_two_batches_share_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = BatchTurns()
    ends = iter([10.0, 15.0, 22.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ends))
    assert turns.count_busy_s(began_s=1.0) == 9.0
    assert turns.count_busy_s(began_s=5.0) == 5.0  # 5 to 10 belongs to the first batch, too
    assert turns.count_busy_s(began_s=20.0) == 2.0  # from 15 to 20 no batch was encoded
