"""Vectors of windows to one vector per recording, in parts that can be put together: arrays only.

A recording's windows may lie in several shards. What a shard knows of it is a part, and parts merge in any order to
what all windows at once would have given. Sums are float64; the answers are NumPy's within 1e-6.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEQUENCE = "sequence"
# Rows that are widened to float64 at a time: 4,096 of 1,280 numbers are 42 MB.
CHUNK_ROWS = 4096

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Parts:
    """Partial sums of recordings, one row each: arrays of shape ``[recordings]`` and ``[recordings, dim]``.

    ``spread`` is the sum of squared distances from the mean: its merging (Chan, Golub, LeVeque 1979) loses no digits,
    where the difference of two large sums would.
    """

    file_id: NDArray[np.int64]
    n: NDArray[np.int64]  # windows
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    max: Vectors

    def take(self, at: NDArray[np.int64] | NDArray[np.bool_]) -> "Parts":
        """Return some of the parts."""
        return Parts(self.file_id[at], self.n[at], self.mean[at], self.spread[at], self.max[at])


def parts_of(file_id: NDArray[np.int64], vectors: Vectors) -> Parts:
    """Return the parts of windows: ``file_id`` ``[windows]`` in ascending order, ``vectors`` ``[windows, dim]``."""
    start = starts(file_id)
    n = np.diff([*start, len(file_id)])
    mean, spread = (np.empty((len(start), vectors.shape[1])) for _ in range(2))
    for first, last in _chunks(start, len(file_id)):
        rows = slice(start[first], start[last] if last < len(start) else len(file_id))
        within = start[first:last] - rows.start
        wide = vectors[rows].astype(np.float64)
        mean[first:last] = np.add.reduceat(wide, within) / n[first:last, None]
        wide -= np.repeat(mean[first:last], n[first:last], axis=0)
        spread[first:last] = np.add.reduceat(np.square(wide, out=wide), within)
    maxima = np.maximum.reduceat(vectors, start) if len(start) else vectors[:0]
    return Parts(file_id[start], n, mean, spread, maxima)


def starts(file_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each recording's first row; ``file_id`` is in ascending order."""
    return np.flatnonzero(np.diff(file_id, prepend=file_id[:1] - 1))


def _chunks(start: NDArray[np.int64], n_rows: int) -> list[tuple[int, int]]:
    """Ranges of recordings, each of about CHUNK_ROWS windows or of one recording that has more."""
    number = start // CHUNK_ROWS
    firsts = np.flatnonzero(np.diff(number, prepend=-1)).tolist()
    return list(zip(firsts, [*firsts[1:], len(start)], strict=True)) if n_rows else []


def merge(parts: Parts) -> Parts:
    """One row for each recording, in order of ``file_id``, of as many as it has in ``parts``."""
    order = np.argsort(parts.file_id, kind="stable")
    joined = parts.take(order)
    start = starts(joined.file_id)
    n = np.add.reduceat(joined.n, start) if len(start) else joined.n
    weight = (joined.n / np.repeat(n, np.diff([*start, len(order)])))[:, None]
    mean = np.add.reduceat(joined.mean * weight, start) if len(start) else joined.mean
    distance = joined.mean - np.repeat(mean, np.diff([*start, len(order)]), axis=0)
    spread = joined.spread + joined.n[:, None] * distance**2
    return Parts(
        joined.file_id[start],
        n,
        mean,
        np.add.reduceat(spread, start) if len(start) else spread,
        np.maximum.reduceat(joined.max, start) if len(start) else joined.max,
    )


_POOLS: dict[str, Callable[[Parts], NDArray[np.floating]]] = {
    "mean": lambda parts: parts.mean,
    "max": lambda parts: parts.max,
    "std": lambda parts: np.sqrt(parts.spread / parts.n[:, None]),  # of all windows there are: NumPy's ddof=0
}


def pooled(parts: Parts, poolings: tuple[str, ...]) -> Vectors:
    """``[recordings, len(poolings) · dim]``: one after the other."""
    return np.concatenate([_POOLS[name](parts) for name in poolings], axis=1, dtype=np.float32)
