"""The accounting of a run: what was listed, done, failed and written, and how long each stage was busy."""

import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

# Of no target.
NOTHING: Mapping[int, Mapping[str, float]] = MappingProxyType({})


@dataclass
class Counters:
    """Counts of one run so far. For terminal: what is done is read from the output itself."""

    # Another one after the process that counts had to be started anew.
    origin: str = field(default_factory=lambda: uuid.uuid4().hex)
    recordings: int = 0  # whose last window is encoded, or that have none
    encoders: int = 0  # of this leg that have loaded their model
    encoders_again: int = 0  # that have loaded it anew, after their process or node died
    tasks_again: int = 0  # decode tasks that were begun anew, likewise
    read_bytes: int = 0  # of the recordings that were decoded
    audio_s: float = 0.0  # decoded
    windows_encoded: int = 0
    audio_encoded_s: float = 0.0
    windows_written: int = 0
    shards: int = 0
    encoding_since_s: float | None = None  # when the first batch was begun; seconds since 1970
    first_window_at_s: float | None = None  # when that batch was done
    failed: int = 0  # recordings
    busy_s: dict[str, float] = field(default_factory=dict)  # stage → seconds of work, over all its workers
    by_target: dict[int, dict[str, float]] = field(default_factory=dict)  # of the above, what is one model's alone

    def add(
        self, stage: str, busy_s: float, by_target: Mapping[int, Mapping[str, float]] = NOTHING, **counts: float
    ) -> None:
        """Add to any of the counters above, and to the busy time of ``stage``; ``by_target`` to both."""
        self.busy_s[stage] = self.busy_s.get(stage, 0.0) + busy_s
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)
        for target, own in by_target.items():
            counted = self.by_target.setdefault(target, {})
            for name, count in own.items():
                setattr(self, name, getattr(self, name) + count)
                counted[name] = counted.get(name, 0) + count
        if self.windows_encoded and self.first_window_at_s is None:
            self.first_window_at_s = time.time()
            self.encoding_since_s = self.first_window_at_s - busy_s

    def encoding_s(self, elapsed_s: float) -> float:
        """Seconds since the first batch was begun.

        Args:
            elapsed_s: of the run, by a clock that nobody sets; returned where the clock of the day has been set.
        """
        since_s = time.time() - (self.encoding_since_s or 0.0)
        return since_s if 0 < since_s <= elapsed_s else max(elapsed_s, 1e-3)

    def of_target(self, target: int) -> "Counters":
        """What concerns one model: windows, shards and failures of its own, and all else of the run."""
        none: dict[str, Any] = dict.fromkeys(("failed", "windows_encoded", "windows_written", "shards"), 0)
        return replace(self, **none | {"audio_encoded_s": 0.0} | self.by_target.get(target, {}))

    @property
    def done_again(self) -> dict[str, int]:
        """What losses cost, once a run is over: begun again, or encoded and never written."""
        return {
            "decode_tasks": self.tasks_again,
            "encoders": self.encoders_again,
            "windows": max(0, self.windows_encoded - self.windows_written),
        }

    def plus(self, later: "Counters") -> "Counters":
        """Both together, with the origin of ``later``."""
        total = Counters(origin=later.origin)
        for counter in fields(Counters):
            mine, its = getattr(self, counter.name), getattr(later, counter.name)
            if counter.name in ("encoding_since_s", "first_window_at_s"):
                setattr(total, counter.name, mine or its)
            elif isinstance(mine, int | float) and isinstance(its, int | float):
                setattr(total, counter.name, mine + its)
        total.busy_s = dict(Counter(self.busy_s) + Counter(later.busy_s))
        for target in self.by_target.keys() | later.by_target.keys():
            both = Counter(self.by_target.get(target, {})) + Counter(later.by_target.get(target, {}))
            total.by_target[target] = dict(both)
        return total
