"""What an output already holds, read back from the key columns of its shards.

Windows of a recording are written in order, so a shard's keys are kept as spans of consecutive windows: ten million
windows in shards are some hundred thousand spans in memory.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage
from embedding.output.shard_schema import check_form, check_keys, check_values, reading
from embedding.stopping import threads_of

KEYS = ["file_id", "window_index", "n_windows", "duration"]

# Shards read at once. Sixteen take half as long again for 39,000 small ones on two cores (45 s against 30 s).
READERS = 8
# The key columns of a shard lie together before its vectors, and take less than this.
KEY_RANGE_BYTES = 1 << 20

# Calls a function once per tuple of arguments, many at a time, and gives the results in order.
ParallelMap = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]

# One row per run of consecutive windows of one recording in one shard.
SPANS = pa.schema(
    [
        ("file_id", pa.int64()),
        ("first", pa.int32()),  # window_index of the first
        ("last", pa.int32()),  # … and of the last window
        ("n_windows", pa.int32()),  # as the span's last row says
        ("duration", pa.float64()),  # seconds, likewise
        ("consistent", pa.bool_()),  # all rows of the span say the same
        ("shard", pa.int32()),  # index into Inventory.shards
    ]
)


def map_in_threads(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """``ParallelMap`` on this machine: reading waits for storage, and Parquet decoding releases the interpreter."""
    with threads_of(READERS) as pool:
        yield from pool.map(lambda call: function(*call), arguments)


def read_spans(uri: str, shard: int) -> pa.Table:
    """The spans (SPANS) of one shard.

    Raises:
        OSError: the storage failed.
        BadShardError: it is damaged, or none of ours; the message names it.
    """
    with storage.open_stream(uri, KEY_RANGE_BYTES) as stream, reading(uri):
        # Not pq.read_table, which plans a scan of a data set first: for 256 rows 1.0 ms, against 0.7 ms.
        file = pq.ParquetFile(stream)
        check_form(uri, file)
        keys = file.read(columns=KEYS, use_threads=False)
        check_values(uri, keys)
        check_keys(uri, *(keys[name].to_numpy() for name in KEYS[1:]))
    return spans_of(keys, shard)


def spans_of(keys: pa.Table, shard: int) -> pa.Table:
    """Spans of the key columns of one shard. A key that occurs twice starts a span of its own."""
    file_id, index, n_windows, duration = (keys[name].to_numpy() for name in KEYS)
    order = np.lexsort((index, file_id))
    file_id, index, n_windows, duration = file_id[order], index[order], n_windows[order], duration[order]
    same = (file_id[1:] == file_id[:-1]) & (index[1:] == index[:-1] + 1)
    start = np.flatnonzero(np.concatenate([[True], ~same])) if len(file_id) else np.empty(0, np.int64)
    end = np.concatenate([start[1:], [len(file_id)]]).astype(np.int64) - 1 if len(start) else start
    differs = (n_windows[1:] != n_windows[:-1]) | (duration[1:] != duration[:-1])
    changes = np.concatenate([[0], np.cumsum(differs)]) if len(file_id) else end
    return pa.table(
        [
            file_id[start],
            index[start],
            index[end],
            n_windows[end],
            duration[end],
            changes[start] == changes[end],
            np.full(len(start), shard, np.int32),
        ],
        schema=SPANS,
    )


@dataclass(frozen=True)
class Inventory:
    """Spans of every shard, sorted by recording and first window; and the failure rows (store.STORED_FAILURES)."""

    shards: list[str]
    spans: pa.Table
    failures: pa.Table

    @classmethod
    def of(cls, shards: list[str], spans: Iterable[pa.Table], failures: pa.Table) -> "Inventory":
        merged = pa.concat_tables([SPANS.empty_table(), *spans])
        return cls(shards, merged.sort_by([("file_id", "ascending"), ("first", "ascending")]), failures)

    @classmethod
    def read(
        cls,
        shards: list[str],
        failures: pa.Table,
        known: "Inventory | None" = None,
        parallel_map: ParallelMap = map_in_threads,
    ) -> "Inventory":
        """Read the key columns of ``shards``; those that ``known`` has are taken from there."""
        known = (known or cls([], SPANS.empty_table(), failures)).only(shards)
        have = set(known.shards)
        new = [uri for uri in shards if uri not in have]
        first = len(known.shards)
        spans = parallel_map(read_spans, [(uri, first + at) for at, uri in enumerate(new)])
        return cls.of([*known.shards, *new], [known.spans, *spans], failures)

    def only(self, shards: Collection[str]) -> "Inventory":
        """Knowing nothing of other shards than these."""
        these = set(shards)
        kept = np.array([uri in these for uri in self.shards], bool)
        numbers = (np.cumsum(kept) - 1).astype(np.int32)  # of those that are kept
        shard = self.spans["shard"].to_numpy()
        spans = self.spans.set_column(self.spans.column_names.index("shard"), "shard", pa.array(numbers[shard]))
        return Inventory(
            [uri for uri in self.shards if uri in these], spans.filter(pa.array(kept[shard])), self.failures
        )

    def is_failed(self, ids: NDArray[np.int64], run_id: str | None = None) -> NDArray[np.bool_]:
        """For each of ``ids``, whether a failure of it is recorded (by that run, if one is named)."""
        failures = self.failures
        if run_id is not None:
            failures = failures.filter(pc.field("run_id") == run_id)
        return np.isin(ids, failures["file_id"].to_numpy())

    def recordings(self) -> "Recordings":
        """The spans, summed up per recording."""
        names = ("file_id", "first", "last", "n_windows", "duration", "consistent")
        file_id, first, last, n_windows, duration, consistent = (self.spans[name].to_numpy() for name in names)
        start = np.flatnonzero(np.concatenate([[True], file_id[1:] != file_id[:-1]])) if len(file_id) else file_id
        # How far earlier spans of the same recording reach: what lies below is there twice.
        reach = _running_maximum(last.astype(np.int64), start)
        before = np.concatenate([[-1], reach[:-1]]) if len(reach) else reach
        before[start] = -1
        fresh = np.maximum(0, last - np.maximum(first - 1, before))
        final = _last_of_group(reach, start, last)
        total, length_s = n_windows[final], duration[final]
        n_spans = _lengths(start, len(file_id))
        agrees = (n_windows == np.repeat(total, n_spans)) & (duration == np.repeat(length_s, n_spans))
        return Recordings(
            file_id=file_id[start],
            n_present=_sum(fresh, start),
            n_windows=total,
            duration_s=length_s,
            n_repeated=_sum(last - first + 1 - fresh, start),
            consistent=_all(consistent & agrees, start),
        )

    def totals(self) -> dict[str, float]:
        """Of the whole output, whatever was listed."""
        recordings = self.recordings()
        whole = recordings.n_present == recordings.n_windows
        failed = self.is_failed(recordings.file_id)
        return {
            "recordings": int((whole & ~failed).sum()),
            "incomplete": int((~whole & ~failed).sum()),  # half-done, and no failure says why
            "failed": len(self.failures["file_id"].unique()),
            "windows": int(recordings.n_present.sum()),
            "repeated": int(recordings.n_repeated.sum()),
            "shards": len(self.shards),
            "audio_s": round(float(recordings.duration_s[whole & ~failed].sum()), 3),
        }

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
    duration_s: NDArray[np.float64]  # likewise
    n_repeated: NDArray[np.int64]  # rows too many
    consistent: NDArray[np.bool_]  # all rows agree on both

    def complete(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each of ``ids``, whether every window of it is stored."""
        if not len(self.file_id):
            return np.zeros(len(ids), bool)
        at = np.minimum(_positions(self.file_id, ids), len(self.file_id) - 1)
        return (self.file_id[at] == ids) & (self.n_present[at] == self.n_windows[at])

    def windows_of(self, ids: NDArray[np.int64]) -> tuple[int, int, int]:
        """Of these recordings together: windows they have, distinct ones stored, rows too many."""
        these = np.isin(self.file_id, ids)
        return (
            int(self.n_windows[these].sum(dtype=np.int64)),
            int(self.n_present[these].sum()),
            int(self.n_repeated[these].sum()),
        )

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
