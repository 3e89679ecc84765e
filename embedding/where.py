"""A choice of recordings by an SQL condition over ``recordings.parquet``: ``hour(recorded_at) between 4 and 8``."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding import extras
from embedding.errors import RequestError
from embedding.output.recordings_table import read_recordings
from embedding.output.store import Store


def choose_recordings(root: str, where: str | None, option: str = "--where") -> NDArray[np.int64] | None:
    """Return the ``file_id`` of the recordings for which a condition holds, sorted.

    Args:
        root: Directory or prefix of the output.
        where: An SQL condition (DuckDB's) over the columns of ``recordings.parquet``; None: no condition.
        option: Name of the option, for messages.

    Returns:
        None without a condition.

    Raises:
        OSError: The storage failed.
        RequestError: The condition makes no sense, or holds for no recording.
    """
    if where is None:
        return None
    extras.refuse_missing(("duckdb",), "sql", option)  # before the table is read
    return choose_rows(read_recordings(Store(root, "")), root, where, option)


def choose_rows(recordings: pa.Table, root: str, where: str, option: str = "--where") -> NDArray[np.int64]:
    """Return the ``file_id`` of the rows of a table for which a condition holds, sorted.

    Args:
        recordings: The table of recordings.
        root: The output, for messages.
        where: An SQL condition (DuckDB's).
        option: Name of the option, for messages.

    Raises:
        RequestError: The condition makes no sense, or holds for no recording.
    """
    duckdb = extras.load("duckdb", "sql")
    connection = connect()
    connection.register("recordings", recordings)
    # The line break ends a comment at the end of the condition.
    query = f"select file_id from recordings where ({where}\n)"
    try:
        refuse_several_statements(query, option)
        chosen = connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        raise condition_error(option, error, recordings.column_names) from error
    # A condition with a union in it may return anything.
    ids = np.intersect1d(chosen.column(0).to_numpy(), recordings["file_id"].to_numpy())
    if not len(ids):
        raise RequestError(f"{option}: no recording of {root} fulfils {where!r}")
    return ids.astype(np.int64)


def refuse_several_statements(query: str, option: str) -> None:
    """Refuse a condition that ends the query and begins another one.

    Raises:
        duckdb.Error: The query makes no sense.
        RequestError: There are several statements.
    """
    if len(extras.load("duckdb", "sql").extract_statements(query)) != 1:
        raise RequestError(f"{option}: give one condition, without semicolons")


def connect() -> Any:
    """Return a connection to an empty database in memory that reads and writes no files."""
    return extras.load("duckdb", "sql").connect(config={"enable_external_access": "false"})


def condition_error(option: str, error: Exception, columns: list[str]) -> RequestError:
    """Return the error for a condition that makes no sense; it names the columns that there are."""
    reason = str(error).splitlines()[0]
    return RequestError(f"{option}: {reason}; there are the columns {', '.join(columns)}")
