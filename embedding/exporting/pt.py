"""PyTorch: one dictionary of tensors, ``windows.pt``, that ``torch.load`` reads without unpickling anything else."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from embedding.exporting.rows import VECTOR, Rows
from embedding.vectors import matrix

# Of the list ``files``, which file a row is of.
INDEX = "file_index"


def write(rows: Rows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all ``batches`` of ``rows``.

    Vectors, those of inner layers too, go through files that are mapped into memory, so that memory holds the other
    columns only.
    """
    lengths = {VECTOR: rows.dim} | {each.name: each.type.list_size for each in rows.beside if _is_vector(each.type)}
    texts: dict[str, list[Any]] = {each.name: [] for each in rows.beside if _is_text(each.type)}
    others = [name for name in [*rows.beside.names, INDEX] if name not in {"file", *lengths, *texts}]
    columns: dict[str, list[np.ndarray]] = {name: [] for name in others}
    raw, files = {name: folder / f"raw-{at}" for at, name in enumerate(lengths)}, {}
    with ExitStack() as stack:
        streams = {name: stack.enter_context(path.open("wb")) for name, path in raw.items()}
        for batch in batches:
            names = batch["file"].combine_chunks().dictionary_encode()
            numbers = [files.setdefault(name, len(files)) for name in names.dictionary.to_pylist()]
            index = np.array(numbers, np.int64)[names.indices.to_numpy()]
            table = batch.append_column(INDEX, pa.array(index))
            for name, stream in streams.items():
                stream.write(matrix(table[name]).data)
            for name, parts in texts.items():
                parts.extend(table[name].to_pylist())
            for name, parts in columns.items():
                parts.append(_numbers(table[name]))
    tensors = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items()}
    for name, length in lengths.items():
        flat = torch.from_file(str(raw[name]), size=rows.n * length, dtype=torch.float32)
        tensors[name] = flat.view(rows.n, length)
    torch.save({**tensors, **texts, "files": list(files)}, folder / f"{rows.noun}s.pt")
    for path in raw.values():
        path.unlink()


def _is_vector(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.FixedSizeListType)


def _is_text(kind: pa.DataType) -> bool:
    """Labels: a list of them for each row."""
    return isinstance(kind, pa.ListType) and pa.types.is_string(kind.value_type)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """``[rows]``, or ``[rows, length]`` of lists, which have one length; a copy, as Arrow's own would keep all of the
    batch alive."""
    if not isinstance(column.type, pa.ListType):
        return column.to_numpy().copy()
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1).copy()


def read(rows: Rows, folder: Path) -> str:
    """How to read it."""
    return f"torch.load({str(folder / f'{rows.noun}s.pt')!r}, weights_only=True, mmap=True)"
