"""Detections from hits: windows of one label that overlap or are neighbours become one detection. Arrays only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Times are compared in microseconds, a 96th of a sample at 10 kHz, because start and end of neighbours may differ in
# the last bit.
TICKS_PER_S = 1_000_000


@dataclass(frozen=True)
class Merged:
    """Detections, one or more hits each.

    Attributes:
        first: ``[detections]``, the number of a hit, for columns that all hits of a detection share.
        start_s: ``[detections]``, the earliest start of a hit.
        end_s: ``[detections]``, the latest end of a hit.
        highest: ``[detections]``, the highest score of a hit.
        mean: ``[detections]``, the mean score of its hits.
        n_hits: ``[detections]``.
    """

    first: Integers
    start_s: Floats
    end_s: Floats
    highest: Floats
    mean: Floats
    n_hits: Integers


def merge_hits(  # noqa: PLR0917 — columns of one table
    recording: Integers, label: Integers, start_s: Floats, end_s: Floats, score: Floats, gap_s: float
) -> Merged:
    """Merge hits of one recording and one label between which no more than ``gap_s`` lie.

    Args:
        recording: ``[hits]``.
        label: ``[hits]``.
        start_s: ``[hits]``, seconds from the start of the recording.
        end_s: ``[hits]``, seconds from the start of the recording.
        score: ``[hits]``.
        gap_s: Seconds between the end of a hit and the start of the next. A negative number merges nothing.

    Returns:
        The detections in the order of recording, label and start.
    """
    order = np.lexsort((end_s, start_s, label, recording))
    recording, label, score = recording[order], label[order], score[order].astype(np.float64)
    start, end = (np.rint(seconds[order] * TICKS_PER_S).astype(np.int64) for seconds in (start_s, end_s))
    is_new_group = np.ones(len(order), bool)
    is_new_group[1:] = (recording[1:] != recording[:-1]) | (label[1:] != label[:-1])
    # All groups lie one after the other on one axis, so that one pass finds the latest end of all earlier hits.
    span = int(end.max(initial=0)) + round(max(gap_s, 0.0) * TICKS_PER_S) + 2
    offset = (np.cumsum(is_new_group) - 1) * span
    latest_end = np.maximum.accumulate(end + offset)
    is_new = is_new_group.copy()
    if gap_s < 0:
        is_new[:] = True
    else:
        gap = round(gap_s * TICKS_PER_S) + 1  # start and end are rounded
        is_new[1:] |= (start + offset)[1:] > latest_end[:-1] + gap
    first = np.flatnonzero(is_new)
    if not len(first):
        nothing = np.empty(0)
        return Merged(first, nothing, nothing, nothing, nothing, first)
    n_hits = np.diff(first, append=len(order))
    return Merged(
        first=order[first],
        start_s=start_s[order][first],
        end_s=np.maximum.reduceat(end_s[order], first),
        highest=np.maximum.reduceat(score, first),
        mean=np.add.reduceat(score, first) / n_hits,
        n_hits=n_hits,
    )
