"""The whole flow: every shard is read once, on all nodes, and gives its own K best.

shards ─▶ the K nearest of each ─▶ the K nearest
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.errors import RequestError, storage_failure
from embedding.output.shard_reading import list_shards, open_shard
from embedding.output.shard_schema import EMBED_AGAIN
from embedding.output.store import Store
from embedding.schema.vectors import as_embedding
from embedding.search.nearest_windows import HITS, best, nearest
from embedding.search.query import of_clip, of_window


@dataclass(frozen=True)
class Search:
    """Options of a search: for the windows of a clip, or for the stored window of ``like`` at ``at_s``."""

    root: str
    clip: str | None
    like: str | None
    at_s: float
    k: int
    layer: str | None = None  # an inner one; None: what the model ends in


def search(wanted: Search, *, verbose: bool = False) -> pa.Table:
    """The K nearest windows (HITS), the nearest first; of a stored window others than itself.

    Raises:
        RequestError: there is nothing to search, or nothing to search for.
        RunError: the storage or the cluster failed.
    """
    store = Store(wanted.root, "")
    try:
        shards = list_shards(wanted.root)
        column = store.column_of(wanted.layer)
        itself: dict[str, Any] = {}
        if wanted.like is not None:
            query, itself = of_window(wanted.like, wanted.at_s, shards, column)
        else:
            query = of_clip(str(wanted.clip), store, column, os.cpu_count() or 1)
        query = query[np.linalg.norm(query, axis=1) > 0]
        if not len(query):
            raise RequestError("the query's vectors are zero: nothing is near to them")
        hits = _hits(shards, column, query, wanted.k + bool(itself), verbose=verbose)
    except OSError as error:
        raise storage_failure(error) from error
    is_itself = [
        (row["file_id"], row["window_index"]) == (itself.get("file_id"), itself.get("window_index"))
        for row in hits.to_pylist()
    ]
    return hits.filter(pa.array([not each for each in is_itself], pa.bool_())).slice(0, wanted.k)


def _hits(shards: list[str], column: str, query: NDArray[np.float32], k: int, *, verbose: bool) -> pa.Table:
    from embedding.ray_runtime.session import session  # Ray takes seconds to import
    from embedding.ray_runtime.worker_errors import raise_worker_errors

    with session(verbose=verbose), raise_worker_errors():
        from embedding.ray_runtime.datasets import stream

        found = best([], k)
        for some in stream(search_shards, pa.table({"uri": shards}), column, query, k, verbose=verbose):
            found = best([found, some], k)
        return found


def search_shards(shards: pa.Table, column: str, query: NDArray[np.float32], k: int) -> pa.Table:
    """The K best windows (HITS) of these shards (column ``uri``), by the vectors in ``column``."""
    return best([nearest(_read(uri, column, query.shape[1]), query, k) for uri in shards["uri"].to_pylist()], k)


def _read(uri: str, column: str, dim: int) -> pa.Table:
    with open_shard(uri, vectors=column) as shard:
        length = shard.schema_arrow.field(column).type.list_size
        if length != dim:
            raise RequestError(f"{uri} holds vectors of {length:,} numbers, and the query's has {dim:,}: {EMBED_AGAIN}")
        return as_embedding(shard.read(columns=[*HITS.names[:-1], column], use_threads=False), column)
