"""The number of windows that go through a model at once: known on CPUs, found at the start on GPUs."""

from collections.abc import Callable

# On a CPU larger micro-batches gain nothing (docs/decisions.md, "Encoder"). What is not listed: FALLBACK.
ON_CPU = {"efficientnet": 4, "beats": 1}
FALLBACK = 4

# On a GPU sizes are tried from FIRST_ON_GPU to MOST_ON_GPU, and on while each is at least GAIN times as fast as the one
# before.
FIRST_ON_GPU, MOST_ON_GPU = 16, 256
GAIN = 1.05

# What is left over of a batch goes through in the smallest size that holds it. Few sizes, because cuDNN plans anew for
# each shape that it has not seen.
N_SIZES = 4

# Full micro-batches that must pass before a size that memory ran out at is tried again; twice as many each time.
PASSES_UNTIL_GROWTH = 64


class MicroBatch:
    """The sizes of micro-batches.

    Attributes:
        size: the largest at present.
    """

    def __init__(self, size: int) -> None:
        self.size = self._largest = size
        self._wait = PASSES_UNTIL_GROWTH
        self._passed = 0

    @property
    def sizes(self) -> list[int]:
        """All sizes at present, the largest first: each half of the one before."""
        return list(dict.fromkeys(max(1, self.size >> by) for by in range(N_SIZES)))

    def fitting(self, n_windows: int) -> int:
        """Return the smallest size that holds ``n_windows``, or the largest there is."""
        return next((size for size in reversed(self.sizes) if size >= n_windows), self.size)

    def passed(self) -> None:
        """Count a full micro-batch that went through, and grow back after enough of them."""
        if self.size == self._largest:
            return
        self._passed += 1
        if self._passed == self._wait:
            self.size *= 2
            self._wait *= 2
            self._passed = 0

    def ran_out(self) -> None:
        """Halve the size, because memory ran out at it."""
        self.size = max(1, self.size // 2)
        self._passed = 0


def on_cpu(architecture: str) -> int:
    """Return the size for a CPU."""
    return ON_CPU.get(architecture, FALLBACK)


def fastest(seconds_of: Callable[[int], float | None], most: int) -> int:
    """Return the size with the highest rate, found by trying.

    Args:
        seconds_of: gives the time of one pass at a size, or None where memory ran out.
        most: the largest size that batches allow.
    """
    best, best_rate = min(FIRST_ON_GPU, most), 0.0
    size = best
    while size <= min(MOST_ON_GPU, most):
        seconds = seconds_of(size)
        if seconds is None:
            return best if best < size else max(1, size // 2)
        rate = size / seconds
        if rate < GAIN * best_rate:
            return best
        best, best_rate = size, rate
        size *= 2
    return best
