"""The store: it writes and reads an output.

    OUTPUT/embeddings/*.parquet   one row per window
    OUTPUT/failures/*.parquet     one row per recording that has no vectors, or fewer than it should have
    OUTPUT/run.json               every setting, and the versions of the packages that computed the vectors
    OUTPUT/report.json            the run report

A shard is complete or absent, so the shards themselves say what is done: their key columns are read back.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding import storage
from embedding.config import did_you_mean
from embedding.errors import RequestError
from embedding.output import json_files, shard_reading
from embedding.output.inventory import Inventory, ParallelMap, map_in_threads
from embedding.output.json_files import ReportRecord, RunRecord
from embedding.output.shard_facts import FACTS_KEY, pack_facts
from embedding.output.shard_reading import STORED_FAILURES, no_embeddings_error
from embedding.output.shard_schema import AUDIO_HASHES_KEY, SETTINGS_KEY, settings_of
from embedding.redact import redact, redact_all
from embedding.schema.batches import AUDIO_HASH, RECORDER_FACTS, WINDOW_COLUMNS
from embedding.schema.failures import FAILURES, Failure
from embedding.schema.vectors import EMBEDDING, vector_columns

_RECORDS = {"run.json": RunRecord, "report.json": ReportRecord}
_FIXED_COLUMNS = {name for name, _ in WINDOW_COLUMNS} | {EMBEDDING}


def embeddings_schema(dim: int, *more: tuple[str, pa.DataType]) -> pa.Schema:
    """Return the columns of a shard.

    Args:
        dim: Length of a vector.
        more: Further columns that the run stores, such as inner layers.
    """
    return pa.schema([*WINDOW_COLUMNS, (EMBEDDING, pa.list_(pa.float32(), dim)), *more])


@dataclass(frozen=True)
class Store:
    """The store of one output. Small and picklable: each task that writes gets a copy.

    Attributes:
        root: Absolute path or ``s3://`` URI of the output.
        settings: The settings of its vectors as JSON, for the metadata of every shard.
    """

    root: str
    settings: str

    # --- shards and failures ------------------------------------------------------------------------------------------

    def write_shard(self, table: pa.Table, name: str) -> str:
        """Write one shard, completely or not at all; a shard with the same name is replaced.

        Args:
            table: The columns of ``embeddings_schema`` and, optionally, AUDIO_HASH and RECORDER_FACTS, which go into
                the metadata.
            name: Name of the shard, without suffix.

        Returns:
            The URI of the shard.
        """
        uri = storage.child(storage.join(self.root, "embeddings"), f"{name}.parquet")
        metadata = {}
        if AUDIO_HASH[0] in table.column_names:
            metadata[AUDIO_HASHES_KEY] = _pack_hashes(table)
            table = table.drop_columns(AUDIO_HASH[0])
        if RECORDER_FACTS[0] in table.column_names:
            if facts := pack_facts(table):
                metadata[FACTS_KEY] = facts
            table = table.drop_columns(RECORDER_FACTS[0])
        vectors = table.schema.field(EMBEDDING)
        more = [(field.name, field.type) for field in table.schema if field.name not in _FIXED_COLUMNS]
        schema = embeddings_schema(vectors.type.list_size, *more)
        storage.write_bytes(uri, self._encode(table.select(schema.names).cast(schema), metadata))
        return uri

    def read_shard(self, uri: str, columns: list[str] | None = None) -> pa.Table:
        """Return the rows of a shard as ``write_shard`` got them, with AUDIO_HASH and RECORDER_FACTS.

        Args:
            uri: The shard.
            columns: Read only these columns; they must include ``file_id``.

        Raises:
            RequestError: The shard cannot be read, or is damaged.
        """
        with self._refusing_unreadable():
            return shard_reading.read_shard(uri, columns)

    def examine_shard(self, uri: str) -> dict[str, Any]:
        """Check a whole shard except the numbers in its vectors, most of which are not read; return its settings.

        Raises:
            RequestError: The shard cannot be read, or is damaged.
        """
        with self._refusing_unreadable():
            return shard_reading.examine_shard(uri)

    def write_failures(self, failures: Iterable[Failure], run_id: str) -> None:
        """Store failures in a file that a second try of the same task overwrites.

        Args:
            failures: The failures; where there are none, no file is written.
            run_id: Identifier of the run.
        """
        rows = [asdict(failure) | {"message": redact(failure.message)} for failure in failures]
        if not rows:
            return
        keys = repr([(row["file_id"], row["stage"]) for row in rows]).encode()
        name = hashlib.blake2b(keys, digest_size=10).hexdigest()
        self._write_failures(pa.Table.from_pylist(rows, FAILURES), f"{run_id}-{name}")

    def replace_failures(self, failures: pa.Table, run_id: str) -> None:
        """Replace all failure files by a single file.

        Args:
            failures: The columns of FAILURES; where there are no rows, no file remains.
            run_id: Identifier of the run.
        """
        former = list(self._list("failures"))
        kept = self._write_failures(failures, run_id) if len(failures) else None
        for uri in former:  # last: a reader may find a row twice meanwhile, but never misses one
            if uri != kept:
                storage.delete(uri)

    def n_failure_files(self) -> int:
        """Return the number of failure files."""
        return sum(1 for _ in self._list("failures"))

    def read(self, known: Inventory | None = None, parallel_map: ParallelMap = map_in_threads) -> Inventory:
        """Return the inventory of the output.

        Args:
            known: An earlier inventory; its shards are not read again.
            parallel_map: Calls a function for many shards.

        Raises:
            RequestError: The output cannot be read: no such bucket, no permission, a damaged shard.
        """
        with self._refusing_unreadable():
            calls = [(uri,) for uri in self._list("failures")]
            failures = [STORED_FAILURES.empty_table(), *parallel_map(shard_reading.read_failures, calls)]
            return Inventory.read(list(self._list("embeddings")), pa.concat_tables(failures), known, parallel_map)

    def remove_unfinished_writes(self) -> None:
        """Remove temporary files of runs that died.

        Only for the holder of the claim: the temporary files of a run that goes on look the same.
        """
        for folder in ("", "embeddings", "failures"):
            storage.remove_unfinished_writes(storage.join(self.root, folder) if folder else self.root)

    # --- settings and JSON files --------------------------------------------------------------------------------------

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write ``run.json`` or ``report.json``."""
        storage.write_bytes(storage.join(self.root, name), encode_json(content))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of ``run.json`` or ``report.json``, checked against its schema; None where there is none.

        Raises:
            RequestError: The file cannot be read, or does not fit its schema.
        """
        uri = storage.join(self.root, name)
        try:
            content = storage.read_bytes(uri, json_files.MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RequestError(f"--output: cannot read {uri}: {error.strerror or error}") from error
        try:
            return json_files.parse(_RECORDS[name], content).content()
        except json_files.BadRecordError as error:
            raise RequestError(
                f"--output: cannot read {uri}: {error}; move it elsewhere and run jobs.embed again, which writes a new "
                "file"
            ) from error

    def stored_settings(self) -> dict[str, Any] | None:
        """Return the settings in the metadata of the first shard; None where there are no vectors.

        Raises:
            RequestError: The shard cannot be read, or its metadata is damaged.
        """
        with self._refusing_unreadable():
            uri = next(self._list("embeddings"), None)
            return None if uri is None else settings_of(uri, shard_reading.read_schema(uri))

    def refuse_other_settings(self, guarded: dict[str, Any]) -> None:
        """Refuse settings that differ from the settings of the stored vectors.

        Args:
            guarded: The settings of the request.

        Raises:
            RequestError: A setting differs; the message names each difference.
        """
        run, of_vectors = self.read_json("run.json"), self.stored_settings()
        if of_vectors is None:  # a run.json without vectors is that of a run that stored nothing
            return
        stored = run["settings"] if run is not None else of_vectors
        changed = [
            f"{name} was {stored.get(name)}, is {value}" for name, value in guarded.items() if stored.get(name) != value
        ]
        if changed:
            raise RequestError(
                f"--output: {self.root} holds vectors of other settings: {'; '.join(changed)}; choose another --output"
            )

    def column_of(self, layer: str | None) -> str:
        """Return the name of the column with the vectors of a layer.

        Args:
            layer: An inner layer; None: the output of the model.

        Raises:
            RequestError: The first shard does not have the layer, or there are no shards.
        """
        if layer is None:
            return EMBEDDING
        with self._refusing_unreadable():
            uri = next(self._list("embeddings"), None)
            schema = None if uri is None else shard_reading.read_schema(uri)
        if schema is None:
            raise no_embeddings_error(self.root)
        # Folders are named after layers, so no layer has a slash in its name.
        layers = [name for name in vector_columns(schema) if name != EMBEDDING and "/" not in name]
        if layer not in layers:
            known = f"there are {', '.join(layers)}" if layers else "jobs.embed --layers stores some"
            raise RequestError(
                f"--layer: {self.root} has no vectors of {layer!r}{did_you_mean(layer, layers)}; {known}"
            )
        return layer

    def _write_failures(self, table: pa.Table, name: str) -> str:
        uri = storage.child(storage.join(self.root, "failures"), f"{name}.parquet")
        storage.write_bytes(uri, self._encode(table.select(FAILURES.names), {}))
        return uri

    def _encode(self, table: pa.Table, metadata: dict[str, str]) -> bytes:
        return encode_parquet(table.replace_schema_metadata({SETTINGS_KEY: self.settings, **metadata}))

    def _list(self, folder: str) -> Iterator[str]:
        return storage.list_names(storage.join(self.root, folder), ".parquet")

    @contextmanager
    def _refusing_unreadable(self) -> Iterator[None]:
        """Raise RequestError where the block cannot read the output."""
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            reason, name = getattr(error, "strerror", None) or error, getattr(error, "filename", None)
            where = f" ({name})" if isinstance(name, str) else ""
            raise RequestError(f"--output: cannot read what {self.root} holds: {reason}{where}") from error


def encode_json(content: dict[str, Any]) -> bytes:
    """Return a JSON file with this content, without secrets."""
    return (json.dumps(redact_all(content), indent=2, ensure_ascii=False) + "\n").encode()


def encode_parquet(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """Return a compressed Parquet file.

    Args:
        table: Its rows.
        row_group_size: Rows per group; None: Arrow's default.
    """
    sink = pa.BufferOutputStream()
    # Vectors do not compress (random mantissas) and have no repeated values: a dictionary only costs time.
    columns_with_dictionary = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=columns_with_dictionary,  # type: ignore[arg-type] — documented; the stubs know bool only
        write_page_index=True,
        row_group_size=row_group_size,
    )
    return sink.getvalue().to_pybytes()


def _pack_hashes(table: pa.Table) -> str:
    """Return the hashes of a table's recordings as text: some readers refuse a file whose metadata is not UTF-8."""
    known = table.select(["file_id", AUDIO_HASH[0]]).filter(pc.field(AUDIO_HASH[0]).is_valid())
    pairs = known.group_by(["file_id", AUDIO_HASH[0]]).aggregate([])
    return base64.b64encode(np.column_stack([column.to_numpy() for column in pairs.columns]).tobytes()).decode()
