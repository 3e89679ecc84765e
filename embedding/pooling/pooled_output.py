"""The pooled output, and what of it is left to do.

    OUTPUT/recordings/POOLING/*.parquet          one row per recording; of an inner layer's vectors POOLING@LAYER
    OUTPUT/recordings/POOLING/.parts/*.parquet   while a run goes on: what shards know of recordings that lie in several

As with the embeddings the files are their own log: a recording is pooled when its row is there. Files are complete or
absent, and named after what they are made of.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage
from embedding.config import name_at_layer
from embedding.errors import RunError
from embedding.output.inventory import Inventory, Recordings
from embedding.output.shard_reading import refuse_damage
from embedding.output.shard_schema import SETTINGS_KEY
from embedding.output.store import encode_parquet
from embedding.pooling.partial_sums import SEQUENCE
from embedding.schema.vectors import EMBEDDING

DELETE_POOLED = "delete it and run the same command again"
FOLDER = "recordings"
PARTS = ".parts"

# A shard, and what to make of it: recordings that lie wholly in it, and those that have windows elsewhere, of which the
# shard's part gets the name ``parts``.
SHARDS = pa.schema(
    [
        ("uri", pa.string()),
        ("whole", pa.list_(pa.int64())),
        ("split", pa.list_(pa.int64())),
        ("parts", pa.string()),
    ]
)
# Recordings that lie in several shards, and the names of the parts they are in.
GROUPS = pa.schema([("ids", pa.list_(pa.int64())), ("parts", pa.list_(pa.string()))])
# A group of split recordings: neighbours share their shards, so few files are read for many of them; but a sequence
# holds every window, and a task must hold all of its recordings'.
GROUP_RECORDINGS = 4096
GROUP_WINDOWS = 32_768


@dataclass(frozen=True)
class Pooled:
    """The pooled output of ``root``. Small and picklable: it travels to every task that writes."""

    root: str  # of the embeddings
    poolings: tuple[str, ...]
    settings: str  # JSON, into the metadata of every file
    column: str = EMBEDDING  # of the shards, with the vectors that are pooled

    @property
    def folder(self) -> str:
        """The folder of the pooled files."""
        layer = None if self.column == EMBEDDING else self.column
        return storage.child(storage.join(self.root, FOLDER), name_at_layer("+".join(self.poolings), layer))

    def write(self, table: pa.Table, name: str) -> None:
        """Write a file of recordings in one step; the same name again replaces the file."""
        storage.write_bytes(storage.child(self.folder, f"{name}.parquet"), self._parquet(table))

    def write_parts(self, table: pa.Table, name: str) -> None:
        """Write a file of parts in one step."""
        # Each recording by itself, since a group wants some of them: in a sequence they may be 50 MB each.
        content = self._parquet(table, row_group_size=1 if self.poolings == (SEQUENCE,) else None)
        storage.write_bytes(storage.child(storage.join(self.folder, PARTS), f"{name}.parquet"), content)

    def read_parts(self, names: list[str], ids: NDArray[np.int64]) -> pa.Table:
        """Read the parts of these names, for recordings ``ids``."""
        tables = []
        for name in names:
            uri = storage.join(self.folder, PARTS, f"{name}.parquet")
            with refuse_damage(uri, DELETE_POOLED), storage.open_stream(uri) as stream:
                tables.append(pq.read_table(stream, filters=[("file_id", "in", ids.tolist())], use_threads=False))
        return pa.concat_tables(tables)

    def _parquet(self, table: pa.Table, row_group_size: int | None = None) -> bytes:
        return encode_parquet(table.replace_schema_metadata({SETTINGS_KEY: self.settings}), row_group_size)

    def files(self) -> dict[str, NDArray[np.int64]]:
        """URI of each file, and ``file_id`` of the recordings in it; of one made with other settings none."""
        found = {}
        for uri in storage.list_names(self.folder, ".parquet"):
            with refuse_damage(uri, DELETE_POOLED), storage.open_stream(uri) as stream:
                file = pq.ParquetFile(stream)
                schema = file.schema_arrow
                if "file_id" not in schema.names or schema.field("file_id").type != pa.int64():
                    raise RunError(f"{uri} is no file of jobs.pool, by its columns: move it elsewhere")
                settings = (schema.metadata or {}).get(SETTINGS_KEY.encode(), b"")
                ids = file.read(columns=["file_id"])["file_id"].drop_null().to_numpy()
                found[uri] = ids if settings == self.settings.encode() else ids[:0]
        return found

    def sweep(self) -> None:
        """Remove what dead runs left half-written."""
        for folder in (self.folder, storage.join(self.folder, PARTS)):
            storage.remove_unfinished_writes(folder)

    def name_of(self, stem: str, ids: NDArray[np.int64]) -> str:
        """Return the name of a file with these recordings; other recordings or settings have another name."""
        told = self.settings.encode() + np.sort(ids).tobytes()
        return f"{stem}-{hashlib.blake2b(told, digest_size=8).hexdigest()}"

    def parts(self) -> set[str]:
        """Names of the parts there are."""
        return {_stem(uri) for uri in storage.list_names(storage.join(self.folder, PARTS), ".parquet")}

    def forget_parts(self) -> None:
        """Remove all files of parts."""
        for uri in list(storage.list_names(storage.join(self.folder, PARTS), ".parquet")):
            storage.delete(uri)

    def keep(self, uri: str, ids: NDArray[np.int64]) -> None:
        """Remove all recordings but ``ids`` from a file."""
        with storage.open_stream(uri) as stream:
            table = pq.read_table(stream, use_threads=False)
        kept = table.filter(pa.array(np.isin(table["file_id"].to_numpy(), ids)))
        if len(kept):
            self.write(kept, _stem(uri))
        else:
            storage.delete(uri)


@dataclass(frozen=True)
class Plan:
    """The work of pooling: ``shards`` (SHARDS) first, then ``groups`` (GROUPS)."""

    shards: pa.Table
    groups: pa.Table


def complete(recordings: Recordings) -> NDArray[np.int64]:
    """``file_id`` of recordings all of whose windows are stored, each once."""
    is_complete = (recordings.n_present == recordings.n_windows) & recordings.consistent & (recordings.n_repeated == 0)
    return recordings.file_id[is_complete]


def plan(pooled: Pooled, inventory: Inventory, recordings: Recordings, todo: NDArray[np.int64]) -> Plan:
    """For recordings ``todo`` (``file_id``), which are complete; ``recordings`` are those of ``stored``."""
    id_, shard = inventory.window_ranges["file_id"].to_numpy(), inventory.window_ranges["shard"].to_numpy()
    wanted = np.isin(id_, todo)
    pairs = np.unique(np.column_stack([id_[wanted], shard[wanted]]), axis=0)  # by recording
    _, first, n_shards = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    is_split = np.repeat(n_shards > 1, n_shards)
    by_shard = np.argsort(pairs[:, 1], kind="stable")
    rows, parts = [], {}
    for at in np.split(by_shard, np.flatnonzero(np.diff(pairs[by_shard, 1])) + 1) if len(pairs) else []:
        number, split = pairs[at[0], 1], pairs[at[is_split[at]], 0]
        uri = inventory.shards[number]
        parts[number] = pooled.name_of(_stem(uri), split)
        rows.append({"uri": uri, "whole": pairs[at[~is_split[at]], 0], "split": split, "parts": parts[number]})
    groups = []
    of_several = np.flatnonzero(n_shards > 1)
    # In the order of their first shards, so that those of a group have most of their shards in common.
    of_several = of_several[np.argsort(pairs[first[of_several], 1], kind="stable")]
    # Of each, how many groups are full before it.
    n_windows = recordings.n_windows[np.searchsorted(recordings.file_id, pairs[first[of_several], 0])]
    load = np.cumsum(1 / GROUP_RECORDINGS + n_windows / GROUP_WINDOWS)
    for some in np.split(of_several, np.flatnonzero(np.diff(np.floor(load))) + 1) if len(of_several) else []:
        numbers = np.unique(np.concatenate([pairs[first[at] : first[at] + n_shards[at], 1] for at in some]))
        groups.append({"ids": pairs[first[some], 0], "parts": [parts[number] for number in numbers]})
    return Plan(pa.Table.from_pylist(rows, SHARDS), pa.Table.from_pylist(groups, GROUPS))


def _stem(uri: str) -> str:
    return uri.rpartition("/")[2].removesuffix(".parquet")
