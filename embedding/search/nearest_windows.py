"""The K nearest by cosine, exactly: arrays and tables only."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.schema.batches import WINDOW_COLUMNS
from embedding.schema.vectors import matrix

# A window and how near it is: the cosine to the nearest of the query's vectors.
HITS = pa.schema([*WINDOW_COLUMNS, ("score", pa.float32())])


def nearest(windows: pa.Table, query: NDArray[np.float32], k: int) -> pa.Table:
    """Return the windows (HITS) that are nearest to any vector of ``query``, the nearest first.

    Args:
        windows: the columns of a shard.
        query: ``[queries, dim]``, not all zero.
        k: number of windows.
    """
    vectors = matrix(windows["embedding"])
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = vectors @ unit(query).T / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.where(np.isfinite(cosines), cosines, -1).max(axis=1).astype(np.float32)  # zeros point nowhere
    # With all that are as near as the last one: which of them counts is for their names to say.
    least = np.partition(scores, -k)[-k] if k < len(scores) else -1
    some = np.flatnonzero(scores >= least)
    table = windows.select([name for name, _ in WINDOW_COLUMNS]).take(pa.array(some))
    return best([table.append_column("score", pa.array(scores[some])).cast(HITS)], k)


def best(hits: list[pa.Table], k: int) -> pa.Table:
    """The ``k`` best of several tables of HITS; ties in the order of their names and times."""
    order = [("score", "descending"), ("file", "ascending"), ("window_index", "ascending")]
    return pa.concat_tables([HITS.empty_table(), *hits]).sort_by(order).slice(0, k)  # type: ignore[arg-type]


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """``vectors`` of length 1. Rows of zeros become NaN: they are near to nothing."""
    with np.errstate(invalid="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
