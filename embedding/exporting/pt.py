"""PyTorch: one dictionary of tensors, ``windows.pt``, that ``torch.load`` reads without unpickling anything else."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from embedding.exporting.rows import VECTOR, Rows
from embedding.vectors import matrix

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
            stream.write(matrix(batch[VECTOR]).data)
            names = batch["file"].combine_chunks().dictionary_encode()
            numbers = [files.setdefault(name, len(files)) for name in names.dictionary.to_pylist()]
            index = np.array(numbers, np.int64)[names.indices.to_numpy()]
            table = batch.append_column(INDEX, pa.array(index))
            for name, parts in columns.items():
                parts.append(table[name].to_numpy().copy())  # a part of Arrow's own would keep the vectors alive
    vectors = torch.from_file(str(raw), size=rows.n * rows.dim, dtype=torch.float32).view(rows.n, rows.dim)
    tensors = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items()}
    torch.save({VECTOR: vectors, **tensors, "files": list(files)}, folder / f"{rows.noun}s.pt")
    raw.unlink()


def read(rows: Rows, folder: Path) -> str:
    """How to read it."""
    return f"torch.load({str(folder / f'{rows.noun}s.pt')!r}, weights_only=True, mmap=True)"
