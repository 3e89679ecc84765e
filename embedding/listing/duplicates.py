"""Every recording once, however many names and inputs lead to it: batches of a listing without repetitions."""

import sys
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.schema.recordings import RECORDINGS

_CHUNK = 8192  # rows of one Arrow batch

Hashes = NDArray[np.int64]
# One row of RECORDINGS; the identity of the file that the name leads to, which is ``file_id`` unless there is a link on
# the way; and a number that hard links to one file share, 0 for a file with one name.
Row = tuple[str, int, int, int, int]


class Seen:
    """The names and files of a listing so far, as hashes of eight bytes."""

    def __init__(self) -> None:
        self._names: list[Hashes] = []
        self._files: list[Hashes] | None = None  # until the first link, each name is a file of its own
        self._hard_links: list[Hashes] = []
        self.n_linked = 0  # further names of files that are listed already
        self.n_hard_links = 0  # recordings that are hard links to others of the listing

    def distinct(self, rows: Iterator[Row], n_wanted: int = sys.maxsize) -> Iterator[pa.RecordBatch]:
        """Yield the first ``n_wanted`` recordings, each at its first mention; no row more is taken than needed."""
        while n_wanted and (chunk := list(islice(rows, min(n_wanted, _CHUNK)))):
            files, sizes, ids, identities, inodes = zip(*chunk, strict=True)
            new = self._are_new(np.array(ids), np.array(identities), np.array(inodes))
            if new.any():
                n_wanted -= int(new.sum())
                batch = _batch(files, sizes, ids)
                yield batch if new.all() else batch.filter(pa.array(new))

    def _are_new(self, names: Hashes, files: Hashes, inodes: Hashes) -> NDArray[np.bool_]:
        if self._files is None and (names != files).any():
            self._files = list(self._names)
        new = _unseen(names, self._names)
        if self._files is not None:
            is_new_name, new = new, _unseen(files, self._files)
            self.n_linked += int((is_new_name & ~new).sum())
        several = inodes[new & (inodes != 0)]
        self.n_hard_links += len(several) - int(_unseen(several, self._hard_links).sum())
        return new


def _batch(files: tuple[str, ...], sizes: tuple[int, ...], ids: tuple[int, ...]) -> pa.RecordBatch:
    """Made to measure: pa.array's own builders leave 60 bytes per row unused in Arrow's allocator (pyarrow 26)."""
    names = [file.encode() for file in files]
    ends = np.cumsum([0, *map(len, names)], dtype=np.int32)
    column = pa.StringArray.from_buffers(len(names), pa.py_buffer(ends), pa.py_buffer(b"".join(names)))
    return pa.record_batch([column, pa.array(np.array(sizes)), pa.array(np.array(ids))], RECORDINGS)


def _unseen(ids: Hashes, seen: list[Hashes]) -> NDArray[np.bool_]:
    """For each of ``ids``, whether it is its first mention; those then belong to ``seen``.

    ``seen`` holds sorted runs, each longer than the next: few to search, and an id is merged into a longer run only
    some twenty times. A set would take 60 bytes per id, these take 8, and as many again for a moment.
    """
    new = np.zeros(len(ids), bool)
    new[np.unique(ids, return_index=True)[1]] = True
    for run in seen:
        new &= run[np.minimum(np.searchsorted(run, ids), len(run) - 1)] != ids
    run = np.sort(ids[new])
    while seen and len(seen[-1]) <= len(run):
        run = np.sort(np.concatenate([seen.pop(), run]), kind="stable")  # which merges what is sorted
    if len(run):
        seen.append(run)
    return new
