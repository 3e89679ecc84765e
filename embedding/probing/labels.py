"""Labels of recordings and windows: arrays only."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

TRAIN, TEST = "train", "test"

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Names = NDArray[np.object_]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Stretches:
    """Stretches of recordings; arrays ``[stretches]``.

    Attributes:
        recording: Indices of recordings, in order.
        start_s: Seconds from the start of the recording; minus infinity for a whole recording.
        end_s: Seconds from the start of the recording; infinity for a whole recording.
    """

    recording: Integers
    start_s: Floats
    end_s: Floats

    def restrict_to(self, kept: Booleans) -> "Stretches":
        """Return the stretches of the recordings in ``kept``, ``[recordings]``, numbered among these."""
        is_kept = kept[self.recording]
        number = (np.cumsum(kept) - 1)[self.recording[is_kept]]
        return Stretches(number, self.start_s[is_kept], self.end_s[is_kept])

    def match_windows(self, recording: Integers, start_s: Floats, end_s: Floats) -> tuple[Integers, Integers]:
        """Return all pairs of a window and a stretch that share at least half of the shorter one.

        A stretch without length belongs to the windows that begin before it, or with it, and end after it.

        Args:
            recording: ``[windows]``, indices of recordings.
            start_s: ``[windows]``, seconds from the start of the recording.
            end_s: ``[windows]``, seconds from the start of the recording.

        Returns:
            Indices of windows and indices of stretches, both ``[pairs]``.
        """
        order = np.lexsort((start_s, recording))
        recording, start_s, end_s = recording[order], start_s[order], end_s[order]
        # All recordings lie one after the other on one axis, so that one search finds the windows of all stretches.
        length_s = end_s.max(initial=0.0) + 1
        window_offset_s, offset_s = recording * length_s, self.recording * length_s
        latest_end_s = np.maximum.accumulate(window_offset_s + end_s)
        first = np.searchsorted(latest_end_s, offset_s + np.clip(self.start_s, 0, length_s), "left")
        last = np.searchsorted(window_offset_s + start_s, offset_s + np.clip(self.end_s, 0, length_s), "right")
        n = np.maximum(0, last - first)
        stretch = np.repeat(np.arange(len(n)), n)
        window = np.arange(len(stretch)) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
        matches = (recording[window] == self.recording[stretch]) & overlap_by_half(
            start_s[window], end_s[window], self.start_s[stretch], self.end_s[stretch]
        )
        return order[window[matches]], stretch[matches]


@dataclass(frozen=True)
class Labels:
    """Recordings and their annotations.

    An annotation gives a recording a label from ``start_s`` to ``end_s``; these are minus and plus infinity for a label
    of the whole recording.

    Attributes:
        files: ``[recordings]``, in order.
        groups: ``[recordings]``; recordings of the same group are all for training or all for the test.
        splits: ``[recordings]``, TRAIN or TEST; None if the manifest has no split.
        classes: ``[classes]``, in order.
        recording: ``[annotations]``, indices into ``files``, in order.
        label: ``[annotations]``, indices into ``classes``.
        start_s: ``[annotations]``, seconds from the start of the recording.
        end_s: ``[annotations]``, seconds from the start of the recording.
        reviewed: Windows outside of these stretches are not used; None: all windows of the recordings are used.
        unsure: Windows in these stretches are not used.
    """

    files: Names
    groups: Names
    splits: Names | None
    classes: Names
    recording: Integers
    label: Integers
    start_s: Floats
    end_s: Floats
    reviewed: Stretches | None = None
    unsure: Stretches | None = None

    def restrict_to(self, kept: Booleans) -> "Labels":
        """Return the labels of the recordings in ``kept`` (``[recordings]``) alone, with their classes alone."""
        is_kept = kept[self.recording]
        kept_classes, label = np.unique(self.label[is_kept], return_inverse=True)
        return replace(
            self,
            files=self.files[kept],
            groups=self.groups[kept],
            splits=None if self.splits is None else self.splits[kept],
            classes=self.classes[kept_classes],
            recording=(np.cumsum(kept) - 1)[self.recording[is_kept]],
            label=label,
            start_s=self.start_s[is_kept],
            end_s=self.end_s[is_kept],
            reviewed=None if self.reviewed is None else self.reviewed.restrict_to(kept),
            unsure=None if self.unsure is None else self.unsure.restrict_to(kept),
        )

    def label_recordings(self) -> Booleans:
        """Return the labels that each recording has at any time, as ``[recordings, classes]``."""
        truth = np.zeros((len(self.files), len(self.classes)), bool)
        truth[self.recording, self.label] = True
        return truth

    def label_windows(self, recording: Integers, start_s: Floats, end_s: Floats) -> Booleans:
        """Return the labels of windows.

        A window has a label if both share at least half of the shorter one.

        Args:
            recording: ``[windows]``, indices into ``files``.
            start_s: ``[windows]``, seconds from the start of the recording.
            end_s: ``[windows]``, seconds from the start of the recording.

        Returns:
            ``[windows, classes]``.
        """
        truth = np.zeros((len(recording), len(self.classes)), bool)
        window, annotation = self.match_windows(recording, start_s, end_s)
        truth[window, self.label[annotation]] = True
        return truth

    def match_windows(self, recording: Integers, start_s: Floats, end_s: Floats) -> tuple[Integers, Integers]:
        """Return all pairs of a window and an annotation that share at least half of the shorter one.

        Args:
            recording: ``[windows]``, indices into ``files``.
            start_s: ``[windows]``, seconds from the start of the recording.
            end_s: ``[windows]``, seconds from the start of the recording.

        Returns:
            Indices of windows and indices of annotations, both ``[pairs]``.
        """
        return Stretches(self.recording, self.start_s, self.end_s).match_windows(recording, start_s, end_s)

    def is_usable(self, recording: Integers, start_s: Floats, end_s: Floats) -> Booleans:
        """Return which windows have been reviewed, and are not unsure; arguments are those of ``match_windows``."""
        usable = np.ones(len(recording), bool)
        if self.reviewed is not None:
            window, _ = self.reviewed.match_windows(recording, start_s, end_s)
            usable[:] = False
            usable[window] = True
        if self.unsure is not None:
            window, _ = self.unsure.match_windows(recording, start_s, end_s)
            usable[window] = False
        return usable


def overlap_by_half(start_s: Floats, end_s: Floats, other_start_s: Floats, other_end_s: Floats) -> Booleans:
    """Return which windows share at least half of the shorter of both with a stretch; all arrays have one shape.

    Args:
        start_s: Starts of the windows.
        end_s: Ends of the windows.
        other_start_s: Starts of the stretches.
        other_end_s: Ends of the stretches; a stretch without length lies in the window that begins with it.
    """
    shared_s = np.minimum(end_s, other_end_s) - np.maximum(start_s, other_start_s)
    shares_half = shared_s >= 0.5 * np.minimum(end_s - start_s, other_end_s - other_start_s)
    return shares_half & ((other_end_s > other_start_s) | (other_start_s < end_s))
