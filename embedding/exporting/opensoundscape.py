"""opensoundscape: ``embeddings.csv`` as ``CNN.embed(…).to_csv(…)`` would be, a row per clip, a column per dimension."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from embedding.exporting.exported_rows import Rows
from embedding.schema.vectors import EMBEDDING, matrix

TABLE = "embeddings.csv"
INDEX = ["file", "start_time", "end_time"]


def write(rows: Rows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all ``batches`` of ``rows``."""
    names = [str(at) for at in range(rows.dim)]
    schema = pa.schema([*((name, pa.string()) for name in INDEX), *((name, pa.float32()) for name in names)])
    with pyarrow.csv.CSVWriter(folder / TABLE, schema) as file:
        for batch in batches:
            vectors = matrix(batch[EMBEDDING]).T.copy()
            index = [pa.array(map(str, batch[name].to_pylist())) for name in INDEX]  # 5.0, where Arrow would write 5
            file.write_table(pa.table([*index, *map(pa.array, vectors)], schema=schema))


def read(rows: Rows, folder: Path) -> str:
    """Return a line that reads the export."""
    return f"pandas.read_csv({str(folder / TABLE)!r}, index_col=[0, 1, 2])"
