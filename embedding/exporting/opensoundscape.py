"""opensoundscape: ``embeddings.csv`` as ``CNN.embed(…).to_csv(…)`` writes it: rows are clips, columns dimensions."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from embedding.exporting.exported_rows import ExportedRows
from embedding.schema.vectors import EMBEDDING, matrix

TABLE_NAME = "embeddings.csv"
INDEX = ["file", "start_time", "end_time"]


def write(rows: ExportedRows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all rows.

    Args:
        rows: The rows.
        batches: Their batches.
        folder: The folder to write into.
    """
    dimensions = [str(number) for number in range(rows.dim)]
    schema = pa.schema([*((name, pa.string()) for name in INDEX), *((name, pa.float32()) for name in dimensions)])
    with pyarrow.csv.CSVWriter(folder / TABLE_NAME, schema) as file:
        for batch in batches:
            vectors = matrix(batch[EMBEDDING]).T.copy()
            index = [pa.array(map(str, batch[name].to_pylist())) for name in INDEX]  # 5.0, where Arrow would write 5
            file.write_table(pa.table([*index, *map(pa.array, vectors)], schema=schema))


def reading_line(rows: ExportedRows, folder: Path) -> str:
    """Return a line of Python that reads the export."""
    return f"pandas.read_csv({str(folder / TABLE_NAME)!r}, index_col=[0, 1, 2])"
