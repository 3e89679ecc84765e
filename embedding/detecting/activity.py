"""Counts of detections: by label, by hour of the day, by date."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

HOURS = 24


@dataclass
class Activity:
    """The detections of one label.

    Attributes:
        detections: Their number.
        recordings: Number of recordings with one.
        by_hour: ``[24]``, detections by the hour of the day in which they begin, where the start of the recording is
            known.
        by_date: Detections by date, in the same way.
        by_site: For each site, ``[25]``: by hour, and those without a time.
    """

    detections: int = 0
    recordings: int = 0
    by_hour: list[int] = field(default_factory=lambda: [0] * HOURS)
    by_date: Counter[str] = field(default_factory=Counter)
    by_site: dict[str, list[int]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the counts for ``summary.json``."""
        return {
            "detections": self.detections,
            "recordings": self.recordings,
            "by_hour": self.by_hour,
            "by_date": dict(sorted(self.by_date.items())),
            "by_site": {
                site: {"detections": sum(counts), "by_hour": counts[:HOURS]}
                for site, counts in sorted(self.by_site.items())
            },
        }


def add_activity(detections: pa.Table, activity: dict[str, Activity]) -> None:
    """Add detections to the counts of their labels.

    Args:
        detections: ``file_id``, ``start_time``, ``label``, ``recorded_at`` and ``site``; all of each recording's
            detections.
        activity: The counts by label; updated.
    """
    recording = detections["file_id"].to_numpy()
    began = detections["recorded_at"].to_numpy().astype("datetime64[s]")
    time = began + detections["start_time"].to_numpy().astype("timedelta64[s]")
    sites, site = np.unique(np.array(detections["site"].fill_null("").to_pylist(), object), return_inverse=True)
    names, label = np.unique(np.array(detections["label"].to_pylist(), object), return_inverse=True)
    hour = (time - time.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.int64)
    for at, name in enumerate(names):
        own = label == at
        counts = activity.setdefault(name, Activity())
        counts.detections += int(own.sum())
        counts.recordings += len(np.unique(recording[own]))
        hour_or_none = np.where(np.isnat(time), HOURS, hour)
        for number in np.unique(site[own]):
            if place := str(sites[number]):
                more = np.bincount(hour_or_none[own & (site == number)], minlength=HOURS + 1)
                before = counts.by_site.get(place, [0] * (HOURS + 1))
                counts.by_site[place] = [a + int(b) for a, b in zip(before, more, strict=True)]
        own &= ~np.isnat(time)
        by_hour = np.bincount(hour[own], minlength=HOURS)
        counts.by_hour = [before + int(more) for before, more in zip(counts.by_hour, by_hour, strict=True)]
        dates, n = np.unique(time[own].astype("datetime64[D]"), return_counts=True)
        counts.by_date.update(dict(zip(dates.astype(str).tolist(), n.tolist(), strict=True)))
