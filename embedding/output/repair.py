"""What a run leaves behind, put in order: every window once, of the present version of its recording.

Kills, retries and changed recordings leave rows that are there twice, that belong to a former version, or that say what
a header promised. Shards with such rows are written anew under their own names, each in one step, so that a reader and
a kill see either. Nothing is dropped before what takes its place is stored; doing it twice changes nothing.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding import storage
from embedding.output.inventory import Inventory
from embedding.output.store import Store

# Kinds of failures that leave no windows: a recording that is complete has overcome them.
WITHOUT_WINDOWS = ("empty", "corrupt", "short", "io", "crash")


def repair_shards(store: Store, inventory: Inventory, gone: NDArray[np.int64], new_ids: Mapping[int, int]) -> list[str]:
    """Mend the shards; ``stored`` is what they hold.

    Args:
        gone: ``file_id`` of recordings whose rows are to be dropped.
        new_ids: former to present ``file_id`` of recordings that stay what they are.

    Returns:
        URIs of the shards that are not what they were.
    """
    former = np.fromiter(new_ids, np.int64, len(new_ids))
    present = _with_present_ids(inventory.spans, new_ids)
    # Also the rows of one recording that an interrupted settling left under either identity are one recording's.
    recordings = Inventory.of(inventory.shards, [present], inventory.failures).recordings()
    ids = recordings.file_id
    repeated = ids[recordings.n_repeated > 0]
    corrected = ids[~recordings.consistent & (recordings.n_present == recordings.n_windows)]
    concerned = np.isin(inventory.spans["file_id"].to_numpy(), np.concatenate([gone, former]))
    concerned |= np.isin(present["file_id"].to_numpy(), np.concatenate([repeated, corrected]))
    truth = np.isin(ids, corrected)
    totals = (ids[truth], recordings.n_windows[truth], recordings.duration_s[truth])
    seen: set[tuple[int, int]] = set()
    changed = []
    for at in np.unique(inventory.spans["shard"].to_numpy()[concerned]):
        uri = inventory.shards[at]
        table = store.read_shard(uri)
        mended = table.filter(pa.array(~np.isin(table["file_id"].to_numpy(), gone)))
        mended = _with_present_ids(mended, new_ids)
        mended = _once(mended, repeated, seen)
        mended = _with_totals(mended, *totals)
        if mended.equals(table):
            continue
        changed.append(uri)
        if len(mended):
            store.write_shard(mended, uri.rpartition("/")[2].removesuffix(".parquet"))
        else:
            storage.delete(uri)
    return changed


def _once(table: pa.Table, repeated: NDArray[np.int64], seen: set[tuple[int, int]]) -> pa.Table:
    """Without the rows of ``repeated`` recordings whose key (file_id, window_index) is in ``seen``, which grows."""
    ids = table["file_id"].to_numpy()
    index = table["window_index"].to_numpy()
    keep = np.ones(len(table), bool)
    for at in np.flatnonzero(np.isin(ids, repeated)):
        key = (int(ids[at]), int(index[at]))
        keep[at] = key not in seen
        seen.add(key)
    return table.filter(pa.array(keep))


def _with_totals(
    table: pa.Table, ids: NDArray[np.int64], n_windows: NDArray[np.int32], duration_s: NDArray[np.float64]
) -> pa.Table:
    """With the true number of windows and duration of the recordings ``ids`` (sorted)."""
    if not len(ids):
        return table
    own = table["file_id"].to_numpy()
    at = np.minimum(np.searchsorted(ids, own), len(ids) - 1)
    for name, values in (("n_windows", n_windows), ("duration", duration_s)):
        column = np.where(ids[at] == own, values[at], table[name].to_numpy())
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    return table


def _with_present_ids(table: pa.Table, new_ids: Mapping[int, int]) -> pa.Table:
    if not new_ids:
        return table
    ids = pa.array([new_ids.get(i, i) for i in table["file_id"].to_pylist()], pa.int64())
    return table.set_column(table.column_names.index("file_id"), "file_id", ids)


def repair_failures(
    store: Store, inventory: Inventory, listed: pa.Table, retried: NDArray[np.int64], run_id: str
) -> bool:
    """Mend the failure rows: one per recording and stage, of its last try, and none that was overcome.

    Args:
        listed: columns of ``sources.RECORDINGS``.
        retried: ``file_id`` of what this run has tried to the end.

    Returns:
        whether the rows are not what they were.
    """
    rows = inventory.failures
    ids = rows["file_id"].to_numpy()
    of_this_run = rows["run_id"].to_numpy() == run_id
    told_again = np.isin(ids, ids[of_this_run])
    overcome = inventory.recordings().complete(ids) & np.isin(rows["kind"].to_numpy(), WITHOUT_WINDOWS)
    # The shorter list is the set: the names of ten million recordings do not fit one.
    same_name = listed.filter(pc.field("file").isin(rows["file"].combine_chunks()))
    replaced = np.isin(rows["file"].to_numpy(), same_name["file"].to_numpy())
    replaced &= ~np.isin(ids, listed["file_id"].to_numpy())
    keep = (of_this_run | ~(told_again | np.isin(ids, retried))) & ~overcome & ~replaced
    kept = rows.filter(pa.array(keep))
    numbered = kept.append_column("at", pa.array(np.arange(len(kept))))
    first = numbered.group_by(["file_id", "stage"]).aggregate([("at", "min")])["at_min"]
    kept = kept.take(np.sort(first.to_numpy()))
    if len(kept) == len(rows) and store.n_failure_files() <= 1:
        return False
    store.replace_failures(kept, run_id)
    return True
