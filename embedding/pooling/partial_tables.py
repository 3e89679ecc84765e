"""Partial results of recordings as Arrow tables: made from windows, merged, and pooled to one row per recording.

A partial result is a row with RECORDING_COLUMNS and, for sequences, the lists ``index`` and ``vectors`` of the windows;
for other poolings it has the columns of PartialSums.
"""

import numpy as np
import pyarrow as pa

from embedding.pooling.partial_sums import (
    SEQUENCE,
    PartialSums,
    merge_sums,
    pool_sums,
    recording_starts,
    sum_windows,
)
from embedding.schema.vectors import column, matrix

# Columns of a recording; they are the same in each of its windows.
RECORDING_COLUMNS = pa.schema(
    [
        ("file", pa.string()),
        ("file_id", pa.int64()),
        ("n_windows", pa.int32()),
        ("duration", pa.float64()),
        ("sample_rate", pa.int32()),
        ("channels", pa.int32()),
    ]
)
# Columns to read from a shard, beside the vectors.
SHARD_COLUMNS = [*RECORDING_COLUMNS.names, "window_index"]


def make_partials(windows: pa.Table, poolings: tuple[str, ...]) -> pa.Table:
    """Return a partial result for each recording in ``windows``.

    Args:
        windows: SHARD_COLUMNS and ``embedding``, in any order.
        poolings: Names of poolings.
    """
    order = np.lexsort((windows["window_index"].to_numpy(), windows["file_id"].to_numpy()))
    windows = windows.take(pa.array(order)).combine_chunks()
    file_id = windows["file_id"].to_numpy()
    start = recording_starts(file_id)
    recordings = windows.select(RECORDING_COLUMNS.names).take(pa.array(start))
    if poolings == (SEQUENCE,):
        offsets = pa.array([*start, len(windows)], pa.int32())
        index, vectors = (windows[name].combine_chunks() for name in ("window_index", "embedding"))
        return recordings.append_column("index", pa.ListArray.from_arrays(offsets, index)).append_column(
            "vectors", pa.ListArray.from_arrays(offsets, vectors)
        )
    return _append_sums(recordings, sum_windows(file_id, matrix(windows["embedding"])))


def merge_partials(partials: pa.Table, poolings: tuple[str, ...]) -> pa.Table:
    """Merge the partial results of each recording to one row."""
    if poolings == (SEQUENCE,):  # back to windows: there is no cheaper way to put lists of lists in order
        index, vectors = (partials[name].combine_chunks() for name in ("index", "vectors"))
        row_of_window = pa.array(np.repeat(np.arange(len(partials)), index.value_lengths().to_numpy()))
        windows = partials.select(RECORDING_COLUMNS.names).take(row_of_window)
        windows = windows.append_column("window_index", index.flatten()).append_column("embedding", vectors.flatten())
        return make_partials(windows, poolings)
    file_id = partials["file_id"].to_numpy()
    order = np.argsort(file_id, kind="stable")
    first_rows = pa.array(order[recording_starts(file_id[order])])
    recordings = partials.select(RECORDING_COLUMNS.names).take(first_rows)
    return _append_sums(recordings, merge_sums(_read_sums(partials)))


def pool_partials(partials: pa.Table, poolings: tuple[str, ...]) -> pa.Table:
    """Return the pooled rows of recordings.

    Args:
        partials: One row per recording, over all of its windows.
        poolings: Names of poolings.

    Returns:
        RECORDING_COLUMNS and ``embedding``.
    """
    recordings = partials.select(RECORDING_COLUMNS.names).cast(RECORDING_COLUMNS)
    if poolings == (SEQUENCE,):
        return recordings.append_column("embedding", partials["vectors"])
    return recordings.append_column("embedding", column(pool_sums(_read_sums(partials), poolings)))


def _append_sums(recordings: pa.Table, sums: PartialSums) -> pa.Table:
    table = recordings.append_column("n", pa.array(sums.n))
    for name in ("mean", "spread", "max"):
        table = table.append_column(name, column(getattr(sums, name)))
    return table


def _read_sums(partials: pa.Table) -> PartialSums:
    mean, spread, maxima = (matrix(partials[name]) for name in ("mean", "spread", "max"))
    return PartialSums(partials["file_id"].to_numpy(), partials["n"].to_numpy(), mean, spread, maxima)
