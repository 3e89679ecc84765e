"""The inventory of an output: what it holds, read back from the key columns of its shards.

Windows of a recording are written in order, so the keys of a shard are kept as ranges of consecutive windows: ten
million windows in shards are some hundred thousand ranges in memory.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage
from embedding.output.shard_schema import check_form, check_keys, check_values, detect_damage
from embedding.stopping import thread_pool

KEYS = ["file_id", "window_index", "n_windows", "duration"]

# Shards read at once. Sixteen take half as long again for 39,000 small shards on two cores (45 s against 30 s).
READERS = 8
# The key columns of a shard lie together before its vectors, and take less than this.
KEY_RANGE_BYTES = 1 << 20

# Calls a function once per tuple of arguments, many at a time, and yields the results in order.
ParallelMap = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]

# A row per range: consecutive windows of one recording in one shard.
WINDOW_RANGES = pa.schema(
    [
        ("file_id", pa.int64()),
        ("first", pa.int32()),  # window_index of the first window
        ("last", pa.int32()),  # window_index of the last window
        ("n_windows", pa.int32()),  # in the row of the last window
        ("duration", pa.float64()),  # seconds, in the row of the last window
        ("consistent", pa.bool_()),  # all rows of the range have the same n_windows and duration
        ("shard", pa.int32()),  # index into Inventory.shards
    ]
)


def map_in_threads(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call a function in threads of this machine: reading waits for storage, and decoding Parquet releases the GIL.

    Args:
        function: The function.
        arguments: A tuple for each call.

    Yields:
        The results, in order.
    """
    with thread_pool(READERS) as pool:
        yield from pool.map(lambda call: function(*call), arguments)


def read_window_ranges(uri: str, shard: int) -> pa.Table:
    """Return the ranges of one shard, a table of WINDOW_RANGES.

    Args:
        uri: The shard.
        shard: Its index in ``Inventory.shards``.

    Raises:
        OSError: The storage failed.
        BadShardError: The file is damaged, or no shard; the message names it.
    """
    with storage.open_stream(uri, KEY_RANGE_BYTES) as stream, detect_damage(uri):
        # Not pq.read_table, which plans a scan of a data set first: for 256 rows 1.0 ms, against 0.7 ms.
        file = pq.ParquetFile(stream)
        check_form(uri, file)
        keys = file.read(columns=KEYS, use_threads=False)
        check_values(uri, keys)
        check_keys(uri, *(keys[name].to_numpy() for name in KEYS[1:]))
    return find_window_ranges(keys, shard)


def find_window_ranges(keys: pa.Table, shard: int) -> pa.Table:
    """Return the ranges in the key columns of one shard; a key that occurs twice starts a range of its own.

    Args:
        keys: The columns KEYS.
        shard: Index of the shard in ``Inventory.shards``.

    Returns:
        A table of WINDOW_RANGES.
    """
    file_id, index, n_windows, duration = (keys[name].to_numpy() for name in KEYS)
    order = np.lexsort((index, file_id))
    file_id, index, n_windows, duration = file_id[order], index[order], n_windows[order], duration[order]
    continues = (file_id[1:] == file_id[:-1]) & (index[1:] == index[:-1] + 1)
    start = np.flatnonzero(np.concatenate([[True], ~continues])) if len(file_id) else np.empty(0, np.int64)
    end = np.concatenate([start[1:], [len(file_id)]]).astype(np.int64) - 1 if len(start) else start
    differs = (n_windows[1:] != n_windows[:-1]) | (duration[1:] != duration[:-1])
    n_changes = np.concatenate([[0], np.cumsum(differs)]) if len(file_id) else end
    return pa.table(
        [
            file_id[start],
            index[start],
            index[end],
            n_windows[end],
            duration[end],
            n_changes[start] == n_changes[end],
            np.full(len(start), shard, np.int32),
        ],
        schema=WINDOW_RANGES,
    )


