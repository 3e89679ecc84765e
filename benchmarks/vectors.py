"""Comparison of the vectors of two outputs, so that a benchmark compares only programs with equal results."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

TOLERANCE = 1e-4  # in fp32
KEY = ["file", "window_index"]


def read(output: Path) -> tuple[pa.Table, NDArray[np.float32]]:
    """Return keys and vectors, sorted by key, of an output of the job, a Parquet file or a folder of Parquet files."""
    if output.is_file():
        files = [output]
    else:
        folder = output / "embeddings" if (output / "embeddings").is_dir() else output
        files = sorted(folder.glob("*.parquet"))
    tables = [pq.ParquetFile(file).read(columns=[*KEY, "embedding"]) for file in files]
    keys = pa.concat_tables(
        [table.select(KEY).cast(pa.schema([(KEY[0], pa.string()), (KEY[1], pa.int64())])) for table in tables]
    )
    vectors = np.concatenate([_matrix(table) for table in tables])
    order = np.lexsort((keys[KEY[1]].to_numpy(), np.array(keys[KEY[0]].to_pylist())))
    return keys.take(order), vectors[order]


def _matrix(table: pa.Table) -> NDArray[np.float32]:
    column = table["embedding"].combine_chunks()
    if isinstance(column, pa.ExtensionArray):  # Ray's tensors
        column = column.storage
    return np.asarray(column.flatten(), dtype=np.float32).reshape(len(table), -1)


def relative_error(output: Path, reference: Path) -> float:
    """Return the largest relative error of a window's vector.

    Raises:
        ValueError: The outputs have different windows.
    """
    keys, vectors = read(output)
    expected_keys, expected = read(reference)
    if keys != expected_keys or vectors.shape != expected.shape:
        raise ValueError(
            f"{output.name} and {reference.name} have different windows: {len(keys)} and {len(expected_keys)}"
        )
    error = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(error.max())


def checked_error(output: Path, reference: Path, tolerance: float = TOLERANCE) -> float:
    """Return the relative error.

    Raises:
        ValueError: The error is above ``tolerance``, or the outputs have different windows.
    """
    error = relative_error(output, reference)
    if not error <= tolerance:
        raise ValueError(f"{output.name}: vectors differ from {reference.name}'s by {error:.1e}, more than {tolerance}")
    return error
