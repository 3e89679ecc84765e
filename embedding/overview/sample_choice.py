"""Choice of the sample: the windows whose keys have the smallest hashes, in whichever shards. Arrays only.

Every window has the same chance, and the sample does not depend on the order or the size of shards. The reader of a
shard only needs to know the largest hash in the sample.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SEED = 0
# Windows whose hashes are in memory at a time.
CHUNK_WINDOWS = 1 << 20

Hashes = NDArray[np.uint64]


def hash_windows(file_id: NDArray[np.int64], window_index: NDArray[np.integer], seed: int = SEED) -> Hashes:
    """Return a pseudo-random number for each window, from its key."""
    seeded = _mix(np.array([seed], np.uint64))
    return _mix(_mix(file_id.view(np.uint64) ^ seeded) ^ window_index.astype(np.uint64))


def _mix(state: Hashes) -> Hashes:
    """Apply the finaliser of SplitMix64 (Steele, Lea, Flood 2014), a permutation of 64 bits."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def largest_sampled_hash(window_ranges: pa.Table, n: int, seed: int = SEED) -> np.uint64:
    """Return the largest hash in a sample of windows.

    Args:
        window_ranges: The windows of an output (inventory.WINDOW_RANGES).
        n: Windows in the sample; where there are fewer, all are in the sample.
        seed: Another seed is another sample.
    """
    file_id, first, last = (window_ranges[name].to_numpy() for name in ("file_id", "first", "last"))
    length = last.astype(np.int64) - first + 1
    ends = np.cumsum(length)
    n_chunks = int(length.sum()) // CHUNK_WINDOWS + 1
    sampled = np.empty(0, np.uint64)
    for chunk in np.split(np.arange(len(ends)), np.searchsorted(ends, CHUNK_WINDOWS * np.arange(1, n_chunks))):
        row = np.repeat(chunk, length[chunk])
        index = np.arange(len(row)) - np.repeat(np.cumsum(length[chunk]) - length[chunk], length[chunk]) + first[row]
        hashes = hash_windows(file_id[row], index, seed)
        if len(sampled) == n:
            hashes = hashes[hashes < sampled[-1]]
        sampled = np.sort(np.concatenate([sampled, hashes]))
        sampled = sampled[np.diff(sampled, prepend=~sampled[:1]) != 0][:n]  # a window that is stored twice counts once
    return sampled[-1] if len(sampled) else np.uint64(0)
