"""Which labels recordings and windows have: arrays only."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

TRAIN, TEST = "train", "test"

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Names = NDArray[np.object_]
Truth = NDArray[np.bool_]


@dataclass(frozen=True)
class Labels:
    """Recordings, and what they are labelled with.

    An annotation says that a recording has a label from ``start_s`` to ``end_s``: minus and plus infinity where it
    holds throughout.
    """

    files: Names  # [recordings], in order
    groups: Names  # [recordings], what stays on one side of the split
    sides: Names | None  # [recordings], TRAIN or TEST, where the manifest says it
    classes: Names  # [classes], in order
    recording: Integers  # [annotations], into files, in order
    label: Integers  # [annotations], into classes
    start_s: Floats  # [annotations]
    end_s: Floats

    def only(self, kept: Truth) -> "Labels":
        """Return the labels of these recordings (``[recordings]``) alone, with the classes that they have."""
        is_own = kept[self.recording]
        of_kept, label = np.unique(self.label[is_own], return_inverse=True)
        return replace(
            self,
            files=self.files[kept],
            groups=self.groups[kept],
            sides=None if self.sides is None else self.sides[kept],
            classes=self.classes[of_kept],
            recording=(np.cumsum(kept) - 1)[self.recording[is_own]],
            label=label,
            start_s=self.start_s[is_own],
            end_s=self.end_s[is_own],
        )

    def of_recordings(self) -> Truth:
        """``[recordings, classes]``: which has which label anywhere."""
        has = np.zeros((len(self.files), len(self.classes)), bool)
        has[self.recording, self.label] = True
        return has

    def of_windows(self, recording: Integers, start_s: Floats, end_s: Floats) -> Truth:
        """``[windows, classes]``: which window has which label; of arrays ``[windows]``, ``recording`` into files."""
        has = np.zeros((len(recording), len(self.classes)), bool)
        window, annotation = self.pairs(recording, start_s, end_s)
        has[window, self.label[annotation]] = True
        return has

    def pairs(self, recording: Integers, start_s: Floats, end_s: Floats) -> tuple[Integers, Integers]:
        """Each window with each annotation that it overlaps: arrays ``[pairs]``."""
        order = np.lexsort((start_s, recording))
        recording, start_s, end_s = recording[order], start_s[order], end_s[order]
        # Recordings one after the other on one axis, so that one search finds the windows of all annotations.
        length_s = end_s.max(initial=0.0) + 1
        at_s, annotated_s = recording * length_s, self.recording * length_s
        reach_s = np.maximum.accumulate(at_s + end_s)
        first = np.searchsorted(reach_s, annotated_s + np.clip(self.start_s, 0, length_s), "left")
        last = np.searchsorted(at_s + start_s, annotated_s + np.clip(self.end_s, 0, length_s), "right")
        n = np.maximum(0, last - first)
        annotation = np.repeat(np.arange(len(n)), n)
        window = np.arange(len(annotation)) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
        kept = (recording[window] == self.recording[annotation]) & overlap(
            start_s[window], end_s[window], self.start_s[annotation], self.end_s[annotation]
        )
        return order[window[kept]], annotation[kept]


def overlap(start_s: Floats, end_s: Floats, other_start_s: Floats, other_end_s: Floats) -> Truth:
    """Return whether two intervals share at least half of the shorter one; arrays of one shape."""
    shared_s = np.minimum(end_s, other_end_s) - np.maximum(start_s, other_start_s)
    return shared_s >= 0.5 * np.minimum(end_s - start_s, other_end_s - other_start_s)
