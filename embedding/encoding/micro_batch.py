"""Size of a micro-batch, the number of windows in one forward pass: fixed on CPUs, measured at the start on GPUs."""

from collections.abc import Callable

# On a CPU larger micro-batches bring nothing (docs/decisions.md, "Encoder").
SIZES_ON_CPU = {"efficientnet": 4, "beats": 1}
DEFAULT_SIZE_ON_CPU = 4

# On a GPU sizes are tried from FIRST_ON_GPU to MAX_ON_GPU, as long as each size is at least GAIN times as fast as the
# size before.
FIRST_ON_GPU, MAX_ON_GPU = 16, 256
GAIN = 1.05

# The rest of a batch is computed in the smallest size that holds it. There are few sizes, because cuDNN makes a new
# plan for each new shape.
N_SIZES = 4

# After memory ran out at a size, this many full micro-batches have to succeed before the size is tried again; the
# number doubles each time.
PASSES_UNTIL_GROWTH = 64


class MicroBatch:
    """Current sizes of micro-batches.

    Attributes:
        size: The largest current size.
    """

    def __init__(self, size: int) -> None:
        self.size = self._largest = size
        self._passes_until_growth = PASSES_UNTIL_GROWTH
        self._n_passes = 0

    @property
    def sizes(self) -> list[int]:
        """All current sizes, the largest first; each is half of the size before."""
        return list(dict.fromkeys(max(1, self.size >> by) for by in range(N_SIZES)))

    def size_for(self, n_windows: int) -> int:
        """Return the smallest size that holds ``n_windows``, or the largest size if none does."""
        return next((size for size in reversed(self.sizes) if size >= n_windows), self.size)

    def count_pass(self) -> None:
        """Count a full micro-batch that succeeded; after enough of them grow back by one step."""
        if self.size == self._largest:
            return
        self._n_passes += 1
        if self._n_passes == self._passes_until_growth:
            self.size *= 2
            self._passes_until_growth *= 2
            self._n_passes = 0

    def shrink(self) -> None:
        """Halve the size after memory ran out."""
        self.size = max(1, self.size // 2)
        self._n_passes = 0


def size_on_cpu(architecture: str) -> int:
    """Return the size for a CPU.

    Args:
        architecture: avex's name of the architecture: ``beats``, ``efficientnet`` or ``eat_hf``.
    """
    return SIZES_ON_CPU.get(architecture, DEFAULT_SIZE_ON_CPU)


def find_fastest_size(seconds_of: Callable[[int], float | None], max_size: int) -> int:
    """Find the size with the highest rate by trying several sizes.

    Args:
        seconds_of: Returns the time of one pass of a given size in seconds, or None if memory ran out.
        max_size: Largest size that the batches permit.
    """
    best, best_rate = min(FIRST_ON_GPU, max_size), 0.0
    size = best
    while size <= min(MAX_ON_GPU, max_size):
        seconds = seconds_of(size)
        if seconds is None:
            return best if best < size else max(1, size // 2)
        rate = size / seconds
        if rate < GAIN * best_rate:
            return best
        best, best_rate = size, rate
        size *= 2
    return best
