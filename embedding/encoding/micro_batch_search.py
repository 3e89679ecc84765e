"""Number of windows per pass on a CPU, measured while the first windows are encoded.

CPUs differ: BEATs in bfloat16 with 16 windows per pass takes 0.64 of the time of single windows on a CPU with AMX, and
more than their time on some others (docs/decisions.md, "Micro-batches are measured on the CPU at hand"). Every pass is
useful work, so measuring costs only the compilation of a graph for each size.
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
    """Search for the fastest number of windows per pass; times are kept in a file for the next start."""

    def __init__(self, file: Path | None, batch_size: int) -> None:
        """Read the times of earlier searches.

        Args:
            file: File of the times, with a name that identifies the CPU and the work; None if times are not kept.
            batch_size: Number of windows in most batches. Larger passes are not measured.
        """
        self._file, self._batch_size = file, batch_size
        self._window_s = self._read()
        self._times_s: list[float] = []
        self._n_encoded = 0

    @property
    def measured_next(self) -> int | None:
        """Number of windows per pass that is measured next; None when all are measured."""
        return next((size for size in SIZES if size <= self._batch_size and size not in self._window_s), None)

    @property
    def pass_size(self) -> int:
        """The fastest number of windows per pass so far, rounded so that full batches have equal passes."""
        best = 1
        for size, window_s in self._window_s.items():
            if size <= self._batch_size and window_s * GAIN < self._window_s.get(best, math.inf):
                best = size
        return math.ceil(self._batch_size / math.ceil(self._batch_size / best))

    def size_for(self, n_windows: int) -> int:
        """Return the number of windows of the next pass.

        Args:
            n_windows: Number of windows that are left, at least 1.
        """
        size = self.measured_next
        # In a run of few windows, compiling a graph for more of them at once takes longer than it can save.
        if size is not None and size <= n_windows and self._n_encoded >= N_PASSES * (size - 1):
            return size
        return min(self.pass_size, n_windows)

    def record(self, n_windows: int, seconds: float) -> bool:
        """Record the time of a pass.

        Args:
            n_windows: Number of windows of the pass.
            seconds: Time of the pass.

        Returns:
            True if a number of windows per pass was measured with this pass.
        """
        self._n_encoded += n_windows
        if n_windows != self.measured_next:
            return False
        self._times_s.append(seconds)
        if len(self._times_s) < N_PASSES:
            return False
        self._window_s[n_windows] = min(self._times_s[1:]) / n_windows
        self._times_s = []
        if self._file is not None:
            with suppress(OSError):  # without the file the next run measures again
                storage.write_bytes(str(self._file), json.dumps(self._window_s).encode())
        return True

    def _read(self) -> dict[int, float]:
        """Return the seconds per window of each size that was measured before, from the smallest size on."""
        if self._file is None:
            return {}
        try:
            stored = json.loads(self._file.read_bytes())
            times_s = {size: float(stored[str(size)]) for size in SIZES if str(size) in stored}
        except (OSError, ValueError, TypeError):  # missing or damaged: measured again
            return {}
        return times_s if all(0 < seconds < math.inf for seconds in times_s.values()) else {}