def digest_of_keys(window_ranges: pa.Table) -> str:
    """Return a text that is the same for shards with the same windows.

    Args:
        window_ranges: The ranges of one shard, sorted by recording and first window.
    """
    keys = np.column_stack([window_ranges[name].to_numpy().astype(np.int64) for name in ("file_id", "first", "last")])
    return hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Inventory:
    """The windows and failures of an output.

    Attributes:
        shards: URIs of the shards.
        window_ranges: A table of WINDOW_RANGES, sorted by recording and first window.
        failures: The failure rows, a table of ``shard_reading.STORED_FAILURES``.
    """

    shards: list[str]
    window_ranges: pa.Table
    failures: pa.Table

    @classmethod
    def of(cls, shards: list[str], window_ranges: Iterable[pa.Table], failures: pa.Table) -> "Inventory":
        """Return the inventory with these ranges, in any order.

        Args:
            shards: URIs of the shards.
            window_ranges: Tables of WINDOW_RANGES.
            failures: The failure rows.
        """
        merged = pa.concat_tables([WINDOW_RANGES.empty_table(), *window_ranges])
        return cls(shards, merged.sort_by([("file_id", "ascending"), ("first", "ascending")]), failures)

    @classmethod
    def read(
        cls,
        shards: list[str],
        failures: pa.Table,
        known: "Inventory | None" = None,
        parallel_map: ParallelMap = map_in_threads,
    ) -> "Inventory":
        """Read the key columns of shards.

        Args:
            shards: URIs of the shards.
            failures: The failure rows.
            known: An earlier inventory; its shards are not read again.
            parallel_map: Calls a function for many shards.

        Raises:
            OSError: The storage failed.
            BadShardError: A file is damaged, or no shard.
        """
        known = (known or cls([], WINDOW_RANGES.empty_table(), failures)).restrict_to(shards)
        known_shards = set(known.shards)
        new = [uri for uri in shards if uri not in known_shards]
        calls = [(uri, number) for number, uri in enumerate(new, start=len(known.shards))]
        return cls.of([*known.shards, *new], [known.window_ranges, *parallel_map(read_window_ranges, calls)], failures)

    def restrict_to(self, shards: Collection[str]) -> "Inventory":
        """Return the inventory of those shards that are in ``shards``."""
        chosen = set(shards)
        is_kept = np.array([uri in chosen for uri in self.shards], bool)
        new_numbers = (np.cumsum(is_kept) - 1).astype(np.int32)
        shard = self.window_ranges["shard"].to_numpy()
        column = self.window_ranges.column_names.index("shard")
        renumbered = self.window_ranges.set_column(column, "shard", pa.array(new_numbers[shard]))
        return Inventory(
            [uri for uri in self.shards if uri in chosen], renumbered.filter(pa.array(is_kept[shard])), self.failures
        )

    def is_failed(self, ids: NDArray[np.int64], run_id: str | None = None) -> NDArray[np.bool_]:
        """Return for each recording whether a failure of it is stored.

        Args:
            ids: ``file_id`` of the recordings.
            run_id: Count only failures of this run.
        """
        failures = self.failures
        if run_id is not None:
            failures = failures.filter(pc.field("run_id") == run_id)
        return np.isin(ids, failures["file_id"].to_numpy())

    def recordings(self) -> "Recordings":
        """Return the ranges, summed up per recording."""
        names = ("file_id", "first", "last", "n_windows", "duration", "consistent")
        file_id, first, last, n_windows, duration, consistent = (self.window_ranges[name].to_numpy() for name in names)
        start = np.flatnonzero(np.concatenate([[True], file_id[1:] != file_id[:-1]])) if len(file_id) else file_id
        # The last window of all earlier ranges of the recording: windows up to it are stored already, so these rows are
        # repeated.
        reach = _running_maximum(last.astype(np.int64), start)
        earlier_reach = np.concatenate([[-1], reach[:-1]]) if len(reach) else reach
        earlier_reach[start] = -1
        n_new = np.maximum(0, last - np.maximum(first - 1, earlier_reach))
        final = _furthest_of_group(reach, start, last)
        total, length_s = n_windows[final], duration[final]
        n_ranges = _lengths(start, len(file_id))
        agrees = (n_windows == np.repeat(total, n_ranges)) & (duration == np.repeat(length_s, n_ranges))
        return Recordings(
            file_id=file_id[start],
            n_present=_sum(n_new, start),
            n_windows=total,
            duration_s=length_s,
            n_repeated=_sum(last - first + 1 - n_new, start),
            consistent=_all(consistent & agrees, start),
        )

    def totals(self) -> dict[str, float]:
        """Return counts of the whole output, whether listed or not; docs/schema.md explains them."""
        recordings = self.recordings()
        is_whole = recordings.n_present == recordings.n_windows
        is_failed = self.is_failed(recordings.file_id)
        return {
            "recordings": int((is_whole & ~is_failed).sum()),
            "incomplete": int((~is_whole & ~is_failed).sum()),  # half-done, and without a failure
            "failed": len(self.failures["file_id"].unique()),
            "windows": int(recordings.n_present.sum()),
            "repeated": int(recordings.n_repeated.sum()),
            "shards": len(self.shards),
            "audio_s": round(float(recordings.duration_s[is_whole & ~is_failed].sum()), 3),
        }

    def window_indices(self, file_id: int) -> list[int]:
        """Return the indices of the stored windows of a recording, in order."""
        ids = self.window_ranges["file_id"].to_numpy()
        low, high = np.searchsorted(ids, file_id), np.searchsorted(ids, file_id, "right")
        ranges = self.window_ranges.slice(low, high - low).to_pylist()
        return sorted({index for row in ranges for index in range(row["first"], row["last"] + 1)})


