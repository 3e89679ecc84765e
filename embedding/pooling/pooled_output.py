"""The pooled output, and the backlog of recordings to pool.

    OUTPUT/recordings/POOLING/*.parquet          one row per recording; POOLING@LAYER for vectors of an inner layer
    OUTPUT/recordings/POOLING/.parts/*.parquet   during a run: partial results of recordings that lie in several shards

The files are their own log, as for embeddings: a recording is pooled when its row is there. A file is complete or
absent, and its name is derived from its content.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage
from embedding.config import name_at_layer
from embedding.errors import RequestError
from embedding.output.inventory import Inventory, Recordings
from embedding.output.shard_reading import refuse_damage
from embedding.output.shard_schema import SETTINGS_KEY
from embedding.output.store import encode_parquet
from embedding.pooling.partial_sums import SEQUENCE
from embedding.schema.vectors import EMBEDDING

# Advice in messages about damaged files.
POOL_AGAIN = "delete it and run the same command again"
POOLED_FOLDER = "recordings"
PARTIALS_FOLDER = ".parts"

# A shard to pool: `file_id` of the recordings that lie in this shard alone, and of the recordings that lie in several
# shards, whose partial results from this shard go to the file `partials`.
SHARD_TASKS = pa.schema(
    [
        ("uri", pa.string()),
        ("whole", pa.list_(pa.int64())),
        ("split", pa.list_(pa.int64())),
        ("partials", pa.string()),
    ]
)
# A group of recordings that lie in several shards: their `file_id`, and the files with their partial results.
GROUP_TASKS = pa.schema([("file_ids", pa.list_(pa.int64())), ("partials", pa.list_(pa.string()))])
# Size of a group. Recordings that are neighbours share their shards, so a large group reads few files for many
# recordings; but a task holds all of its recordings in memory, and a sequence holds every window.
GROUP_RECORDINGS = 4096
GROUP_WINDOWS = 32_768


@dataclass(frozen=True)
class PooledOutput:
    """The pooled rows of an output; small and picklable, because every task that writes gets a copy.

    Attributes:
        root: Directory or prefix of the output.
        poolings: Names of poolings.
        settings: Settings of the vectors as JSON; they go into the metadata of each file.
        column: Column of the shards with the vectors to pool.
    """

    root: str
    poolings: tuple[str, ...]
    settings: str
    column: str = EMBEDDING

    @property
    def folder(self) -> str:
        """The folder of the pooled files."""
        layer = None if self.column == EMBEDDING else self.column
        return storage.child(storage.join(self.root, POOLED_FOLDER), name_at_layer("+".join(self.poolings), layer))

    def file_name(self, prefix: str, file_ids: NDArray[np.int64]) -> str:
        """Return the name of a file, without suffix; other recordings or settings give another name."""
        content = self.settings.encode() + np.sort(file_ids).tobytes()
        return f"{prefix}-{hashlib.blake2b(content, digest_size=8).hexdigest()}"

    def write(self, rows: pa.Table, name: str) -> None:
        """Write a file of pooled rows in one step; a file of the same name is replaced."""
        storage.write_bytes(storage.child(self.folder, f"{name}.parquet"), self._encode(rows))

    def read_file_ids(self) -> dict[str, NDArray[np.int64]]:
        """Return the URI of each file with the ``file_id`` of its rows; a file of other settings has none.

        Raises:
            OSError: The storage failed.
            RequestError: A file is damaged, or not a file of pooled rows.
        """
        file_ids = {}
        for uri in storage.list_names(self.folder, ".parquet"):
            with refuse_damage(uri, POOL_AGAIN), storage.open_stream(uri) as stream:
                file = pq.ParquetFile(stream)
                schema = file.schema_arrow
                if "file_id" not in schema.names or schema.field("file_id").type != pa.int64():
                    raise RequestError(f"{uri} is no file of jobs.pool, by its columns: move it elsewhere")
                settings = (schema.metadata or {}).get(SETTINGS_KEY.encode(), b"")
                ids = file.read(columns=["file_id"])["file_id"].drop_null().to_numpy()
                file_ids[uri] = ids if settings == self.settings.encode() else ids[:0]
        return file_ids

    def keep_rows(self, uri: str, file_ids: NDArray[np.int64]) -> None:
        """Remove all rows from a file except those of these recordings; remove the file if no row is left."""
        with storage.open_stream(uri) as stream:
            table = pq.read_table(stream, use_threads=False)
        kept = table.filter(pa.array(np.isin(table["file_id"].to_numpy(), file_ids)))
        if len(kept):
            self.write(kept, file_stem(uri))
        else:
            storage.delete(uri)

    def write_partials(self, partials: pa.Table, name: str) -> None:
        """Write a file of partial results in one step."""
        # A group reads some recordings of a file. In a sequence each may take 50 MB, so each is a row group.
        content = self._encode(partials, row_group_size=1 if self.poolings == (SEQUENCE,) else None)
        storage.write_bytes(storage.child(storage.join(self.folder, PARTIALS_FOLDER), f"{name}.parquet"), content)

    def read_partials(self, names: list[str], file_ids: list[int]) -> pa.Table:
        """Return the partial results of some recordings from the files of these names."""
        tables = []
        for name in names:
            uri = storage.join(self.folder, PARTIALS_FOLDER, f"{name}.parquet")
            with refuse_damage(uri, POOL_AGAIN), storage.open_stream(uri) as stream:
                tables.append(pq.read_table(stream, filters=[("file_id", "in", file_ids)], use_threads=False))
        return pa.concat_tables(tables)

    def list_partials(self) -> set[str]:
        """Return the names of the files of partial results."""
        return {file_stem(uri) for uri in self._partial_uris()}

    def delete_partials(self) -> None:
        """Delete all files of partial results."""
        for uri in self._partial_uris():
            storage.delete(uri)

    def sweep(self) -> None:
        """Remove the unfinished files of runs that died."""
        for folder in (self.folder, storage.join(self.folder, PARTIALS_FOLDER)):
            storage.remove_unfinished_writes(folder)

    def _partial_uris(self) -> list[str]:
        return list(storage.list_names(storage.join(self.folder, PARTIALS_FOLDER), ".parquet"))

    def _encode(self, table: pa.Table, row_group_size: int | None = None) -> bytes:
        return encode_parquet(table.replace_schema_metadata({SETTINGS_KEY: self.settings}), row_group_size)


@dataclass(frozen=True)
class PoolingBacklog:
    """Recordings to pool, as tasks.

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
    output: PooledOutput, inventory: Inventory, recordings: Recordings, file_ids: NDArray[np.int64]
) -> PoolingBacklog:
    """Return the tasks that pool some recordings.

    Args:
        output: The pooled output.
        inventory: The windows that are stored.
        recordings: All recordings of the inventory.
        file_ids: The recordings to pool; all are complete.
    """
    # 1. Find the shards of each recording: pairs of (file_id, shard), in the order of file_id.
    range_ids, range_shards = (inventory.window_ranges[name].to_numpy() for name in ("file_id", "shard"))
    is_open = np.isin(range_ids, file_ids)
    pairs = np.unique(np.column_stack([range_ids[is_open], range_shards[is_open]]), axis=0)
    _, first_pair, n_shards = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    is_split = np.repeat(n_shards > 1, n_shards)

    # 2. Make a task for each shard.
    shard_tasks, partials = [], {}
    by_shard = np.argsort(pairs[:, 1], kind="stable")
    for at in _split_at_changes(by_shard, pairs[by_shard, 1]):
        shard, split = pairs[at[0], 1], pairs[at[is_split[at]], 0]
        uri = inventory.shards[shard]
        partials[shard] = output.file_name(file_stem(uri), split)
        whole = pairs[at[~is_split[at]], 0]
        shard_tasks.append({"uri": uri, "whole": whole, "split": split, "partials": partials[shard]})

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
    return PoolingBacklog(
        pa.Table.from_pylist(shard_tasks, SHARD_TASKS), pa.Table.from_pylist(group_tasks, GROUP_TASKS)
    )


def _split_at_changes(values: NDArray[np.int64], keys: NDArray[np.number]) -> list[NDArray[np.int64]]:
    """Split ``values`` wherever the next key differs; no values give no pieces."""
    return np.split(values, np.flatnonzero(np.diff(keys)) + 1) if len(values) else []


def file_stem(uri: str) -> str:
    """Return the name of a Parquet file without its folder and suffix."""
    return uri.rpartition("/")[2].removesuffix(".parquet")
