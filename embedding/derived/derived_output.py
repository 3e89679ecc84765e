"""A derived output: rows that are computed from the windows of each recording.

    FOLDER/*.parquet          the rows
    FOLDER/.parts/*.parquet   during a run: partial results of recordings that lie in several shards
    FOLDER/.shards/*.parquet  partial results of whole shards, made while jobs.embed wrote them

The files are their own log, as for embeddings: a recording is done when a file names it. A file is complete or absent,
and its name is derived from its content.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage
from embedding.errors import RequestError
from embedding.output.shard_reading import refuse_damage
from embedding.output.shard_schema import SETTINGS_KEY, damaged_file
from embedding.output.store import encode_parquet

# Key of a file's metadata: base64 of the `file_id` of its recordings, as int64. Only where recordings may have no row.
RECORDINGS_KEY = "avex_batch.recordings"
# Advice in messages about damaged files.
DERIVE_AGAIN = "delete it and run the same command again"
PARTIALS_FOLDER = ".parts"
SHARDS_FOLDER = ".shards"
# Key of the metadata of such partial results: digest of the windows in the shard, which a repair may change.
KEYS_KEY = "avex_batch.keys"


@dataclass(frozen=True)
class DerivedOutput:
    """Rows derived from windows; small and picklable, because every task that writes gets a copy.

    Attributes:
        folder: Folder of the files.
        settings: Everything that determines the rows, as JSON; it goes into the metadata of each file.
        job: Name of the job that writes the rows, for messages.
        names_recordings: Files name their recordings in their metadata, because a recording may have no row. Otherwise
            the recordings of a file are those of its rows.
        keeps_whole_files: A file of which a recording is outdated is removed as a whole, because its rows are a choice
            among all of its recordings.
        holds_chosen_only: A run over chosen recordings drops the rows of others.
        partials_by_row: Read partial results recording by recording, because one of them may take 50 MB.
    """

    folder: str
    settings: str
    job: str
    names_recordings: bool = False
    keeps_whole_files: bool = False
    holds_chosen_only: bool = False
    partials_by_row: bool = False

    def file_name(self, prefix: str, file_ids: NDArray[np.int64]) -> str:
        """Return the name of a file, without suffix; other recordings or settings give another name."""
        content = self.settings.encode() + np.sort(file_ids).tobytes()
        return f"{prefix}-{hashlib.blake2b(content, digest_size=8).hexdigest()}"

    def write(self, rows: pa.Table, name: str, file_ids: NDArray[np.int64]) -> None:
        """Write a file in one step; a file of the same name is replaced.

        Args:
            rows: The rows.
            name: Name of the file, without suffix.
            file_ids: The recordings that are done with it.
        """
        metadata = {}
        if self.names_recordings:
            metadata[RECORDINGS_KEY] = base64.b64encode(np.asarray(file_ids, np.int64).tobytes()).decode()
        storage.write_bytes(storage.child(self.folder, f"{name}.parquet"), self._encode(rows, metadata))

    def read_file_ids(self) -> dict[str, NDArray[np.int64]]:
        """Return the URI of each file with the ``file_id`` of its recordings; a file of other settings has none.

        Raises:
            OSError: The storage failed.
            RequestError: A file is damaged, or not a file of this job.
        """
        file_ids = {}
        for uri in storage.list_names(self.folder, ".parquet"):
            with refuse_damage(uri, DERIVE_AGAIN), storage.open_stream(uri) as stream:
                file = pq.ParquetFile(stream)
                schema = file.schema_arrow
                metadata = schema.metadata or {}
                if "file_id" not in schema.names or schema.field("file_id").type != pa.int64():
                    raise RequestError(f"{uri} is no file of jobs.{self.job}, by its columns: move it elsewhere")
                if self.names_recordings:
                    ids = _unpack_ids(uri, metadata.get(RECORDINGS_KEY.encode(), b""))
                else:
                    ids = file.read(columns=["file_id"])["file_id"].drop_null().to_numpy()
                file_ids[uri] = ids if metadata.get(SETTINGS_KEY.encode()) == self.settings.encode() else ids[:0]
        return file_ids

    def other_settings(self) -> str | None:
        """Return the settings of a file that were written with other settings; None if there is no such file.

        Raises:
            OSError: The storage failed.
            RequestError: A file is damaged.
        """
        for uri in storage.list_names(self.folder, ".parquet"):
            with refuse_damage(uri, DERIVE_AGAIN), storage.open_stream(uri) as stream:
                settings = (pq.read_schema(stream).metadata or {}).get(SETTINGS_KEY.encode(), b"{}").decode()
            if settings != self.settings:
                return settings
        return None

    def keep_recordings(self, uri: str, file_ids: NDArray[np.int64]) -> None:
        """Remove all recordings from a file except these; remove the file if none is left."""
        if not len(file_ids):
            storage.delete(uri)
            return
        with storage.open_stream(uri) as stream:
            table = pq.read_table(stream, use_threads=False)
        kept = table.filter(pa.array(np.isin(table["file_id"].to_numpy(), file_ids)))
        self.write(kept, file_stem(uri), file_ids)

    def write_partials(self, partials: pa.Table, name: str) -> None:
        """Write a file of partial results in one step."""
        content = self._encode(partials, {}, row_group_size=1 if self.partials_by_row else None)
        storage.write_bytes(storage.child(storage.join(self.folder, PARTIALS_FOLDER), f"{name}.parquet"), content)

    def read_partials(self, names: list[str], file_ids: list[int]) -> pa.Table:
        """Return the partial results of some recordings from the files of these names."""
        tables = []
        for name in names:
            uri = storage.join(self.folder, PARTIALS_FOLDER, f"{name}.parquet")
            with refuse_damage(uri, DERIVE_AGAIN), storage.open_stream(uri) as stream:
                tables.append(pq.read_table(stream, filters=[("file_id", "in", file_ids)], use_threads=False))
        return pa.concat_tables(tables)

    def write_shard_partials(self, partials: pa.Table, stem: str, keys: str) -> None:
        """Write the partial results of a whole shard in one step.

        Args:
            partials: The partial results.
            stem: Name of the shard, without suffix.
            keys: Digest of its windows, from ``inventory.digest_of_keys``.
        """
        uri = storage.child(storage.join(self.folder, SHARDS_FOLDER), f"{stem}.parquet")
        storage.write_bytes(uri, self._encode(partials, {KEYS_KEY: keys}))

    def read_shard_partials(self, uri: str, keys: str) -> pa.Table | None:
        """Return the partial results of a whole shard; None if there are none for these windows and settings.

        Args:
            uri: The shard.
            keys: Digest of its windows.

        Raises:
            OSError: The storage failed.
            RequestError: The partial results are damaged.
        """
        stored = storage.join(self.folder, SHARDS_FOLDER, f"{file_stem(uri)}.parquet")
        try:
            with refuse_damage(stored, DERIVE_AGAIN), storage.open_stream(stored) as stream:
                table = pq.read_table(stream, use_threads=False)
        except FileNotFoundError:
            return None
        metadata = table.schema.metadata or {}
        is_current = metadata.get(KEYS_KEY.encode()) == keys.encode()
        is_current &= metadata.get(SETTINGS_KEY.encode()) == self.settings.encode()
        return table.replace_schema_metadata(None) if is_current else None

    def list_shard_partials(self) -> set[str]:
        """Return the names of the shards with partial results."""
        return {file_stem(uri) for uri in storage.list_names(storage.join(self.folder, SHARDS_FOLDER), ".parquet")}

    def list_partials(self) -> set[str]:
        """Return the names of the files of partial results."""
        return {file_stem(uri) for uri in self._partial_uris()}

    def delete_partials(self) -> None:
        """Delete all files of partial results."""
        for uri in [
            *self._partial_uris(),
            *storage.list_names(storage.join(self.folder, SHARDS_FOLDER), ".parquet"),
        ]:
            storage.delete(uri)

    def sweep(self) -> None:
        """Remove the unfinished files of runs that died."""
        for folder in (self.folder, *(storage.join(self.folder, name) for name in (PARTIALS_FOLDER, SHARDS_FOLDER))):
            storage.remove_unfinished_writes(folder)

    def _partial_uris(self) -> list[str]:
        return list(storage.list_names(storage.join(self.folder, PARTIALS_FOLDER), ".parquet"))

    def _encode(self, table: pa.Table, metadata: dict[str, str], row_group_size: int | None = None) -> bytes:
        return encode_parquet(table.replace_schema_metadata({SETTINGS_KEY: self.settings, **metadata}), row_group_size)


def file_stem(uri: str) -> str:
    """Return the name of a Parquet file without its folder and suffix."""
    return uri.rpartition("/")[2].removesuffix(".parquet")


def _unpack_ids(uri: str, text: bytes) -> NDArray[np.int64]:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), np.int64)
    except (binascii.Error, ValueError):
        raise damaged_file(uri, "its list of recordings is not a list of numbers", DERIVE_AGAIN) from None
