"""NumPy: ``vectors.npy``, to be mapped into memory, and the columns beside it as Parquet, row for row."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding.exporting.exported_rows import Rows
from embedding.schema.vectors import EMBEDDING, matrix

VECTORS = "vectors.npy"


def write(rows: Rows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all ``batches`` of ``rows``."""
    # A plain stream: in a mapped file a full disk would be a signal that ends the process.
    with (
        (folder / VECTORS).open("wb") as vectors,
        pq.ParquetWriter(folder / f"{rows.noun}s.parquet", rows.beside, compression="zstd") as beside,
    ):
        shape = {"descr": "<f4", "fortran_order": False, "shape": (rows.n, rows.dim)}
        np.lib.format.write_array_header_2_0(vectors, shape)
        for batch in batches:
            vectors.write(matrix(batch[EMBEDDING]).astype("<f4", copy=False).data)
            beside.write_table(batch.drop_columns(EMBEDDING))


def read(rows: Rows, folder: Path) -> str:
    """Return a line that reads the export."""
    return f"numpy.load({str(folder / VECTORS)!r}, mmap_mode='r')"
