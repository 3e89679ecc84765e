"""Vectors as columns of fixed-size lists: which columns those are; as arrays, and back, without a copy."""

from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

# The column with what a model ends in; those of inner layers have the layers' names.
EMBEDDING = "embedding"


def vector_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_fixed_size_list(field.type) and _is_float32(field.type)]


def _is_float32(vector: pa.FixedSizeListType) -> bool:
    return vector.value_type == pa.float32()


def count_missing(column: pa.ChunkedArray) -> int:
    """Return how many vectors of a column, or numbers in them, are missing; 0 of a column without vectors."""
    if not pa.types.is_fixed_size_list(column.type):
        return 0
    return column.null_count + sum(chunk.flatten().null_count for chunk in column.chunks)


def as_embedding(windows: pa.Table, column: str) -> pa.Table:
    """With the vectors in ``column`` under the name of those that a model ends in.

    Raises:
        pa.ArrowInvalid: a vector is missing, or a number in one.
    """
    if count_missing(windows[column]):
        raise pa.ArrowInvalid(f"values of {column!r} are missing")
    return windows if column == EMBEDDING else windows.rename_columns({column: EMBEDDING})


def matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """``[rows, length]``, without a copy where the column is one chunk.

    Raises:
        pa.ArrowInvalid: a vector is missing, or a number in one.
    """
    if count_missing(column):
        raise pa.ArrowInvalid("values of a vector are missing")
    whole = column.combine_chunks()
    return whole.flatten().to_numpy().reshape(len(whole), whole.type.list_size)


def column(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """``[rows, length]`` as lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
