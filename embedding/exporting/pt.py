"""PyTorch: one dictionary of tensors, ``windows.pt``, that ``torch.load`` reads without unpickling anything else."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from embedding.exporting.rows import VECTOR, Rows
from embedding.vectors import matrix

# Of the list ``files``, which file a row is of.
INDEX = "file_index"
# The only other column of texts, where there are predictions.
LABELS = "labels"


def write(rows: Rows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all ``batches`` of ``rows``.

    The vectors, those of inner layers, too, go through files that are mapped into memory, so that memory holds the
    other columns only. Labels stay lists of texts.
    """
    dims = {VECTOR: rows.dim}
    dims |= {each.name: each.type.list_size for each in rows.beside if pa.types.is_fixed_size_list(each.type)}
    raw = {name: folder / f"{name}.raw" for name in dims}
    files: dict[str, int] = {}
    labels: list[list[str]] = []
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in [*rows.beside.names, INDEX] if name not in {"file", LABELS, *dims}
    }
    with ExitStack() as stack:
        streams = {name: stack.enter_context(path.open("wb")) for name, path in raw.items()}
        for batch in batches:
            for name, stream in streams.items():
                stream.write(matrix(batch[name]).data)
            if LABELS in batch.column_names:
                labels += batch[LABELS].to_pylist()
            names = batch["file"].combine_chunks().dictionary_encode()
            numbers = [files.setdefault(name, len(files)) for name in names.dictionary.to_pylist()]
            index = np.array(numbers, np.int64)[names.indices.to_numpy()]
            table = batch.append_column(INDEX, pa.array(index))
            for name, parts in columns.items():
                parts.append(_numbers(table[name]).copy())  # a part of Arrow's own would keep the vectors alive
    tensors = {
        name: torch.from_file(str(raw[name]), size=rows.n * dim, dtype=torch.float32).view(rows.n, dim)
        for name, dim in dims.items()
    }
    tensors |= {name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items()}
    texts = {"files": list(files)} | ({LABELS: labels} if labels else {})
    torch.save(tensors | texts, folder / f"{rows.noun}s.pt")
    for path in raw.values():
        path.unlink()


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """``[rows]``, or of scores, of which each row has as many, ``[rows, k]``."""
    if not pa.types.is_list(column.type):
        return column.to_numpy()
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)


def read(rows: Rows, folder: Path) -> str:
    """How to read it."""
    return f"torch.load({str(folder / f'{rows.noun}s.pt')!r}, weights_only=True, mmap=True)"
