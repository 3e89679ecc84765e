"""Removal of duplicates from a listing: each recording is listed once, however many names and inputs lead to it."""

import sys
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.schema.recordings import RECORDINGS

_BATCH_ROWS = 8192

Hashes = NDArray[np.int64]
# One row of RECORDINGS; the identity of the file after symbolic links are resolved, equal to ``file_id`` unless the
# path has a link; and a number that hard links to one file share, 0 for a file with one name.
Row = tuple[str, int, int, int, int]


class DuplicateFilter:
    """Filter for the rows of a listing. It remembers names and files as hashes of eight bytes.

    Attributes:
        n_linked: Number of further names of files that are already listed.
        n_hard_links: Number of listed recordings that are hard links to other listed recordings.
    """

    def __init__(self) -> None:
        self._names: list[Hashes] = []
        self._files: list[Hashes] | None = None  # None until the first link: each name is a separate file
        self._hard_links: list[Hashes] = []
        self.n_linked = 0
        self.n_hard_links = 0

    def distinct(self, rows: Iterator[Row], limit: int = sys.maxsize) -> Iterator[pa.RecordBatch]:
        """Yield the first recordings without repetitions, in the order of ``rows``.

        Args:
            rows: Rows of the listing; no more rows are consumed than needed.
            limit: Maximum number of recordings.
        """
        while limit and (chunk := list(islice(rows, min(limit, _BATCH_ROWS)))):
            files, sizes, ids, identities, inodes = zip(*chunk, strict=True)
            new = self._are_new(np.array(ids), np.array(identities), np.array(inodes))
            if new.any():
                limit -= int(new.sum())
                batch = _batch(files, sizes, ids)
                yield batch if new.all() else batch.filter(pa.array(new))

    def _are_new(self, names: Hashes, files: Hashes, inodes: Hashes) -> NDArray[np.bool_]:
        if self._files is None and (names != files).any():
            self._files = list(self._names)
        new = _add_new(names, self._names)
        if self._files is not None:
            is_new_name, new = new, _add_new(files, self._files)
            self.n_linked += int((is_new_name & ~new).sum())
        hard_links = inodes[new & (inodes != 0)]
        self.n_hard_links += len(hard_links) - int(_add_new(hard_links, self._hard_links).sum())
        return new


def _batch(files: tuple[str, ...], sizes: tuple[int, ...], ids: tuple[int, ...]) -> pa.RecordBatch:
    """Return a batch with buffers of exact size: builders of pa.array waste 60 bytes per row (pyarrow 26)."""
    names = [file.encode() for file in files]
    ends = np.cumsum([0, *map(len, names)], dtype=np.int32)
    column = pa.StringArray.from_buffers(len(names), pa.py_buffer(ends), pa.py_buffer(b"".join(names)))
    return pa.record_batch([column, pa.array(np.array(sizes)), pa.array(np.array(ids))], RECORDINGS)


def _add_new(ids: Hashes, runs: list[Hashes]) -> NDArray[np.bool_]:
    """Return for each id whether it is new, and add the new ids to ``runs``.

    Args:
        ids: The ids; of equal ids only the first one is new.
        runs: Sorted arrays, each longer than the next one. So there are few arrays to search, and an id is merged into
            a longer array only some twenty times. An id takes 8 bytes here, during a merge 16; in a set it would take
            60 bytes.
    """
    new = np.zeros(len(ids), bool)
    new[np.unique(ids, return_index=True)[1]] = True
    for run in runs:
        new &= run[np.minimum(np.searchsorted(run, ids), len(run) - 1)] != ids
    run = np.sort(ids[new])
    while runs and len(runs[-1]) <= len(run):
        run = np.sort(np.concatenate([runs.pop(), run]), kind="stable")  # the stable sort merges sorted arrays
    if len(run):
        runs.append(run)
    return new
