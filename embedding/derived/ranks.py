"""Ranks of rows in groups. Arrays only."""

import numpy as np
from numpy.typing import NDArray


def rank_in_groups(group: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the position of each row in its group, 0 for the first.

    Args:
        group: ``[rows]``, the number of each row's group; rows of a group stand together.
    """
    start = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]])) if len(group) else np.empty(0, np.int64)
    return np.arange(len(group)) - np.repeat(start, np.diff(start, append=len(group)))
