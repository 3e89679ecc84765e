"""Rows to export: vectors with the columns beside them, some thousand at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding import storage
from embedding.config import name_at_layer
from embedding.errors import RequestError, RunError
from embedding.output.inventory import KEY_RANGE_BYTES, map_in_threads
from embedding.output.shard_reading import no_embeddings_error, refuse_damage, refuse_other_columns
from embedding.output.shard_schema import EMBED_AGAIN, check_values, settings_of
from embedding.output.store import Store
from embedding.pooling.partial_tables import RECORDING
from embedding.pooling.pooled_output import DELETE_POOLED, FOLDER
from embedding.schema.vectors import EMBEDDING, as_embedding, vector_columns

# 25 MB, with vectors of 768 numbers.
BATCH_ROWS = 8192


@dataclass(frozen=True)
class Wanted:
    """The options: of the output ``root`` the windows, or the recordings as ``pooling`` has them."""

    root: str
    pooling: str | None = None
    layer: str | None = None  # an inner one; None: what the model ends in


@dataclass(frozen=True)
class Rows:
    """Windows, or recordings, in the order of their files' names and of the rows in them."""

    noun: str
    uris: list[str]
    way_out: str  # of damage
    n: int
    dim: int
    vectors: str  # the column they are in
    beside: pa.Schema  # columns, without vectors
    settings: dict[str, Any]  # of the vectors

    def batches(self) -> Iterator[pa.Table]:
        """The columns of ``beside``, and the vectors as EMBEDDING.

        Raises:
            RequestError: a file is damaged.
            RunError: there are more or fewer rows than a moment ago.
        """
        n, columns = 0, [*self.beside.names, self.vectors]
        for uri in self.uris:
            with refuse_damage(uri, self.way_out), storage.open_stream(uri) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=columns):
                    check_values(uri, pa.table(batch))
                    table = as_embedding(_with_times(pa.table(batch)).select(columns), self.vectors)
                    yield table.replace_schema_metadata(None)
                    n += len(table)
        if n != self.n:
            raise RunError(f"there were {self.n:,} {self.noun}s, and now there are {n:,}: run the same command again")

    def files(self) -> list[str]:
        """The recordings, in order."""
        return sorted(set().union(*map_in_threads(_files, [(uri, self.way_out) for uri in self.uris])))


def rows_of(wanted: Wanted) -> Rows:
    """All there are.

    Raises:
        RequestError: there are none, or each is a list of vectors.
    """
    if wanted.pooling is None:
        return _windows(wanted.root, wanted.layer)
    return _recordings(wanted.root, name_at_layer(wanted.pooling, wanted.layer))


def _windows(root: str, layer: str | None) -> Rows:
    rows = _rows("window", storage.join(root, "embeddings"), Store(root, "").column_of(layer), EMBED_AGAIN)
    if rows is None:
        raise no_embeddings_error(root)
    return rows


def _recordings(root: str, pooling: str) -> Rows:
    """Each begins at 0 s and ends with its audio."""
    rows = _rows("recording", storage.join(root, FOLDER, pooling), EMBEDDING, DELETE_POOLED)
    if rows is None:
        raise RequestError(f"--recordings: {root} holds no recordings/{pooling}: write them with jobs.pool")
    return rows


def _rows(noun: str, folder: str, column: str, way_out: str) -> Rows | None:
    uris = list(storage.list_names(folder, ".parquet"))
    shapes = list(map_in_threads(_shape, [(uri, way_out) for uri in uris]))
    if not shapes:
        return None
    schema = shapes[0][1]
    if noun == "window":
        for uri, (_, other) in zip(uris, shapes, strict=True):
            refuse_other_columns(uri, other, column)
    elif not set(schema.names) >= {*RECORDING.names, column}:
        raise RequestError(f"{uris[0]} is no file of jobs.pool, by its columns: move it elsewhere")
    vector = schema.field(column).type
    if not isinstance(vector, pa.FixedSizeListType):
        raise RequestError(f"--recordings: each row of {folder} is a list of vectors: export the windows instead")
    for uri, (_, other) in zip(uris, shapes, strict=True):
        if other.field(column).type != vector:
            raise RequestError(f"{uri} holds vectors of another length than {uris[0]}: {way_out}")
        if lacking := set(schema.names) - set(other.names):
            raise RequestError(f"{uri} lacks columns that {uris[0]} has ({', '.join(sorted(lacking))}): {way_out}")
    with refuse_damage(uris[0], way_out):
        settings = settings_of(uris[0], schema)
    beside = _with_times(schema.empty_table()).drop_columns(vector_columns(schema)).schema.remove_metadata()
    return Rows(noun, uris, way_out, sum(n for n, _ in shapes), vector.list_size, column, beside, settings)


def _shape(uri: str, way_out: str) -> tuple[int, pa.Schema]:
    with refuse_damage(uri, way_out), storage.open_stream(uri, KEY_RANGE_BYTES) as stream:
        file = pq.ParquetFile(stream)
        return file.metadata.num_rows, file.schema_arrow


def _files(uri: str, way_out: str) -> list[str]:
    with refuse_damage(uri, way_out), storage.open_stream(uri, KEY_RANGE_BYTES) as stream:
        return pq.ParquetFile(stream).read(columns=["file"], use_threads=False)["file"].unique().to_pylist()


def _with_times(rows: pa.Table) -> pa.Table:
    """With ``start_time`` and ``end_time``, which recordings have not."""
    if "start_time" in rows.column_names:
        return rows
    return rows.append_column("start_time", pa.array(np.zeros(len(rows)))).append_column("end_time", rows["duration"])
