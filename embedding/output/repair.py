"""Repair of an output after a run: every window is stored once, and belongs to the present version of its recording.

Kills, retries and changed recordings leave rows that are repeated, that belong to a former version, or that hold a
duration that a header promised. Shards with such rows are written again under their own names, each in one step, so
that a reader finds the earlier shard or its replacement, also after a kill. No row is removed before its replacement is
stored; a second repair changes nothing.
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


def repair_shards(
    store: Store, inventory: Inventory, superseded: NDArray[np.int64], new_ids: Mapping[int, int]
) -> list[str]:
    """Repair the shards.

    Args:
        store: The output.
        inventory: What the output holds.
        superseded: ``file_id`` of recordings whose rows are removed.
        new_ids: Former and present ``file_id`` of recordings whose rows are kept.

    Returns:
        URIs of the shards that have changed.
    """
    former = np.fromiter(new_ids, np.int64, len(new_ids))
    renamed_ranges = _with_new_ids(inventory.window_ranges, new_ids)
    # A repair that was interrupted may have left rows of one recording under both identities: they count together.
    recordings = Inventory.of(inventory.shards, [renamed_ranges], inventory.failures).recordings()
    ids = recordings.file_id
    repeated = ids[recordings.n_repeated > 0]
    is_inconsistent = ~recordings.consistent & (recordings.n_present == recordings.n_windows)
    affected = np.isin(inventory.window_ranges["file_id"].to_numpy(), np.concatenate([superseded, former]))
    affected |= np.isin(renamed_ranges["file_id"].to_numpy(), np.concatenate([repeated, ids[is_inconsistent]]))
    totals = (ids[is_inconsistent], recordings.n_windows[is_inconsistent], recordings.duration_s[is_inconsistent])
    kept_keys: set[tuple[int, int]] = set()
    changed = []
    for number in np.unique(inventory.window_ranges["shard"].to_numpy()[affected]):
        uri = inventory.shards[number]
        table = store.read_shard(uri)
        repaired = table.filter(pa.array(~np.isin(table["file_id"].to_numpy(), superseded)))
        repaired = _with_new_ids(repaired, new_ids)
        repaired = _without_repetitions(repaired, repeated, kept_keys)
        repaired = _with_totals(repaired, *totals)
        if repaired.equals(table):
            continue
        changed.append(uri)
        if len(repaired):
            store.write_shard(repaired, uri.rpartition("/")[2].removesuffix(".parquet"))
        else:
            storage.delete(uri)
    return changed


def _without_repetitions(table: pa.Table, repeated: NDArray[np.int64], kept_keys: set[tuple[int, int]]) -> pa.Table:
    """Return the rows of a shard without repetitions of rows in this shard or an earlier one.

    Args:
        table: The rows.
        repeated: ``file_id`` of recordings with repeated rows.
        kept_keys: Keys (file_id, window_index) of rows of these recordings that are kept so far; keys are added.
    """
    ids = table["file_id"].to_numpy()
    index = table["window_index"].to_numpy()
    is_kept = np.ones(len(table), bool)
    for row in np.flatnonzero(np.isin(ids, repeated)):
        key = (int(ids[row]), int(index[row]))
        is_kept[row] = key not in kept_keys
        kept_keys.add(key)
    return table.filter(pa.array(is_kept))


def _with_totals(
    table: pa.Table, ids: NDArray[np.int64], n_windows: NDArray[np.int32], duration_s: NDArray[np.float64]
) -> pa.Table:
    """Return the rows with the true number of windows and duration of the recordings ``ids``, which are sorted."""
    if not len(ids):
        return table
    own_ids = table["file_id"].to_numpy()
    positions = np.minimum(np.searchsorted(ids, own_ids), len(ids) - 1)
    for name, values in (("n_windows", n_windows), ("duration", duration_s)):
        column = np.where(ids[positions] == own_ids, values[positions], table[name].to_numpy())
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    return table


def _with_new_ids(table: pa.Table, new_ids: Mapping[int, int]) -> pa.Table:
    """Return the rows with the present identity of recordings that have a new one."""
    if not new_ids:
        return table
    ids = pa.array([new_ids.get(file_id, file_id) for file_id in table["file_id"].to_pylist()], pa.int64())
    return table.set_column(table.column_names.index("file_id"), "file_id", ids)


def repair_failures(
    store: Store, inventory: Inventory, listed: pa.Table, retried: NDArray[np.int64], run_id: str
) -> bool:
    """Repair the failure rows: keep one per recording and stage, of its last try, and none that is overcome.

    Args:
        store: The output.
        inventory: What the output holds.
        listed: The columns of ``schema.recordings.RECORDINGS``.
        retried: ``file_id`` of recordings that this run has tried to their end.
        run_id: Identifier of this run.

    Returns:
        Whether the rows have changed.
    """
    rows = inventory.failures
    ids = rows["file_id"].to_numpy()
    is_of_this_run = rows["run_id"].to_numpy() == run_id
    failed_again = np.isin(ids, ids[is_of_this_run])
    is_overcome = inventory.recordings().is_complete(ids) & np.isin(rows["kind"].to_numpy(), WITHOUT_WINDOWS)
    # The listing is filtered by the names of failures and not the reverse: a set of ten million names needs too much
    # memory.
    same_name = listed.filter(pc.field("file").isin(rows["file"].combine_chunks()))
    is_superseded = np.isin(rows["file"].to_numpy(), same_name["file"].to_numpy())
    is_superseded &= ~np.isin(ids, listed["file_id"].to_numpy())
    is_latest = is_of_this_run | ~(failed_again | np.isin(ids, retried))
    kept = rows.filter(pa.array(is_latest & ~is_overcome & ~is_superseded))
    numbered = kept.append_column("number", pa.array(np.arange(len(kept))))
    first = numbered.group_by(["file_id", "stage"]).aggregate([("number", "min")])["number_min"]
    kept = kept.take(np.sort(first.to_numpy()))
    if len(kept) == len(rows) and store.n_failure_files() <= 1:
        return False
    store.replace_failures(kept, run_id)
    return True
