"""Batches side by side in one process, and suspects alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from embedding.encoding.batch_turns import BatchTurns

LIMIT_S = 30.0


@contextmanager
def in_a_turn(turns: BatchTurns, batch: str) -> Iterator[None]:
    """A thread of its own is in a turn while the block goes on."""
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


def started(turns: BatchTurns, batch: str) -> tuple[threading.Thread, threading.Event]:
    """A thread that asks for a turn, and whether it has had it."""
    had = threading.Event()

    def work() -> None:
        with turns.turn(batch):
            had.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread, had


def test_two_batches_go_side_by_side() -> None:
    turns = BatchTurns()
    with in_a_turn(turns, "a"), in_a_turn(turns, "b"):
        pass


@pytest.mark.parametrize(("first", "second"), [("suspect", "b"), ("a", "suspect"), ("suspect", "other suspect")])
def test_a_suspect_goes_alone(first: str, second: str) -> None:
    turns = BatchTurns({"suspect", "other suspect"})
    with in_a_turn(turns, first):
        thread, had = started(turns, second)
        assert not had.wait(0.2)
    thread.join(LIMIT_S)
    assert had.is_set()


def test_a_turn_ends_with_an_error_too() -> None:
    turns = BatchTurns({"suspect"})
    with pytest.raises(ZeroDivisionError), turns.turn("suspect"):
        raise ZeroDivisionError
    with in_a_turn(turns, "a"), in_a_turn(turns, "b"):
        pass


def test_time_that_two_batches_share_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = BatchTurns()
    ends = iter([10.0, 15.0, 22.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ends))
    assert turns.count_busy_s(began_s=1.0) == 9.0
    assert turns.count_busy_s(began_s=5.0) == 5.0  # 5 to 10 was the first one's, too
    assert turns.count_busy_s(began_s=20.0) == 2.0  # and from 15 to 20 nothing was done
