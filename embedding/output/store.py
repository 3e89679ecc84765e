"""The output: its schema, its atomic shards, what is already done, and the settings it belongs to.

    OUTPUT/embeddings/*.parquet   one row per window
    OUTPUT/failures/*.parquet     one row per recording that has no vectors, or fewer than it should
    OUTPUT/run.json               every setting, and the versions of what computed it
    OUTPUT/report.json            the accounting

A shard is complete or absent, so the shards are their own log: what is done is read from their key columns.
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
from numpy.typing import NDArray

from embedding import storage
from embedding.config import MODEL_FOLDER, nearest
from embedding.errors import RequestError
from embedding.output import json_files
from embedding.output.inventory import KEY_RANGE_BYTES, Inventory, ParallelMap, map_in_threads
from embedding.output.json_files import ReportRecord, RunRecord
from embedding.output.shard_schema import (
    AUDIO_HASHES_KEY,
    DO_ANEW,
    SETTINGS_KEY,
    BadShardError,
    check_columns,
    check_form,
    check_values,
    check_vectors,
    hashes_of,
    reading,
    settings_of,
)
from embedding.redact import redact, redact_all
from embedding.schema.batches import AUDIO_HASH, WINDOW_COLUMNS
from embedding.schema.failures import FAILURES, Failure
from embedding.schema.vectors import EMBEDDING, vector_columns
from embedding.storage import s3

# Read back, each with the run that recorded it.
STORED_FAILURES = FAILURES.append(pa.field("run_id", pa.string()))

_BUFFER_BYTES = 64 << 10  # of a column, read at a time where only its first vectors are needed
_RECORDS = {"run.json": RunRecord, "report.json": ReportRecord}
_EXPECTED = {name for name, _ in WINDOW_COLUMNS} | {EMBEDDING}


def embeddings_schema(dim: int, *more: tuple[str, pa.DataType]) -> pa.Schema:
    """Columns of a shard; ``dim`` is the length of a vector, ``more`` what else the run was asked for."""
    return pa.schema([*WINDOW_COLUMNS, (EMBEDDING, pa.list_(pa.float32(), dim)), *more])


@dataclass(frozen=True)
class Store:
    """An output directory or prefix. Small and picklable: it travels to every task that writes."""

    root: str  # absolute path or s3:// URI
    settings: str  # JSON, into the metadata of every shard

    def write_shard(self, table: pa.Table, name: str) -> str:
        """Write one shard of windows, complete or not at all; the same name again replaces it. Returns its URI.

        Args:
            table: the columns of ``embeddings_schema`` and, optionally, AUDIO_HASH, which goes into the metadata.
        """
        uri = storage.child(storage.join(self.root, "embeddings"), f"{name}.parquet")
        metadata = {}
        if AUDIO_HASH[0] in table.column_names:
            metadata[AUDIO_HASHES_KEY] = _pack_hashes(table)
            table = table.drop_columns(AUDIO_HASH[0])
        vectors = table.schema.field(EMBEDDING)
        more = [(field.name, field.type) for field in table.schema if field.name not in _EXPECTED]
        schema = embeddings_schema(vectors.type.list_size, *more)
        storage.write_bytes(uri, self._parquet(table.select(schema.names).cast(schema), metadata))
        return uri

    def read_shard(self, uri: str, columns: list[str] | None = None) -> pa.Table:
        """A shard's rows as they were given to ``write_shard``, AUDIO_HASH included; of ``columns`` only those."""
        with self._readable(), reading(uri), storage.open_stream(uri) as stream:
            file = pq.ParquetFile(stream)
            check_form(uri, file)
            table = file.read(columns=columns, use_threads=False)
            table.validate(full=True)
            check_values(uri, table)
            hashes = hashes_of(uri, file.schema_arrow)
        column = find_hashes(table["file_id"].to_numpy(), hashes)
        return table.append_column(AUDIO_HASH[0], column).replace_schema_metadata(None)

    def write_failures(self, failures: Iterable[Failure], run_id: str) -> None:
        """Record failures, under a name that a second try of the same task overwrites."""
        rows = [asdict(failure) | {"message": redact(failure.message)} for failure in failures]
        if not rows:
            return
        told = repr([(row["file_id"], row["stage"]) for row in rows]).encode()
        key = hashlib.blake2b(told, digest_size=10).hexdigest()
        self._write_failures(pa.Table.from_pylist(rows, FAILURES), f"{run_id}-{key}")

    def replace_failures(self, failures: pa.Table, run_id: str) -> None:
        """``failures`` (FAILURES) in one file, in the place of all there are."""
        former = list(self._names("failures"))
        kept = self._write_failures(failures, run_id) if len(failures) else None
        for uri in former:  # only now: a reader may see a row twice, but never miss one
            if uri != kept:
                storage.delete(uri)

    def n_failure_files(self) -> int:
        return sum(1 for _ in self._names("failures"))

    def _write_failures(self, table: pa.Table, name: str) -> str:
        uri = storage.child(storage.join(self.root, "failures"), f"{name}.parquet")
        storage.write_bytes(uri, self._parquet(table.select(FAILURES.names), {}))
        return uri

    def _parquet(self, table: pa.Table, metadata: dict[str, str]) -> bytes:
        return as_parquet(table.replace_schema_metadata({SETTINGS_KEY: self.settings, **metadata}))

    def _names(self, folder: str) -> Iterator[str]:
        return storage.list_names(storage.join(self.root, folder), ".parquet")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        storage.write_bytes(storage.join(self.root, name), as_json(content))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """``run.json`` or ``report.json``, checked against its schema, or None where there is none yet.

        Raises:
            RequestError: the file is there and cannot be read, or is none of ours.
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
                f"--output: cannot read {uri}: {error}; move it elsewhere and run jobs.embed again, which makes another"
            ) from error

    def refuse_other_settings(self, guarded: dict[str, Any]) -> None:
        """Raises RequestError when the output holds vectors of other settings, naming each difference."""
        run, of_vectors = self.read_json("run.json"), self.stored_settings()
        if of_vectors is None:  # a run.json alone is that of a run that came to nothing
            return
        was = run["settings"] if run is not None else of_vectors
        changed = [
            f"{name} was {was.get(name)}, is {value}" for name, value in guarded.items() if was.get(name) != value
        ]
        if changed:
            raise RequestError(
                f"--output: {self.root} holds vectors of other settings: {'; '.join(changed)}; choose another --output"
            )

    def stored_settings(self) -> dict[str, Any] | None:
        """The settings of the first shard; None where there are no vectors."""
        with self._readable():
            uri = next(self._names("embeddings"), None)
        return None if uri is None else self.settings_of_shard(uri)

    def settings_of_shard(self, uri: str) -> dict[str, Any]:
        """The settings in the metadata of a shard.

        Raises:
            RequestError: the shard cannot be read, or its metadata is damaged.
        """
        with self._readable(), reading(uri), storage.open_stream(uri) as stream:
            return settings_of(uri, pq.read_schema(stream))

    def examine_shard(self, uri: str) -> dict[str, Any]:
        """Check all of a shard but the numbers in its vectors, which are not all read; return its settings.

        Raises:
            RequestError: the shard cannot be read, or is damaged.
        """
        self.read_shard(uri, [name for name, _ in WINDOW_COLUMNS])
        with self._readable(), reading(uri), storage.open_stream(uri, KEY_RANGE_BYTES) as stream:
            file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES)
            check_vectors(uri, file)
            return settings_of(uri, file.schema_arrow)

    def column_of(self, layer: str | None) -> str:
        """The column with the vectors of an inner layer, or without one with those of what the model ends in.

        Raises:
            RequestError: the first shard has none of ``layer``, or there are no shards.
        """
        if layer is None:
            return EMBEDDING
        schema = self._schema()
        if schema is None:
            raise no_embeddings(self.root)
        # A folder is named after the layer, so a column with a slash in its name is nobody's layer.
        layers = [name for name in vector_columns(schema) if name != EMBEDDING and "/" not in name]
        if layer not in layers:
            there = f"there are {', '.join(layers)}" if layers else "jobs.embed --layers stores some"
            raise RequestError(f"--layer: {self.root} has no vectors of {layer!r}{nearest(layer, layers)}; {there}")
        return layer

    def _schema(self) -> pa.Schema | None:
        """Of the first shard, if there is one."""
        with self._readable():
            uri = next(self._names("embeddings"), None)
            if uri is None:
                return None
            with reading(uri), storage.open_stream(uri) as stream:
                return pq.read_schema(stream)

    def read(self, known: Inventory | None = None, parallel_map: ParallelMap = map_in_threads) -> Inventory:
        """What the shards and failure rows hold; shards that ``known`` has are not read again.

        Raises:
            RequestError: the output cannot be read: no such bucket, no permission, a damaged shard.
        """
        with self._readable():
            failures = pa.concat_tables(
                [
                    STORED_FAILURES.empty_table(),
                    *parallel_map(_read_failures, [(uri,) for uri in self._names("failures")]),
                ]
            )
            return Inventory.read(list(self._names("embeddings")), failures, known, parallel_map)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            reason, name = getattr(error, "strerror", None) or error, getattr(error, "filename", None)
            where = f" ({name})" if isinstance(name, str) else ""
            raise RequestError(f"--output: cannot read what {self.root} holds: {reason}{where}") from error

    def sweep(self) -> None:
        """Remove what dead runs left half-written. For the holder of the claim: a live run's would look the same."""
        for folder in ("", "embeddings", "failures"):
            storage.sweep(storage.join(self.root, folder) if folder else self.root)


