"""Rows to export: vectors and the columns beside them, read in batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage
from embedding.config import name_at_layer
from embedding.derived.derived_output import DERIVE_AGAIN
from embedding.errors import RequestError, RunError
from embedding.output.inventory import KEY_RANGE_BYTES, map_in_threads
from embedding.output.shard_reading import no_embeddings_error, refuse_damage, refuse_other_columns
from embedding.output.shard_schema import EMBED_AGAIN, check_values, settings_of
from embedding.output.store import Store
from embedding.pooling.partial_tables import RECORDING_COLUMNS
from embedding.pooling.pool import POOLED_FOLDER
from embedding.schema.vectors import EMBEDDING, as_embedding, vector_columns
from embedding.where import choose_recordings

# 25 MB, for vectors of 768 numbers.
BATCH_ROWS = 8192


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        root: Directory or prefix of the output.
        pooling: The pooling whose recordings are exported; None for windows.
        layer: The inner layer whose vectors are exported; None for the output of the model.
        where: An SQL condition over ``recordings.parquet``; other recordings are left out.
    """

    root: str
    pooling: str | None = None
    layer: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class ExportedRows:
    """The rows of an export, windows or recordings, in the order of the files' names and of the rows in each file.

    Attributes:
        noun: ``window`` or ``recording``.
        uris: The Parquet files.
        advice: What the user can do if a file is damaged, for messages.
        n: Number of rows.
        dim: Length of a vector.
        vectors: The column of vectors.
        other_columns: The columns beside the vectors.
        settings: Settings of the vectors.
        chosen: ``file_id`` of the recordings that are exported; None: all.
    """

    noun: str
    uris: list[str]
    advice: str
    n: int
    dim: int
    vectors: str
    other_columns: pa.Schema
    settings: dict[str, Any]
    chosen: NDArray[np.int64] | None = None

    def batches(self) -> Iterator[pa.Table]:
        """Yield the rows in batches: ``other_columns``, and the vectors as EMBEDDING.

        Raises:
            OSError: The storage failed.
            RequestError: A file is damaged.
            RunError: The number of rows has changed.
        """
        n, columns = 0, [*self.other_columns.names, self.vectors]
        for uri in self.uris:
            with refuse_damage(uri, self.advice), storage.open_stream(uri) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=columns):
                    check_values(uri, pa.table(batch))
                    rows = as_embedding(_add_times(pa.table(batch)).select(columns), self.vectors)
                    if self.chosen is not None:
                        rows = rows.filter(pa.array(np.isin(rows["file_id"].to_numpy(), self.chosen)))
                    yield rows.replace_schema_metadata(None)
                    n += len(rows)
        if n != self.n:
            raise RunError(f"there were {self.n:,} {self.noun}s, and now there are {n:,}: run the same command again")

    def files(self) -> list[str]:
        """Return the names of the recordings, in order."""
        recordings = pa.concat_tables(map_in_threads(_read_recordings, [(uri, self.advice) for uri in self.uris]))
        if self.chosen is not None:
            recordings = recordings.filter(pa.array(np.isin(recordings["file_id"].to_numpy(), self.chosen)))
        return sorted(recordings["file"].unique().to_pylist())


def find_rows(options: ExportOptions) -> ExportedRows:
    """Find the rows to export, and check that all files have the same columns.

    Raises:
        OSError: The storage failed.
        RequestError: There are no rows, a file is damaged, or each row is a list of vectors.
    """
    root = options.root
    if options.pooling is None:
        column = Store(root, "").column_of(options.layer)
        rows = _find_rows("window", storage.join(root, "embeddings"), column, EMBED_AGAIN)
        if rows is None:
            raise no_embeddings_error(root)
        return _restricted(rows, root, options.where)
    pooling = name_at_layer(options.pooling, options.layer)
    rows = _find_rows("recording", storage.join(root, POOLED_FOLDER, pooling), EMBEDDING, DERIVE_AGAIN)
    if rows is None:
        raise RequestError(f"--recordings: {root} holds no recordings/{pooling}: write them with jobs.pool")
    return _restricted(rows, root, options.where)


def _find_rows(noun: str, folder: str, column: str, advice: str) -> ExportedRows | None:
    """Return the rows in the files of a folder; None if there are no files."""
    uris = list(storage.list_names(folder, ".parquet"))
    footers = list(map_in_threads(_read_footer, [(uri, advice) for uri in uris]))
    if not footers:
        return None
    schema = footers[0][1]
    if noun == "window":
        for uri, (_, other) in zip(uris, footers, strict=True):
            refuse_other_columns(uri, other, column)
    elif not set(schema.names) >= {*RECORDING_COLUMNS.names, column}:
        raise RequestError(f"{uris[0]} is no file of jobs.pool, by its columns: move it elsewhere")
    vector = schema.field(column).type
    if not isinstance(vector, pa.FixedSizeListType):
        raise RequestError(f"--recordings: each row of {folder} is a list of vectors: export the windows instead")
    for uri, (_, other) in zip(uris, footers, strict=True):
        if other.field(column).type != vector:
            raise RequestError(f"{uri} holds vectors of another length than {uris[0]}: {advice}")
        if lacking := set(schema.names) - set(other.names):
            raise RequestError(f"{uri} lacks columns that {uris[0]} has ({', '.join(sorted(lacking))}): {advice}")
    with refuse_damage(uris[0], advice):
        settings = settings_of(uris[0], schema)
    other_columns = _add_times(schema.empty_table()).drop_columns(vector_columns(schema)).schema.remove_metadata()
    n = sum(n_rows for n_rows, _ in footers)
    return ExportedRows(noun, uris, advice, n, vector.list_size, column, other_columns, settings)


def _read_footer(uri: str, advice: str) -> tuple[int, pa.Schema]:
    """Return the number of rows of a file, and its columns."""
    with refuse_damage(uri, advice), storage.open_stream(uri, KEY_RANGE_BYTES) as stream:
        file = pq.ParquetFile(stream)
        return file.metadata.num_rows, file.schema_arrow


def _read_recordings(uri: str, advice: str) -> pa.Table:
    """Return ``file``, ``file_id`` and the number of rows ``n`` of each recording in a file."""
    with refuse_damage(uri, advice), storage.open_stream(uri, KEY_RANGE_BYTES) as stream:
        rows = pq.ParquetFile(stream).read(columns=["file", "file_id"], use_threads=False).replace_schema_metadata(None)
        check_values(uri, rows)
    counted = rows.group_by(["file", "file_id"]).aggregate([([], "count_all")])
    return counted.rename_columns(["file", "file_id", "n"])


def _restricted(rows: ExportedRows, root: str, where: str | None) -> ExportedRows:
    """Return the rows of the recordings for which a condition holds."""
    chosen = choose_recordings(root, where)
    if chosen is None:
        return rows
    counted = pa.concat_tables(map_in_threads(_read_recordings, [(uri, rows.advice) for uri in rows.uris]))
    is_chosen = np.isin(counted["file_id"].to_numpy(), chosen)
    n = int(counted["n"].to_numpy()[is_chosen].sum())
    if not n:
        raise RequestError(f"--where: no {rows.noun} of a recording that fulfils {where!r} is stored")
    return replace(rows, n=n, chosen=chosen)


def _add_times(rows: pa.Table) -> pa.Table:
    """Return the rows with ``start_time`` and ``end_time``; a recording begins at 0 s and ends with its audio."""
    if "start_time" in rows.column_names:
        return rows
    return rows.append_column("start_time", pa.array(np.zeros(len(rows)))).append_column("end_time", rows["duration"])
