"""Which windows are drawn: those whose keys hash to the smallest numbers, wherever they lie. Arrays only.

Every window has the same chance, and what is drawn does not depend on the order or the size of shards. All that a
shard's reader needs to know is up to which number.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SEED = 0
# Windows whose numbers are in memory at a time.
CHUNK_WINDOWS = 1 << 20

Numbers = NDArray[np.uint64]


def numbers(file_id: NDArray[np.int64], window_index: NDArray[np.integer], seed: int = SEED) -> Numbers:
    """A number for each window, as good as random, from its key."""
    seeded = _mixed(np.array([seed], np.uint64))
    return _mixed(_mixed(file_id.view(np.uint64) ^ seeded) ^ window_index.astype(np.uint64))


def _mixed(state: Numbers) -> Numbers:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), a permutation of 64 bits."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def last_number(spans: pa.Table, n: int, seed: int = SEED) -> np.uint64:
    """The number of the last of ``n`` windows that are drawn from ``spans`` (stored.SPANS), or of all there are."""
    file_id, first, last = (spans[name].to_numpy() for name in ("file_id", "first", "last"))
    length = last.astype(np.int64) - first + 1
    ends = np.cumsum(length)
    n_chunks = int(length.sum()) // CHUNK_WINDOWS + 1
    drawn = np.empty(0, np.uint64)
    for part in np.split(np.arange(len(ends)), np.searchsorted(ends, CHUNK_WINDOWS * np.arange(1, n_chunks))):
        which = np.repeat(part, length[part])
        index = np.arange(len(which)) - np.repeat(np.cumsum(length[part]) - length[part], length[part]) + first[which]
        found = numbers(file_id[which], index, seed)
        if len(drawn) == n:
            found = found[found < drawn[-1]]
        drawn = np.sort(np.concatenate([drawn, found]))
        drawn = drawn[np.diff(drawn, prepend=~drawn[:1]) != 0][:n]  # a window that is there twice is drawn once
    return drawn[-1] if len(drawn) else np.uint64(0)