def no_embeddings(root: str) -> RequestError:
    """That there are none at ``root``, and where there may be some: of a run with several models each has a folder."""
    folder = storage.first_folder(root, MODEL_FOLDER)
    if folder is None:
        if next(storage.list_names(storage.join(root, "failures"), ".parquet"), None) is not None:
            return RequestError(
                f"{root} holds failures alone, no embeddings: python -m jobs.report {root} counts them by kind"
            )
        return RequestError(f"{root} holds no embeddings: write them with jobs.embed")
    return RequestError(f"{root} holds the outputs of several models: name one of them, like {root}/{folder}")


@contextmanager
def undamaged(uri: str, way_out: str) -> Iterator[None]:
    """A block that reads a Parquet file.

    Raises:
        RequestError: the file is no Parquet, or not all of it; ``way_out`` says what to do.
    """
    try:
        with reading(uri, way_out):
            yield
    except BadShardError as error:
        raise RequestError(str(error)) from error


@contextmanager
def open_shard(
    uri: str, range_bytes: int = s3.RANGE_BYTES, *, vectors: str = EMBEDDING, **options: Any
) -> Iterator[pq.ParquetFile]:
    """A shard to read from, with the column ``vectors``; ``options`` are those of ``ParquetFile``.

    Raises:
        OSError: the storage failed.
        RequestError: the shard is damaged, or none of ours.
    """
    with undamaged(uri, DO_ANEW), storage.open_stream(uri, range_bytes) as stream:
        file = pq.ParquetFile(stream, **options)
        check_form(uri, file)
        refuse_others(uri, file.schema_arrow, vectors)
        yield file


