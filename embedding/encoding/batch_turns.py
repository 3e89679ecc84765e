"""The batches that one process encodes at once: two side by side, and a suspect alone."""

import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager


class BatchTurns:
    """The order in which the threads of a process encode, and the time in which any of them did.

    When a process dies with two batches in it, one of them may be the cause. In the next process each of them goes
    alone, so that the next death names one batch only.
    """

    def __init__(self, suspects: Container[str] = ()) -> None:
        """``suspects``: batches that were open when a process died, by name."""
        self._suspects = suspects
        self._changed = threading.Condition()
        self.open: list[str] = []  # the batches that are being encoded
        self._is_alone = False
        self._counted_until_s = 0.0

    @contextmanager
    def turn(self, batch: str) -> Iterator[None]:
        """Wait until ``batch`` may begin; the block encodes it."""
        alone = batch in self._suspects
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone and not (alone and self.open))
            self.open.append(batch)
            self._is_alone = alone
        try:
            yield
        finally:
            with self._changed:
                self.open.remove(batch)
                self._is_alone = False
                self._changed.notify_all()

    def count_busy_s(self, began_s: float) -> float:
        """Count the time since ``began_s`` (of ``time.perf_counter``).

        Returns:
            Seconds of it that no other batch has counted.
        """
        with self._changed:
            now_s = time.perf_counter()
            busy_s = now_s - max(began_s, self._counted_until_s)
            self._counted_until_s = now_s
            return busy_s
