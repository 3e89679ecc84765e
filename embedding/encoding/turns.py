"""The batches that one process encodes at once: two side by side, and a suspect alone."""

import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager


class Turns:
    """Who may encode now, and for how long anybody did.

    When a process dies with two batches in it, one of them may be the cause. In the next process each of them goes
    alone, so that the next death names one batch only.
    """

    def __init__(self, suspects: Container[str] = ()) -> None:
        """``suspects``: batches that were open when a process died, by name."""
        self._suspects = suspects
        self._changed = threading.Condition()
        self._n_open = 0
        self._is_alone = False
        self._counted_until_s = 0.0

    @contextmanager
    def turn(self, batch: str) -> Iterator[None]:
        """Wait until ``batch`` may begin; the block encodes it."""
        alone = batch in self._suspects
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone and not (alone and self._n_open))
            self._n_open += 1
            self._is_alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._n_open -= 1
                self._is_alone = False
                self._changed.notify_all()

    def busy_s(self, began_s: float) -> float:
        """Return the seconds since ``began_s`` (of ``time.perf_counter``) that no other batch has counted yet."""
        with self._changed:
            now_s = time.perf_counter()
            busy_s = now_s - max(began_s, self._counted_until_s)
            self._counted_until_s = now_s
            return busy_s
