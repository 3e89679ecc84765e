"""The same as Arrow tables: windows to parts of recordings, parts to recordings."""

import numpy as np
import pyarrow as pa

from embedding.pooling.partial_sums import SEQUENCE, Parts, merge, parts_of, pooled, starts
from embedding.schema.vectors import column, matrix

# Of the recording; the same in each of its windows.
RECORDING = pa.schema(
    [
        ("file", pa.string()),
        ("file_id", pa.int64()),
        ("n_windows", pa.int32()),
        ("duration", pa.float64()),
        ("sample_rate", pa.int32()),
        ("channels", pa.int32()),
    ]
)
# What has to be read of a shard, and its vectors.
COLUMNS = [*RECORDING.names, "window_index"]


def parts_of_windows(windows: pa.Table, poolings: tuple[str, ...]) -> pa.Table:
    """Return a part for each recording in ``windows``: RECORDING, and the columns that ``merged`` needs.

    Args:
        windows: COLUMNS and ``embedding``, in any order.
        poolings: the poolings.
    """
    windows = windows.take(_order(windows)).combine_chunks()
    start = starts(windows["file_id"].to_numpy())
    recordings = windows.select(RECORDING.names).take(pa.array(start))
    vectors = windows["embedding"].combine_chunks()
    if poolings == (SEQUENCE,):
        offsets = pa.array([*start, len(windows)], pa.int32())
        index = pa.ListArray.from_arrays(offsets, windows["window_index"].combine_chunks())
        lists = pa.ListArray.from_arrays(offsets, vectors)
        return recordings.append_column("index", index).append_column("vectors", lists)
    parts = parts_of(windows["file_id"].to_numpy(), matrix(windows["embedding"]))
    return _with_parts(recordings, parts)


def merged(parts: pa.Table, poolings: tuple[str, ...]) -> pa.Table:
    """One row per recording of rows of ``parts_of_windows``."""
    if poolings == (SEQUENCE,):  # back to windows: there is no cheaper way to put lists of lists in order
        index, vectors = (parts[name].combine_chunks() for name in ("index", "vectors"))
        of_row = pa.array(np.repeat(np.arange(len(parts)), index.value_lengths().to_numpy()))
        windows = parts.select(RECORDING.names).take(of_row).append_column("window_index", index.flatten())
        return parts_of_windows(windows.append_column("embedding", vectors.flatten()), poolings)
    ids = parts["file_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    recordings = parts.select(RECORDING.names).take(pa.array(order[starts(ids[order])]))
    return _with_parts(recordings, merge(_parts(parts)))


def recordings_of(parts: pa.Table, poolings: tuple[str, ...]) -> pa.Table:
    """RECORDING and ``embedding``, once every window of these recordings is in ``parts`` (one row each)."""
    recordings = parts.select(RECORDING.names).cast(RECORDING)
    if poolings == (SEQUENCE,):
        return recordings.append_column("embedding", parts["vectors"])
    vectors = pooled(_parts(parts), poolings)
    return recordings.append_column("embedding", column(vectors))


def _order(windows: pa.Table) -> pa.Array:
    return pa.array(np.lexsort((windows["window_index"].to_numpy(), windows["file_id"].to_numpy())))


def _with_parts(recordings: pa.Table, parts: Parts) -> pa.Table:
    table = recordings.append_column("n", pa.array(parts.n))
    for name in ("mean", "spread", "max"):
        table = table.append_column(name, column(getattr(parts, name)))
    return table


def _parts(table: pa.Table) -> Parts:
    mean, spread, maxima = (matrix(table[name]) for name in ("mean", "spread", "max"))
    return Parts(table["file_id"].to_numpy(), table["n"].to_numpy(), mean, spread, maxima)
