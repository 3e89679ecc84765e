"""Order of the batches that one process encodes: two at once, but a suspect batch alone."""

import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager


class BatchTurns:
    """Turns that the threads of a process take to encode batches, and the time in which at least one of them encodes.

    When a process dies while it encodes two batches, either may be the cause. Both become suspects: the next process
    encodes each of them alone, so that the next death identifies one batch.

    Attributes:
        active: Names of the batches that are being encoded.
    """

    def __init__(self, suspects: Container[str] = ()) -> None:
        """Start with no active batch.

        Args:
            suspects: Names of the batches that were active when a process died.
        """
        self._suspects = suspects
        self._changed = threading.Condition()
        self.active: list[str] = []
        self._is_alone = False
        self._counted_until_s = 0.0

    @contextmanager
    def turn(self, batch: str) -> Iterator[None]:
        """Wait until ``batch`` may start; the batch is active until the block ends."""
        alone = batch in self._suspects
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone and not (alone and self.active))
            self.active.append(batch)
            self._is_alone = alone
        try:
            yield
        finally:
            with self._changed:
                self.active.remove(batch)
                self._is_alone = False
                self._changed.notify_all()

    def count_busy_s(self, began_s: float) -> float:
        """Count the time from ``began_s`` until now, without the part that another batch has already counted.

        Args:
            began_s: Start of the batch, a value of ``time.perf_counter``.

        Returns:
            Newly counted time in seconds.
        """
        with self._changed:
            now_s = time.perf_counter()
            busy_s = now_s - max(began_s, self._counted_until_s)
            self._counted_until_s = now_s
            return busy_s
