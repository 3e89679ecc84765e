"""Retrieval: are windows of the same label nearer to each other than to others? Arrays only.

Each window is a query over the windows of all other recordings, by cosine; windows of its own recording would be near
for other reasons. A window is right if it shares a label with the query.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from embedding.probing.labels import Booleans, Floats, Integers
from embedding.search.nearest_windows import unit_vectors

# Queries at a time: their cosines with 20,000 windows are 20 MB.
CHUNK_ROWS = 256


@dataclass(frozen=True)
class Retrieval:
    """Figures of each query; NaN where no other recording has its label, or every other window has it.

    Attributes:
        roc_auc: ``[windows]``, area under the ROC curve of the cosines.
        precision: ``[windows]``, share of right windows among the nearest.
    """

    roc_auc: Floats
    precision: Floats


def measure_retrieval(vectors: NDArray[np.float32], truth: Booleans, recording: Integers, k: int) -> Retrieval:
    """Measure each window as a query.

    Args:
        vectors: ``[windows, dim]``.
        truth: ``[windows, classes]``, the labels.
        recording: ``[windows]``.
        k: Number of nearest windows for the precision.
    """
    units = np.nan_to_num(unit_vectors(vectors))
    roc_auc, precision = np.full(len(vectors), np.nan), np.full(len(vectors), np.nan)
    numbers = truth.astype(np.float32)
    for first in range(0, len(vectors), CHUNK_ROWS):
        rows = slice(first, first + CHUNK_ROWS)
        cosines = units[rows] @ units.T
        shares_label = numbers[rows] @ numbers.T > 0
        is_other = recording[rows][:, None] != recording
        for at, (cosine, right, other) in enumerate(zip(cosines, shares_label, is_other, strict=True), start=first):
            hits = right[other]
            n_right = int(hits.sum())
            n_wrong = len(hits) - n_right
            if not n_right or not n_wrong:
                continue
            of_others = cosine[other]
            # Mann and Whitney's U, as a share of all pairs of a right and a wrong window.
            rank_sum = rankdata(of_others)[hits].sum()
            roc_auc[at] = (rank_sum - n_right * (n_right + 1) / 2) / (n_right * n_wrong)
            nearest = np.argpartition(-of_others, min(k, len(hits)) - 1)[:k]
            precision[at] = hits[nearest].mean()
    return Retrieval(roc_auc, precision)
