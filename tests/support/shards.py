"""Shards, outputs and listings with given content, in the form in which the pipeline writes them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding.output.store import Store, embeddings_schema
from embedding.schema.recordings import RECORDINGS
from embedding.schema.vectors import column

DIM = 4


def shard(*windows: tuple[int, int, int], hashes: dict[int, int] | None = None, names: str = "/a/{}.wav") -> pa.Table:
    """Return the table of a shard.

    Args:
        windows: (file_id, window_index, n_windows) of each row.
        hashes: Hashes of the audio by file_id; None for a table without them.
        names: Pattern of the recordings' names.
    """
    ids, index, n_windows = zip(*windows, strict=True) if windows else ((), (), ())
    n = len(windows)
    flat = pa.array(np.arange(n * DIM, dtype=np.float32))
    table = pa.table(
        {
            "file": [names.format(i) for i in ids],
            "file_id": ids,
            "window_index": index,
            "n_windows": n_windows,
            "start_time": [5.0 * i for i in index],
            "end_time": [5.0 * i + 5 for i in index],
            "sample_rate": [48_000] * n,
            "channels": [1] * n,
            "duration": [60.0] * n,
            "embedding": pa.FixedSizeListArray.from_arrays(flat, DIM),
        }
    ).cast(embeddings_schema(DIM))
    if hashes is None:
        return table
    return table.append_column("audio_hash", pa.array([hashes.get(i) for i in ids], pa.int64()))


def write_output(
    root: str, recordings: dict[str, np.ndarray], settings: dict[str, Any], n_shards: int = 3, window_s: float = 5.0
) -> None:
    """Write an output in which the windows of each recording are spread over the shards.

    Args:
        root: The output.
        recordings: Vectors by file, ``[windows, dim]``.
        settings: Settings of the vectors.
        n_shards: Number of shards.
        window_s: Length and hop of the windows.
    """
    rows = [
        (file, number, index, vector)
        for number, (file, vectors) in enumerate(recordings.items())
        for index, vector in enumerate(vectors)
    ]
    for number in range(n_shards):
        files, ids, index, vectors = zip(*rows[number::n_shards], strict=True)
        n_windows = np.array([len(recordings[file]) for file in files])
        columns = {
            "file": files,
            "file_id": np.array(ids) + 1000,
            "window_index": index,
            "n_windows": n_windows,
            "start_time": np.array(index) * window_s,
            "end_time": np.array(index) * window_s + window_s,
            "sample_rate": np.full(len(ids), 48_000),
            "channels": np.full(len(ids), 1),
            "duration": n_windows * window_s,
            "embedding": column(np.array(vectors)),
        }
        table = pa.table(columns).cast(embeddings_schema(len(vectors[0])))
        Store(root, json.dumps(settings)).write_shard(table, f"s{number}")


def add_columns(root: Path, columns_of: Callable[[pa.Table], dict[str, pa.Array]]) -> None:
    """Add columns, for example of inner layers, to each shard of an output."""
    for uri in (root / "embeddings").iterdir():
        table = pq.read_table(uri)
        for name, values in columns_of(table).items():
            table = table.append_column(name, values)
        pq.write_table(table, uri)


def listing(*recordings: tuple[str, int], size: int = 100) -> pa.Table:
    """Return the listing of recordings, given as (file, file_id)."""
    files, ids = zip(*recordings, strict=True) if recordings else ((), ())
    return pa.table([list(files), [size] * len(files), list(ids)], RECORDINGS)


def ids(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), np.int64)
