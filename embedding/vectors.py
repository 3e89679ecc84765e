"""Columns of fixed-size lists as arrays, and back, without a copy."""

from typing import Any

import pyarrow as pa
from numpy.typing import NDArray


def matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """``[rows, length]``, without a copy where the column is one chunk."""
    whole = column.combine_chunks()
    return whole.flatten().to_numpy().reshape(len(whole), whole.type.list_size)


def column(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """``[rows, length]`` as lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
