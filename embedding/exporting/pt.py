"""PyTorch: one dictionary of tensors, ``windows.pt``, that ``torch.load`` reads without unpickling anything else."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from embedding.exporting.exported_rows import Rows
from embedding.schema.vectors import EMBEDDING, matrix

# Of the list ``files``, which file a row is of.
INDEX = "file_index"


def write(rows: Rows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all ``batches`` of ``rows``.

    The vectors go through a file that is mapped into memory, so that memory holds the other columns only.
    """
    raw, files = folder / "raw", {}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in [*rows.beside.names, INDEX] if name != "file"}
    with raw.open("wb") as stream:
        for batch in batches:
            stream.write(matrix(batch[EMBEDDING]).data)
            names = batch["file"].combine_chunks().dictionary_encode()
            numbers = [files.setdefault(name, len(files)) for name in names.dictionary.to_pylist()]
            index = np.array(numbers, np.int64)[names.indices.to_numpy()]
            table = batch.append_column(INDEX, pa.array(index))
            for name, parts in columns.items():
                parts.append(_array(table[name].combine_chunks()))
    vectors = torch.from_file(str(raw), size=rows.n * rows.dim, dtype=torch.float32).view(rows.n, rows.dim)
    beside = {name: _tensor(np.concatenate(parts)) for name, parts in columns.items()}
    # Into an open file: a full disk is an OSError then, and of a name a RuntimeError about positions.
    with (folder / f"{rows.noun}s.pt").open("wb") as stream:
        torch.save({EMBEDDING: vectors, **beside, "files": list(files)}, stream)
    raw.unlink()


def _array(column: pa.Array) -> np.ndarray:
    """Return a column as an array ``[rows]``; a column of lists, as predictions are, as ``[rows, K]``.

    The array is a copy: a view of Arrow's memory would keep the vectors in memory, too.
    """
    if isinstance(column, pa.ListArray):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).copy()
    return column.to_numpy().copy()


def _tensor(values: np.ndarray) -> Any:
    """Return numbers as a tensor, and text as a list."""
    return values.tolist() if values.dtype == object else torch.from_numpy(values)


def read(rows: Rows, folder: Path) -> str:
    """Return a line that reads the export."""
    return f"torch.load({str(folder / f'{rows.noun}s.pt')!r}, weights_only=True, mmap=True)"
