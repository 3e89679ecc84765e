"""The backlog of a derived output: recordings to do, as tasks over shards and over groups of recordings."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.derived.derived_output import DerivedOutput, file_stem
from embedding.output.inventory import Inventory, Recordings, digest_of_keys

# A shard to do: `file_id` of the recordings that lie in this shard alone, and of the recordings that lie in several
# shards, whose partial results from this shard go to the file `partials`; and the digest of its windows.
SHARD_TASKS = pa.schema(
    [
        ("uri", pa.string()),
        ("whole", pa.list_(pa.int64())),
        ("split", pa.list_(pa.int64())),
        ("partials", pa.string()),
        ("keys", pa.string()),
    ]
)
# A group of recordings that lie in several shards: their `file_id`, and the files with their partial results.
GROUP_TASKS = pa.schema([("file_ids", pa.list_(pa.int64())), ("partials", pa.list_(pa.string()))])
# Size of a group. Recordings that are neighbours share their shards, so a large group reads few files for many
# recordings; but a task holds all of its recordings in memory, and a sequence of vectors holds every window.
GROUP_RECORDINGS = 4096
GROUP_WINDOWS = 32_768


@dataclass(frozen=True)
class Backlog:
    """Recordings to do, as tasks.

    Attributes:
        shards: A table of SHARD_TASKS, to be done first.
        groups: A table of GROUP_TASKS.
    """

    shards: pa.Table
    groups: pa.Table


def complete_recordings(recordings: Recordings) -> NDArray[np.int64]:
    """Return the ``file_id`` of the recordings of which every window is stored exactly once."""
    is_complete = (recordings.n_present == recordings.n_windows) & recordings.consistent & (recordings.n_repeated == 0)
    return recordings.file_id[is_complete]


def find_backlog(
    output: DerivedOutput, inventory: Inventory, recordings: Recordings, file_ids: NDArray[np.int64]
) -> Backlog:
    """Return the tasks for some recordings.

    Args:
        output: The derived output.
        inventory: The windows that are stored.
        recordings: All recordings of the inventory.
        file_ids: The recordings to do; all are complete.
    """
    # 1. Find the shards of each recording: pairs of (file_id, shard), in the order of file_id.
    range_ids, range_shards = (inventory.window_ranges[name].to_numpy() for name in ("file_id", "shard"))
    is_open = np.isin(range_ids, file_ids)
    pairs = np.unique(np.column_stack([range_ids[is_open], range_shards[is_open]]), axis=0)
    _, first_pair, n_shards = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    is_split = np.repeat(n_shards > 1, n_shards)

    # 2. Make a task for each shard.
    shard_tasks, partials = [], {}
    ranges_of = _rows_by_shard(inventory)
    by_shard = np.argsort(pairs[:, 1], kind="stable")
    for at in _split_at_changes(by_shard, pairs[by_shard, 1]):
        shard, split = pairs[at[0], 1], pairs[at[is_split[at]], 0]
        uri = inventory.shards[shard]
        partials[shard] = output.file_name(file_stem(uri), split)
        whole = pairs[at[~is_split[at]], 0]
        keys = digest_of_keys(inventory.window_ranges.take(pa.array(ranges_of[shard])))
        task = {"uri": uri, "whole": whole, "split": split, "partials": partials[shard], "keys": keys}
        shard_tasks.append(task)

    # 3. Group the split recordings in the order of their first shards, so that a group shares most of its shards.
    split_recordings = np.flatnonzero(n_shards > 1)
    split_recordings = split_recordings[np.argsort(pairs[first_pair[split_recordings], 1], kind="stable")]
    split_ids = pairs[first_pair[split_recordings], 0]
    n_windows = recordings.n_windows[np.searchsorted(recordings.file_id, split_ids)]
    n_full_groups = np.floor(np.cumsum(1 / GROUP_RECORDINGS + n_windows / GROUP_WINDOWS))  # up to each recording
    group_tasks = []
    for group in _split_at_changes(split_recordings, n_full_groups):
        shards = np.unique(np.concatenate([pairs[first_pair[at] : first_pair[at] + n_shards[at], 1] for at in group]))
        group_tasks.append({"file_ids": pairs[first_pair[group], 0], "partials": [partials[shard] for shard in shards]})
    return Backlog(pa.Table.from_pylist(shard_tasks, SHARD_TASKS), pa.Table.from_pylist(group_tasks, GROUP_TASKS))


def _rows_by_shard(inventory: Inventory) -> list[NDArray[np.int64]]:
    """Return for each shard the rows of its ranges, in order."""
    shard = inventory.window_ranges["shard"].to_numpy()
    order = np.argsort(shard, kind="stable")
    return np.split(order, np.searchsorted(shard[order], np.arange(1, len(inventory.shards))))


def _split_at_changes(values: NDArray[np.int64], keys: NDArray[np.number]) -> list[NDArray[np.int64]]:
    """Split ``values`` wherever the next key differs; no values give no pieces."""
    return np.split(values, np.flatnonzero(np.diff(keys)) + 1) if len(values) else []
