"""Partial sums over the windows of recordings, which merge to one vector per recording: arrays only.

The windows of a recording may lie in several shards. Each shard gives partial sums, and these merge in any order to the
same result as all windows at once. Sums are float64; pooled vectors agree with NumPy's within 1e-6.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEQUENCE = "sequence"
# Rows that are converted to float64 at a time: 4,096 rows of 1,280 numbers are 42 MB.
CHUNK_ROWS = 4096

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class PartialSums:
    """Partial sums of recordings, one row each.

    Attributes:
        file_id: ``[recordings]``.
        n: ``[recordings]``, number of windows.
        mean: ``[recordings, dim]``.
        spread: ``[recordings, dim]``, sum of squared distances from the mean. Spreads merge (Chan, Golub, LeVeque 1979)
            without the loss of digits of a difference between two large sums.
        max: ``[recordings, dim]``.
    """

    file_id: NDArray[np.int64]
    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    max: Vectors

    def take(self, rows: NDArray[np.int64]) -> "PartialSums":
        """Return the rows at these positions."""
        return PartialSums(self.file_id[rows], self.n[rows], self.mean[rows], self.spread[rows], self.max[rows])


def sum_windows(file_id: NDArray[np.int64], vectors: Vectors) -> PartialSums:
    """Return the partial sums of windows.

    Args:
        file_id: ``[windows]``, in ascending order.
        vectors: ``[windows, dim]``.
    """
    start = recording_starts(file_id)
    n = np.diff([*start, len(file_id)])
    mean, spread = (np.empty((len(start), vectors.shape[1])) for _ in range(2))
    for first, last in _chunks(start, len(file_id)):
        rows = slice(start[first], start[last] if last < len(start) else len(file_id))
        start_in_chunk = start[first:last] - rows.start
        chunk = vectors[rows].astype(np.float64)
        mean[first:last] = np.add.reduceat(chunk, start_in_chunk) / n[first:last, None]
        chunk -= np.repeat(mean[first:last], n[first:last], axis=0)
        spread[first:last] = np.add.reduceat(np.square(chunk, out=chunk), start_in_chunk)
    maxima = np.maximum.reduceat(vectors, start) if len(start) else vectors[:0]
    return PartialSums(file_id[start], n, mean, spread, maxima)


def recording_starts(file_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each recording's first row; ``file_id`` is in ascending order."""
    return np.flatnonzero(np.diff(file_id, prepend=file_id[:1] - 1))


def _chunks(start: NDArray[np.int64], n_rows: int) -> list[tuple[int, int]]:
    """Return ranges of recordings, each with about CHUNK_ROWS windows or with one longer recording."""
    number = start // CHUNK_ROWS
    firsts = np.flatnonzero(np.diff(number, prepend=-1)).tolist()
    return list(zip(firsts, [*firsts[1:], len(start)], strict=True)) if n_rows else []


def merge_sums(sums: PartialSums) -> PartialSums:
    """Merge the rows of each recording to one row, in the order of ``file_id``."""
    order = np.argsort(sums.file_id, kind="stable")
    if not len(order):
        return sums
    rows = sums.take(order)
    start = recording_starts(rows.file_id)
    n_rows = np.diff([*start, len(order)])
    n = np.add.reduceat(rows.n, start)
    weight = (rows.n / np.repeat(n, n_rows))[:, None]
    mean = np.add.reduceat(rows.mean * weight, start)
    distance = rows.mean - np.repeat(mean, n_rows, axis=0)
    spread = rows.spread + rows.n[:, None] * distance**2
    return PartialSums(
        rows.file_id[start], n, mean, np.add.reduceat(spread, start), np.maximum.reduceat(rows.max, start)
    )


_POOLED: dict[str, Callable[[PartialSums], NDArray[np.floating]]] = {
    "mean": lambda sums: sums.mean,
    "max": lambda sums: sums.max,
    "std": lambda sums: np.sqrt(sums.spread / sums.n[:, None]),  # of all windows: NumPy's ddof=0
}


def pool_sums(sums: PartialSums, poolings: tuple[str, ...]) -> Vectors:
    """Return the pooled vectors, ``[recordings, len(poolings) · dim]``: one pooling after the other."""
    return np.concatenate([_POOLED[name](sums) for name in poolings], axis=1, dtype=np.float32)
