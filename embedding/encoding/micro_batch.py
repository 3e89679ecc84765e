"""How many windows go through the model at once: known on CPUs, found out on GPUs, less where memory runs out."""

# On a CPU larger micro-batches gain nothing (docs/decisions.md, "Encoder"). What is not listed: FALLBACK.
ON_CPU = {"efficientnet": 4, "beats": 1}
FALLBACK = 4
# On a GPU the first passes try these in turn, and go on while each is at least GAIN times as fast as the one before.
FIRST_ON_GPU = 16
GAIN = 1.05
# Passes at each size while trying. The first one also compiles and allocates: the fastest counts.
TRIES = 3


class MicroBatch:
    """The number of windows for the next forward pass, ``size``; to be told how passes went."""

    def __init__(self, size: int, *, growing: bool) -> None:
        self.size = size
        self.growing = growing
        self._best = (0.0, size)  # windows per second, and the size that gave it
        self._rates: list[float] = []

    @classmethod
    def on(cls, device: str, architecture: str) -> "MicroBatch":
        if device == "cpu":
            return cls(ON_CPU.get(architecture, FALLBACK), growing=False)
        return cls(FIRST_ON_GPU, growing=True)

    def passed(self, n_windows: int, seconds: float) -> None:
        """A pass of ``n_windows`` took so long; to be told while ``growing``.

        Batches smaller than ``size`` gain nothing by it, and so end the growing.
        """
        self._rates.append(n_windows / seconds)
        if len(self._rates) < TRIES:
            return
        rate, size = max(self._rates), self.size
        best_rate, best_size = self._best
        self._rates = []
        if rate >= GAIN * best_rate:
            self._best = (rate, size)
            self.size = 2 * size
        else:
            self.growing = False
            self.size = best_size

    def ran_out(self, error: Exception) -> None:
        """Memory ran out at this size: half of it from now on.

        Raises:
            error: it ran out at a single window.
        """
        if self.size == 1:
            raise error
        self.size //= 2
        self.growing = False
