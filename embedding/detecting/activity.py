"""Counts of detections: by label, by hour of the day, by date."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from embedding.listing.start_times import recorded_at

HOURS = 24


@dataclass
class Activity:
    """The detections of one label.

    Attributes:
        detections: Their number.
        recordings: Number of recordings with one.
        by_hour: ``[24]``, detections by the hour of the day in which they begin, where the recording's name has a time.
        by_date: Detections by date, in the same way.
    """

    detections: int = 0
    recordings: int = 0
    by_hour: list[int] = field(default_factory=lambda: [0] * HOURS)
    by_date: Counter[str] = field(default_factory=Counter)

    def describe(self) -> dict[str, Any]:
        """Return the counts for ``summary.json``."""
        return {
            "detections": self.detections,
            "recordings": self.recordings,
            "by_hour": self.by_hour,
            "by_date": dict(sorted(self.by_date.items())),
        }


def add_activity(detections: pa.Table, activity: dict[str, Activity]) -> None:
    """Add detections to the counts of their labels.

    Args:
        detections: ``file``, ``start_time`` and ``label``; all of each recording's detections.
        activity: The counts by label; updated.
    """
    files, number = np.unique(np.array(detections["file"].to_pylist(), object), return_inverse=True)
    began = np.array([recorded_at(file) or "NaT" for file in files], "datetime64[s]")
    time = began[number] + detections["start_time"].to_numpy().astype("timedelta64[s]")
    names, label = np.unique(np.array(detections["label"].to_pylist(), object), return_inverse=True)
    hour = (time - time.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.int64)
    for at, name in enumerate(names):
        own = label == at
        counts = activity.setdefault(name, Activity())
        counts.detections += int(own.sum())
        counts.recordings += len(np.unique(number[own]))
        own &= ~np.isnat(time)
        by_hour = np.bincount(hour[own], minlength=HOURS)
        counts.by_hour = [before + int(more) for before, more in zip(counts.by_hour, by_hour, strict=True)]
        dates, n = np.unique(time[own].astype("datetime64[D]"), return_counts=True)
        counts.by_date.update(dict(zip(dates.astype(str).tolist(), n.tolist(), strict=True)))