def refuse_others(uri: str, columns: pa.Schema, vectors: str) -> None:
    """Raises RequestError where a Parquet file among the shards has not their columns: somebody has put it there."""
    with undamaged(uri, DO_ANEW):
        check_columns(uri, columns)
    if vectors not in vector_columns(columns):
        raise RequestError(f"{uri} holds no vectors of {vectors!r}, as others do: {DO_ANEW}")


def shards_of(root: str) -> list[str]:
    """URIs of the shards of embeddings, in order.

    Raises:
        OSError: the storage failed.
        RequestError: there are none.
    """
    shards = list(storage.list_names(storage.join(root, "embeddings"), ".parquet"))
    if not shards:
        raise no_embeddings(root)
    return shards


def as_json(content: dict[str, Any]) -> bytes:
    """The file of a record, without secrets."""
    return (json.dumps(redact_all(content), indent=2, ensure_ascii=False) + "\n").encode()


def as_parquet(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """The file of a table, compressed; ``row_group_size`` in rows, if not Arrow's own."""
    sink = pa.BufferOutputStream()
    # Vectors do not compress (random mantissas) and have no repeated values: a dictionary only costs time.
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=plain,  # type: ignore[arg-type] — a list of columns is documented; the stubs know bool only
        write_page_index=True,
        row_group_size=row_group_size,
    )
    return sink.getvalue().to_pybytes()


def _read_failures(uri: str) -> pa.Table:
    with storage.open_stream(uri) as stream, reading(uri):
        table = pq.read_table(stream, schema=FAILURES, use_threads=False)
        table.validate(full=True)
        check_values(uri, table)
    run_id = uri.rpartition("/")[2].removesuffix(".parquet").partition("-")[0]
    return table.append_column("run_id", pa.repeat(run_id, len(table))).cast(STORED_FAILURES)


def _pack_hashes(table: pa.Table) -> str:
    """The hashes of a table's recordings, as text: metadata that is not UTF-8 makes some readers refuse the file."""
    known = table.select(["file_id", AUDIO_HASH[0]]).filter(pc.field(AUDIO_HASH[0]).is_valid())
    pairs = known.group_by(["file_id", AUDIO_HASH[0]]).aggregate([])
    return base64.b64encode(np.column_stack([column.to_numpy() for column in pairs.columns]).tobytes()).decode()


def find_hashes(ids: NDArray[np.int64], hashes: pa.Table) -> pa.Array:
    """AUDIO_HASH of each of ``ids`` from a table with ``file_id`` and AUDIO_HASH; null where it is not there."""
    if not len(hashes):
        return pa.nulls(len(ids), pa.int64())
    hashes = hashes.sort_by("file_id")
    known = hashes["file_id"].to_numpy()
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return pa.array(hashes[AUDIO_HASH[0]].to_numpy()[at], mask=known[at] != ids)
