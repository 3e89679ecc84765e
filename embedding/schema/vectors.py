"""Vectors as columns of fixed-size lists, and conversions to arrays and back without a copy."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# The column with the output of a model; columns of inner layers have the names of the layers.
EMBEDDING = "embedding"


def vector_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that hold vectors."""
    return [field.name for field in schema if pa.types.is_fixed_size_list(field.type) and _is_float32(field.type)]


def _is_float32(vector: pa.FixedSizeListType) -> bool:
    return vector.value_type == pa.float32()


def count_missing(column: pa.ChunkedArray) -> int:
    """Return the number of vectors and of numbers in vectors that are missing; 0 for a column without vectors."""
    if not pa.types.is_fixed_size_list(column.type):
        return 0
    return column.null_count + sum(chunk.flatten().null_count for chunk in column.chunks)


def as_embedding(windows: pa.Table, column: str) -> pa.Table:
    """Return the windows with their vectors under the name EMBEDDING.

    Args:
        windows: The windows.
        column: Name of the column of vectors, for example of an inner layer.

    Raises:
        pa.ArrowInvalid: A vector or a number in a vector is missing.
    """
    if count_missing(windows[column]):
        raise pa.ArrowInvalid(f"values of {column!r} are missing")
    return windows if column == EMBEDDING else windows.rename_columns({column: EMBEDDING})


def matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of vectors as an array ``[rows, length]``, without a copy where the column is one chunk.

    Raises:
        pa.ArrowInvalid: A vector or a number in a vector is missing.
    """
    if count_missing(column):
        raise pa.ArrowInvalid("values of a vector are missing")
    whole = column.combine_chunks()
    return whole.flatten().to_numpy().reshape(len(whole), whole.type.list_size)


def finite_matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of vectors as an array ``[rows, length]``.

    Raises:
        pa.ArrowInvalid: A number is missing, infinite or none.
    """
    vectors = matrix(column)
    if not np.isfinite(vectors).all():
        raise pa.ArrowInvalid("vectors are not finite")
    return vectors


def column(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """Return an array ``[rows, length]`` as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
