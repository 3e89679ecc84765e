"""LanceDB: a table with the column ``vector``, and for many rows an index of this column by cosine."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from embedding import extras
from embedding.errors import RunError
from embedding.exporting.exported_rows import ExportedRows

# The column that LanceDB searches by default.
COLUMN = "vector"
# Fewer rows have no index: they are searched in some tenths of a second, and an index takes a minute to make.
INDEX_ROWS = 100_000


def write(rows: ExportedRows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all rows.

    Args:
        rows: The rows.
        batches: Their batches.
        folder: The folder to write into.

    Raises:
        RequestError: LanceDB is not installed.
        RunError: LanceDB failed.
    """
    lancedb, index = extras.load("lancedb", "lancedb"), extras.load("lancedb.index", "lancedb")
    schema = pa.schema([*rows.other_columns, (COLUMN, pa.list_(pa.float32(), rows.dim))])
    failures: list[Exception] = []

    def records() -> Iterator[pa.RecordBatch]:
        try:
            for batch in batches:
                yield from batch.rename_columns(schema.names).cast(schema).to_batches()
        except Exception as error:
            failures.append(error)  # LanceDB replaces the error with its own
            raise

    try:
        database = lancedb.connect(folder)
        table = database.create_table(f"{rows.noun}s", data=pa.RecordBatchReader.from_batches(schema, records()))
        if rows.n >= INDEX_ROWS:
            table.create_index(COLUMN, config=index.IvfPq(distance_type="cosine"))
    except RuntimeError as error:
        reason = str(error).partition(" Detail: ")[0]  # a traceback follows
        raise failures[0] if failures else RunError(f"LanceDB failed: {reason}") from error


def reading_line(rows: ExportedRows, folder: Path) -> str:
    """Return a line of Python that reads the export."""
    index = "an index by cosine" if rows.n >= INDEX_ROWS else f"no index: fewer than {INDEX_ROWS:,} rows"
    return f"lancedb.connect({str(folder)!r}).open_table('{rows.noun}s')  # {index}"