@dataclass(frozen=True)
class Recordings:
    """The stored recordings, sorted by ``file_id``; arrays ``[recordings]``.

    Attributes:
        file_id: Identities of the recordings.
        n_present: Distinct windows that are stored.
        n_windows: Windows of the recording, from the row of its last stored window.
        duration_s: Seconds of audio, from the same row.
        n_repeated: Rows of windows that are stored more than once.
        consistent: All rows have the same number of windows and the same duration.
    """

    file_id: NDArray[np.int64]
    n_present: NDArray[np.int64]
    n_windows: NDArray[np.int32]
    duration_s: NDArray[np.float64]
    n_repeated: NDArray[np.int64]
    consistent: NDArray[np.bool_]

    def is_complete(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each of ``ids`` whether every window of the recording is stored."""
        if not len(self.file_id):
            return np.zeros(len(ids), bool)
        rows = np.minimum(_search_sorted(self.file_id, ids), len(self.file_id) - 1)
        return (self.file_id[rows] == ids) & (self.n_present[rows] == self.n_windows[rows])

    def is_present(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each of ``ids`` whether any window of the recording is stored."""
        return np.isin(ids, self.file_id)

    def count_windows(self, ids: NDArray[np.int64]) -> tuple[int, int, int]:
        """Return for the recordings ``ids`` together: windows, distinct windows that are stored, repeated rows."""
        chosen = np.isin(self.file_id, ids)
        return (
            int(self.n_windows[chosen].sum(dtype=np.int64)),
            int(self.n_present[chosen].sum()),
            int(self.n_repeated[chosen].sum()),
        )


# --- groups of rows, each given by the row at which it starts ---------------------------------------------------------


def _lengths(start: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    return np.diff(np.concatenate([start, [n]]))


def _sum(values: NDArray[np.integer], start: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.add.reduceat(values, start, dtype=np.int64) if len(start) else np.empty(0, np.int64)


def _all(values: NDArray[np.bool_], start: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.logical_and.reduceat(values, start) if len(start) else np.empty(0, bool)


def _running_maximum(values: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the running maximum within each group.

    One pass over all groups: an offset that grows with the group keeps their values apart, and is subtracted at the
    end.
    """
    if not len(values):
        return values
    offset = np.repeat(np.arange(len(start)), _lengths(start, len(values))) * (int(values.max()) + 1)
    shifted = values + offset
    return np.subtract(np.maximum.accumulate(shifted, out=shifted), offset, out=shifted)


def _furthest_of_group(
    reach: NDArray[np.int64], start: NDArray[np.int64], last: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Return for each group the row of the range that reaches furthest."""
    if not len(start):
        return start
    furthest = np.repeat(np.maximum.reduceat(reach, start), _lengths(start, len(reach)))
    rows = np.flatnonzero(last == furthest)
    groups = np.searchsorted(start, rows, "right")
    return rows[np.diff(groups, prepend=0) > 0]


def _search_sorted(values: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``np.searchsorted(values, keys)``, searched in the order of the keys.

    Identities are hashes, so in the order of a listing each search reads memory that is not cached. For 10⁷ among 10⁷
    this took 14.5 s, and 2.5 s in order, sorting included (benchmarks/results/resume.md).
    """
    order = np.argsort(keys)
    positions = np.empty(len(keys), np.int64)
    positions[order] = np.searchsorted(values, keys[order])
    return positions
