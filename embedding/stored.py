"""What an output already holds, read back from the key columns of its shards.

Windows of a recording are written in order, so a shard's keys are kept as spans of consecutive windows: ten million
windows in shards are some hundred thousand spans in memory.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage

KEYS = ["file_id", "window_index", "n_windows"]

# One row per run of consecutive windows of one recording in one shard.
SPANS = pa.schema(
    [
        ("file_id", pa.int64()),
        ("first", pa.int32()),  # window_index of the first
        ("last", pa.int32()),  # … and of the last window
        ("n_windows", pa.int32()),  # as the span's last row says
        ("consistent", pa.bool_()),  # all rows of the span say the same
        ("shard", pa.int32()),  # index into Stored.shards
    ]
)


def read_spans(uri: str, shard: int) -> pa.Table:
    """The spans (SPANS) of one shard."""
    with storage.open_stream(uri) as stream:
        # Not pq.read_table, which plans a scan of a data set first: for 256 rows 1.0 ms, against 0.7 ms.
        keys = pq.ParquetFile(stream).read(columns=KEYS, use_threads=False)
    file_id, index, n_windows = (keys[name].to_numpy() for name in KEYS)
    return spans_of(file_id, index, n_windows, shard)


def spans_of(
    file_id: NDArray[np.int64], index: NDArray[np.int32], n_windows: NDArray[np.int32], shard: int
) -> pa.Table:
    """Spans of the keys of one shard (arrays of shape ``[rows]``). A key that occurs twice starts a span of its own."""
    order = np.lexsort((index, file_id))
    file_id, index, n_windows = file_id[order], index[order], n_windows[order]
    same = (file_id[1:] == file_id[:-1]) & (index[1:] == index[:-1] + 1)
    start = np.flatnonzero(np.concatenate([[True], ~same])) if len(file_id) else np.empty(0, np.int64)
    end = np.concatenate([start[1:], [len(file_id)]]).astype(np.int64) - 1 if len(start) else start
    changes = np.concatenate([[0], np.cumsum(n_windows[1:] != n_windows[:-1])]) if len(file_id) else end
    return pa.table(
        [
            file_id[start],
            index[start],
            index[end],
            n_windows[end],
            changes[start] == changes[end],
            np.full(len(start), shard, np.int32),
        ],
        schema=SPANS,
    )


@dataclass(frozen=True)
class Stored:
    """Spans of every shard, sorted by recording and first window; and what the failure rows say."""

    shards: list[str]
    spans: pa.Table
    failed: dict[int, str]  # file_id → kind

    @classmethod
    def of(cls, shards: list[str], spans: Iterable[pa.Table], failed: dict[int, str]) -> "Stored":
        merged = pa.concat_tables([SPANS.empty_table(), *spans])
        return cls(shards, merged.sort_by([("file_id", "ascending"), ("first", "ascending")]), failed)

    @classmethod
    def read(cls, shards: list[str], failed: dict[int, str]) -> "Stored":
        """Read the key columns of ``shards`` with a few threads: Parquet decoding releases the interpreter."""
        with ThreadPoolExecutor(8) as pool:
            return cls.of(shards, pool.map(read_spans, shards, range(len(shards))), failed)

    def is_failed(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each of ``ids``, whether a failure of it is recorded."""
        return np.isin(ids, np.fromiter(self.failed, np.int64, len(self.failed)))

    def recordings(self) -> "Recordings":
        """The spans, summed up per recording."""
        names = ("file_id", "first", "last", "n_windows", "consistent")
        file_id, first, last, n_windows, consistent = (self.spans[name].to_numpy() for name in names)
        start = np.flatnonzero(np.concatenate([[True], file_id[1:] != file_id[:-1]])) if len(file_id) else file_id
        # How far earlier spans of the same recording reach: what lies below is there twice.
        reach = _running_maximum(last.astype(np.int64), start)
        before = np.concatenate([[-1], reach[:-1]]) if len(reach) else reach
        before[start] = -1
        fresh = np.maximum(0, last - np.maximum(first - 1, before))
        final = _last_of_group(reach, start, last)
        total = n_windows[final]
        return Recordings(
            file_id=file_id[start],
            n_present=_sum(fresh, start),
            n_windows=total,
            n_repeated=_sum(last - first + 1 - fresh, start),
            consistent=_all(consistent & (n_windows == np.repeat(total, _lengths(start, len(file_id)))), start),
        )

    def windows(self, file_id: int) -> list[int]:
        """Indices of the windows stored of one recording, in order."""
        ids = self.spans["file_id"].to_numpy()
        low, high = np.searchsorted(ids, file_id), np.searchsorted(ids, file_id, "right")
        spans = self.spans.slice(low, high - low).to_pylist()
        return sorted({index for span in spans for index in range(span["first"], span["last"] + 1)})


@dataclass(frozen=True)
class Recordings:
    """Per stored recording, sorted by ``file_id``; arrays of shape ``[recordings]``."""

    file_id: NDArray[np.int64]
    n_present: NDArray[np.int64]  # distinct windows stored
    n_windows: NDArray[np.int32]  # windows it has, as the row of its last stored window says
    n_repeated: NDArray[np.int64]  # rows too many
    consistent: NDArray[np.bool_]  # all rows agree on n_windows

    def complete(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each of ``ids``, whether every window of it is stored."""
        if not len(self.file_id):
            return np.zeros(len(ids), bool)
        at = np.minimum(_positions(self.file_id, ids), len(self.file_id) - 1)
        return (self.file_id[at] == ids) & (self.n_present[at] == self.n_windows[at])

    def present(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each of ``ids``, whether any window of it is stored."""
        return np.isin(ids, self.file_id)


def _lengths(start: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    return np.diff(np.concatenate([start, [n]]))


def _sum(values: NDArray[np.integer], start: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.add.reduceat(values, start, dtype=np.int64) if len(start) else np.empty(0, np.int64)


def _all(values: NDArray[np.bool_], start: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.logical_and.reduceat(values, start) if len(start) else np.empty(0, bool)


def _running_maximum(values: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Running maximum within each group; groups begin at ``start``. One pass: groups are lifted apart, then lowered."""
    if not len(values):
        return values
    lift = np.repeat(np.arange(len(start)), _lengths(start, len(values))) * (int(values.max()) + 1)
    lifted = values + lift
    return np.subtract(np.maximum.accumulate(lifted, out=lifted), lift, out=lifted)


def _last_of_group(reach: NDArray[np.int64], start: NDArray[np.int64], last: NDArray[np.int32]) -> NDArray[np.int64]:
    """Per group, the position of the span that reaches furthest."""
    if not len(start):
        return start
    furthest = np.repeat(np.maximum.reduceat(reach, start), _lengths(start, len(reach)))
    at = np.flatnonzero(last == furthest)
    groups = np.searchsorted(start, at, "right")
    return at[np.diff(groups, prepend=0) > 0]


def _positions(values: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """``np.searchsorted(values, wanted)``, asked in order.

    Identities are hashes: in the order of a listing each is a walk through cold memory. 10⁷ among 10⁷ took 14.5 s so,
    and 2.5 s in order, sorting included (benchmarks/results/resume.md).
    """
    order = np.argsort(wanted)
    at = np.empty(len(wanted), np.int64)
    at[order] = np.searchsorted(values, wanted[order])
    return at
