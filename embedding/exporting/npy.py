"""NumPy: ``vectors.npy``, which can be mapped into memory, and the other columns as Parquet, row for row."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding.exporting.exported_rows import ExportedRows
from embedding.schema.vectors import EMBEDDING, matrix

VECTORS_NAME = "vectors.npy"


def write(rows: ExportedRows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all rows.

    Args:
        rows: The rows.
        batches: Their batches.
        folder: The folder to write into.
    """
    # A plain stream: with a file mapped into memory, a full disk would end the process with a signal.
    with (
        (folder / VECTORS_NAME).open("wb") as vectors,
        pq.ParquetWriter(folder / f"{rows.noun}s.parquet", rows.other_columns, compression="zstd") as other_columns,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows.n, rows.dim)}
        np.lib.format.write_array_header_2_0(vectors, header)
        for batch in batches:
            vectors.write(matrix(batch[EMBEDDING]).astype("<f4", copy=False).data)
            other_columns.write_table(batch.drop_columns(EMBEDDING))


def reading_line(rows: ExportedRows, folder: Path) -> str:
    """Return a line of Python that reads the export."""
    return f"numpy.load({str(folder / VECTORS_NAME)!r}, mmap_mode='r')"
