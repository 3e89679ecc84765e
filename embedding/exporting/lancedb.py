"""LanceDB: a table with the column ``vector``, and with an index of it by cosine where there are many rows."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from embedding import extras
from embedding.errors import RunError
from embedding.exporting.exported_rows import Rows

# The column that LanceDB looks for.
COLUMN = "vector"
# Fewer are searched without one in some tenths of a second, and it takes a minute to make.
INDEX_ROWS = 100_000


def write(rows: Rows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all ``batches`` of ``rows``.

    Raises:
        RequestError: LanceDB is not installed.
        RunError: it failed.
    """
    lancedb, index = extras.load("lancedb", "lancedb"), extras.load("lancedb.index", "lancedb")
    schema = pa.schema([*rows.beside, (COLUMN, pa.list_(pa.float32(), rows.dim))])
    failures: list[Exception] = []

    def records() -> Iterator[pa.RecordBatch]:
        try:
            for batch in batches:
                yield from batch.rename_columns(schema.names).cast(schema).to_batches()
        except Exception as error:
            failures.append(error)
            raise

    try:
        database = lancedb.connect(folder)
        table = database.create_table(f"{rows.noun}s", data=pa.RecordBatchReader.from_batches(schema, records()))
        if rows.n >= INDEX_ROWS:
            table.create_index(COLUMN, config=index.IvfPq(distance_type="cosine"))
    except RuntimeError as error:  # LanceDB's own
        said = str(error).partition(" Detail: ")[0]  # behind it comes a traceback
        raise failures[0] if failures else RunError(f"LanceDB failed: {said}") from error


def read(rows: Rows, folder: Path) -> str:
    """Return a line that reads the export."""
    index = "an index by cosine" if rows.n >= INDEX_ROWS else f"no index: fewer than {INDEX_ROWS:,} rows"
    return f"lancedb.connect({str(folder)!r}).open_table('{rows.noun}s')  # {index}"
