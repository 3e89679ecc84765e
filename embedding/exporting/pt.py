"""PyTorch: a dictionary of tensors, ``windows.pt``, which ``torch.load`` reads without running code from the file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from embedding.exporting.exported_rows import ExportedRows
from embedding.schema.vectors import EMBEDDING, matrix

# The tensor with each row's index in the list `files`.
FILE_INDEX = "file_index"


def write(rows: ExportedRows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all rows.

    The vectors go through a file that is mapped into memory, so that memory holds only the other columns.

    Args:
        rows: The rows.
        batches: Their batches.
        folder: The folder to write into.
    """
    raw, files = folder / "raw", {}
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in [*rows.other_columns.names, FILE_INDEX] if name != "file"
    }
    with raw.open("wb") as stream:
        for batch in batches:
            stream.write(matrix(batch[EMBEDDING]).data)
            names = batch["file"].combine_chunks().dictionary_encode()
            numbers = [files.setdefault(name, len(files)) for name in names.dictionary.to_pylist()]
            file_index = np.array(numbers, np.int64)[names.indices.to_numpy()]
            table = batch.append_column(FILE_INDEX, pa.array(file_index))
            for name, arrays in columns.items():
                arrays.append(_as_array(table[name].combine_chunks()))
    vectors = torch.from_file(str(raw), size=rows.n * rows.dim, dtype=torch.float32).view(rows.n, rows.dim)
    others = {name: _as_tensor(np.concatenate(arrays)) for name, arrays in columns.items()}
    # Into an open file: a full disk is an OSError then; with a file name it is a RuntimeError about positions.
    with (folder / f"{rows.noun}s.pt").open("wb") as stream:
        torch.save({EMBEDDING: vectors, **others, "files": list(files)}, stream)
    raw.unlink()


def _as_array(column: pa.Array) -> np.ndarray:
    """Return a column as an array ``[rows]``; a column of lists, as predictions are, as ``[rows, K]``.

    The array is a copy: a view of Arrow's memory would keep the vectors in memory, too.
    """
    if isinstance(column, pa.ListArray):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).copy()
    return column.to_numpy().copy()


def _as_tensor(values: np.ndarray) -> Any:
    """Return numbers as a tensor, and text as a list."""
    return values.tolist() if values.dtype == object else torch.from_numpy(values)


def reading_line(rows: ExportedRows, folder: Path) -> str:
    """Return a line of Python that reads the export."""
    return f"torch.load({str(folder / f'{rows.noun}s.pt')!r}, weights_only=True, mmap=True)"
