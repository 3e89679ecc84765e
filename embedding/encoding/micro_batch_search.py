"""Number of windows per pass on a CPU, measured while the first windows are encoded.

CPUs differ: BEATs in bfloat16 with 16 windows per pass takes 0.64 of the time of single windows on a CPU with AMX, and
more than their time on some others (docs/decisions.md, "Encoder"). Every pass is useful work, so measuring costs only
the compilation of a graph for each size.
"""

import json
import math
from contextlib import suppress
from pathlib import Path

from embedding import storage

SIZES = (1, 4, 16)
# Passes of each size. The first one compiles the graph and does not count.
N_PASSES = 3
# A larger size has to be faster by this factor, because it fills its last pass with more silence.
GAIN = 1.03


class MicroBatchSearch:
    """Search for the fastest number of windows per pass, whose result is kept in a file.

    Attributes:
        best: The fastest number; None while the search goes on.
    """

    def __init__(self, file: Path, batch_size: int) -> None:
        """Read the result of an earlier search.

        Args:
            file: File of the result, with a name that identifies the CPU and the work.
            batch_size: Number of windows in most batches.
        """
        self._file = file.with_name(f"{file.name}-{min(batch_size, SIZES[-1])}.json")
        self._times_s: dict[int, list[float]] = {min(size, batch_size): [] for size in SIZES}
        self._batch_size = batch_size
        self.best: int | None = self._read()

    def size_for(self, n_windows: int) -> int:
        """Return the number of windows of the next pass.

        Args:
            n_windows: Number of windows that are left, at least 1.
        """
        if self.best is not None:
            # Passes of one size divide a full batch, and need one graph.
            n_passes = math.ceil(self._batch_size / self.best)
            return min(n_windows, math.ceil(self._batch_size / n_passes))
        fitting = [size for size in self._times_s if size <= n_windows]
        return min(fitting, key=lambda size: len(self._times_s[size]))

    def record(self, n_windows: int, seconds: float) -> bool:
        """Record the time of a pass.

        Args:
            n_windows: Number of windows of the pass.
            seconds: Time of the pass.

        Returns:
            True if the search ended with this pass.
        """
        if self.best is not None or n_windows not in self._times_s:
            return False
        self._times_s[n_windows].append(seconds)
        if min(map(len, self._times_s.values())) < N_PASSES:
            return False
        for size, times_s in self._times_s.items():
            if self.best is None or self._window_s(self.best) > GAIN * min(times_s[1:]) / size:
                self.best = size
        with suppress(OSError):  # without the file the next run measures again
            storage.write_bytes(str(self._file), json.dumps(self.best).encode())
        return True

    def _window_s(self, size: int) -> float:
        return min(self._times_s[size][1:]) / size

    def _read(self) -> int | None:
        try:
            stored = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return None
        return next((size for size in self._times_s if size == stored), None)
