"""The K windows nearest to a query by cosine, exact: arrays and tables only."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.schema.batches import WINDOW_COLUMNS
from embedding.schema.vectors import matrix

# A window and its score: the cosine to the nearest vector of the query.
HITS = pa.schema([*WINDOW_COLUMNS, ("score", pa.float32())])


def find_nearest(windows: pa.Table, query: NDArray[np.float32], k: int) -> pa.Table:
    """Return the windows nearest to any vector of the query, the nearest first.

    Args:
        windows: Rows of a shard, with the vectors to compare in ``embedding``.
        query: ``[queries, dim]``; vectors of zeros are near to no window.
        k: Number of windows.

    Returns:
        A table of HITS with ``k`` rows, or with all windows if there are fewer.
    """
    vectors = matrix(windows["embedding"])
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = vectors @ unit_vectors(query).T / np.linalg.norm(vectors, axis=1, keepdims=True)
    # A window with a vector of zeros has no direction: it gets the lowest score.
    scores = np.where(np.isfinite(cosines), cosines, -1).max(axis=1).astype(np.float32)
    # Windows that tie with the last hit are kept, too: merge_hits decides between them by name.
    lowest_score = np.partition(scores, -k)[-k] if k < len(scores) else -1
    rows = np.flatnonzero(scores >= lowest_score)
    table = windows.select([name for name, _ in WINDOW_COLUMNS]).take(pa.array(rows))
    return merge_hits([table.append_column("score", pa.array(scores[rows])).cast(HITS)], k)


def merge_hits(tables: list[pa.Table], k: int) -> pa.Table:
    """Return the ``k`` best hits of several tables of HITS; ties are in the order of file and window."""
    order = [("score", "descending"), ("file", "ascending"), ("window_index", "ascending")]
    return pa.concat_tables([HITS.empty_table(), *tables]).sort_by(order).slice(0, k)  # type: ignore[arg-type]


def unit_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows of ``vectors`` scaled to length 1; rows of zeros become NaN."""
    with np.errstate(invalid="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
