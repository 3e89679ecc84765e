"""The search for the windows of an output that are nearest to a query, exact, with Ray Data.

    1. find the shards and the column of vectors
    2. turn the query into vectors: encode a clip, or look a stored window up
    3. find the K nearest windows of each shard, on all nodes, and merge them to the K nearest of all
    4. leave out the stored window that is the query

In step 3 each shard is read once.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.errors import RequestError, storage_failure
from embedding.output.shard_reading import list_shards, open_shard
from embedding.output.shard_schema import EMBED_AGAIN
from embedding.output.store import Store
from embedding.schema.vectors import as_embedding
from embedding.search.nearest_windows import HITS, find_nearest, merge_hits
from embedding.search.query import encode_clip, find_window
from embedding.where import choose_recordings


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search, either for a clip or for a stored window.

    Attributes:
        root: Directory or prefix of the output.
        clip: Absolute path or URI of a sound file; None for a stored window.
        like: The recording of the stored window, as listed; None for a clip.
        at_s: A time in the stored window, in seconds from the start of its recording.
        k: Number of hits.
        layer: The inner layer whose vectors are compared; None for the output of the model.
        where: An SQL condition over ``recordings.parquet``; windows of other recordings are no hits.
    """

    root: str
    clip: str | None
    like: str | None
    at_s: float
    k: int
    layer: str | None = None
    where: str | None = None


def search(options: SearchOptions, *, verbose: bool = False) -> pa.Table:
    """Return the windows nearest to a query.

    Args:
        options: The query, and where to search.
        verbose: Print the log lines of Ray.

    Returns:
        A table of HITS, the nearest first. A stored window that is the query is not among its own hits.

    Raises:
        RequestError: There are no embeddings, or the query cannot be found or encoded.
        RunError: The storage or the cluster failed.
    """
    store = Store(options.root, "")
    try:
        # 1. Find the shards and the column of vectors.
        shards = list_shards(options.root)
        column = store.column_of(options.layer)
        chosen = choose_recordings(options.root, options.where)

        # 2. Turn the query into vectors.
        query_window: dict[str, Any] | None = None
        if options.like is not None:
            query, query_window = find_window(options.like, options.at_s, shards, column)
        else:
            query = encode_clip(str(options.clip), store, column, os.cpu_count() or 1)
        query = query[np.linalg.norm(query, axis=1) > 0]
        if not len(query):
            raise RequestError("the vectors of the query are zero: no window is near to them")

        # 3. Find the nearest windows; a stored query is among them, so one hit more is needed.
        k = options.k if query_window is None else options.k + 1
        hits = _search_on_ray(shards, column, query, k, chosen, verbose=verbose)
    except OSError as error:
        raise storage_failure(error) from error

    # 4. Leave the query out.
    if query_window is not None:
        is_other_recording = pc.field("file_id") != query_window["file_id"]
        hits = hits.filter(is_other_recording | (pc.field("window_index") != query_window["window_index"]))
    return hits.slice(0, options.k)


def _search_on_ray(
    shards: list[str],
    column: str,
    query: NDArray[np.float32],
    k: int,
    chosen: NDArray[np.int64] | None,
    *,
    verbose: bool,
) -> pa.Table:
    from embedding.ray_runtime.session import session  # Ray takes seconds to import
    from embedding.ray_runtime.worker_errors import raise_worker_errors

    with session(verbose=verbose), raise_worker_errors():
        from embedding.ray_runtime.datasets import stream

        hits, tasks = HITS.empty_table(), pa.table({"uri": shards})
        for hits_of_task in stream(search_shards, tasks, column, query, k, chosen, verbose=verbose):
            hits = merge_hits([hits, hits_of_task], k)
        return hits


def search_shards(
    shards: pa.Table, column: str, query: NDArray[np.float32], k: int, chosen: NDArray[np.int64] | None = None
) -> pa.Table:
    """Return the nearest windows of some shards: the task of a worker.

    Args:
        shards: A table with the column ``uri``.
        column: The column of vectors.
        query: ``[queries, dim]``.
        k: Number of hits.
        chosen: ``file_id`` of the recordings whose windows are compared; None: all.

    Returns:
        A table of HITS, the nearest first.

    Raises:
        OSError: The storage failed.
        RequestError: A shard is damaged, or has vectors of another length than the query.
    """
    windows = (_read_shard(uri, column, query.shape[1], chosen) for uri in shards["uri"].to_pylist())
    return merge_hits([find_nearest(table, query, k) for table in windows], k)


def _read_shard(uri: str, column: str, dim: int, chosen: NDArray[np.int64] | None) -> pa.Table:
    """Return the windows of chosen recordings in a shard, with the vectors as ``embedding``."""
    with open_shard(uri, vectors=column) as shard:
        length = shard.schema_arrow.field(column).type.list_size
        if length != dim:
            raise RequestError(
                f"{uri} holds vectors of {length:,} numbers, but those of the query have {dim:,}: {EMBED_AGAIN}"
            )
        columns = [*HITS.names[:-1], column]
        if chosen is None:
            return as_embedding(shard.read(columns=columns, use_threads=False), column)
        ids = shard.read(columns=["file_id"], use_threads=False)["file_id"].to_numpy()
        is_chosen = np.isin(ids, chosen)
        if not is_chosen.any():  # its vectors are not read
            return as_embedding(shard.schema_arrow.empty_table().select(columns), column)
        return as_embedding(shard.read(columns=columns, use_threads=False).filter(pa.array(is_chosen)), column)
