"""Tables that are read as they are used, a batch at a time, also through a condition in SQL."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from embedding import extras, storage
from embedding.output.shard_reading import open_shard
from embedding.where import condition_error, connect, refuse_several_statements

if TYPE_CHECKING:
    import pandas as pd

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class LazyTable:
    """Rows that are read when they are used, a batch at a time.

    Attributes:
        schema: The columns.
    """

    schema: pa.Schema
    _read: Callable[[], Iterable[pa.RecordBatch]] = field(repr=False)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches of some thousand."""
        yield from self._read()

    def to_arrow(self) -> pa.Table:
        """Return all rows as an Arrow table."""
        return pa.Table.from_batches(self._read(), self.schema)

    def to_pandas(self) -> "pd.DataFrame":
        """Return all rows as a pandas data frame."""
        return self.to_arrow().to_pandas()


def run_query(query: str, windows: pa.RecordBatchReader, recordings: pa.Table) -> pa.RecordBatchReader:
    """Run a query over two tables; rows are read as they are used.

    Raises:
        RequestError: The query makes no sense.
    """
    duckdb = extras.load("duckdb", "sql")
    connection = connect()
    connection.register("windows", windows)
    connection.register("recordings", recordings)
    try:
        refuse_several_statements(query, "where")
        return connection.sql(query).to_arrow_reader(_BATCH_ROWS)
    except duckdb.Error as error:
        names = dict.fromkeys([*windows.schema.names, *recordings.column_names])
        raise condition_error("where", error, list(names)) from error


def read_shards(shards: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of shards in batches.

    Raises:
        OSError: The storage failed.
        RequestError: A shard is damaged.
    """
    for uri in shards:
        with open_shard(uri) as shard:
            yield from shard.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False)


def read_files(files: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of other Parquet files in batches.

    Raises:
        OSError: The storage failed.
    """
    for uri in files:
        with storage.open_stream(uri) as stream:
            yield from pq.ParquetFile(stream).iter_batches(_BATCH_ROWS, use_threads=False)
