"""Counters of a run: recordings, windows, seconds of audio and working time, so far."""

import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

# Counts of no target.
NOTHING: Mapping[int, Mapping[str, float]] = MappingProxyType({})

# Steps whose first and last times are kept, with the count that tells them.
_STEPS = {"audio": "audio_s", "window": "windows_encoded", "shard": "shards"}


@dataclass
class Counters:
    """Counts of one run so far, for display and for the run report.

    The counts say nothing about what is stored; that is read from the output itself.

    Attributes:
        origin: Identifier of the process that counts; a restarted process has a new one.
        recordings: Recordings whose last window is encoded, or that have no windows.
        encoders: Encoders of this leg that have loaded their model.
        encoders_again: Encoders that loaded their model again after their process or node died.
        tasks_again: Decode tasks that were started again after their process or node died.
        read_bytes: Bytes of the recordings that were decoded.
        audio_s: Seconds of audio decoded.
        windows_encoded: Windows encoded.
        audio_encoded_s: Seconds of audio encoded; overlapping windows count once.
        windows_written: Windows written to shards.
        shards: Shards written.
        reached_at_s: Steps with the times when they were reached, seconds since 1970: ``first_encoder`` (loaded),
            ``first_batch`` (started), and ``first_`` and ``last_`` with ``audio``, ``window`` and ``shard``.
        agreements: For targets of a reduced precision, the agreement with fp32: ``windows``, ``least``, ``median``.
        failed: Recordings that failed, for any target.
        busy_s: Seconds of work by stage, over all workers of the stage.
        by_target: Of the counts above, those that belong to one target.
    """

    origin: str = field(default_factory=lambda: uuid.uuid4().hex)
    recordings: int = 0
    encoders: int = 0
    encoders_again: int = 0
    tasks_again: int = 0
    read_bytes: int = 0
    audio_s: float = 0.0
    windows_encoded: int = 0
    audio_encoded_s: float = 0.0
    windows_written: int = 0
    shards: int = 0
    reached_at_s: dict[str, float] = field(default_factory=dict)
    agreements: dict[int, dict[str, float]] = field(default_factory=dict)
    failed: int = 0
    busy_s: dict[str, float] = field(default_factory=dict)
    by_target: dict[int, dict[str, float]] = field(default_factory=dict)

    def add(
        self, stage: str, busy_s: float, by_target: Mapping[int, Mapping[str, float]] = NOTHING, **counts: float
    ) -> None:
        """Add to the counters.

        Args:
            stage: The stage that worked.
            busy_s: Seconds of its work.
            by_target: Counts of single targets; they are added to the totals, too.
            counts: Counts of the whole run, by attribute.
        """
        self.busy_s[stage] = self.busy_s.get(stage, 0.0) + busy_s
        before = {step: getattr(self, name) for step, name in _STEPS.items()}
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)
        for target, own in by_target.items():
            counted = self.by_target.setdefault(target, {})
            for name, count in own.items():
                setattr(self, name, getattr(self, name) + count)
                counted[name] = counted.get(name, 0) + count
        for step, name in _STEPS.items():
            if getattr(self, name) > before[step]:
                self.reached(f"first_{step}")
                self.reached_at_s[f"last_{step}"] = time.time()
        if self.windows_encoded:
            self.reached("first_batch", busy_s)

    def reached(self, step: str, ago_s: float = 0.0) -> None:
        """Take note that a step was reached ``ago_s`` seconds ago, unless it was reached before."""
        self.reached_at_s.setdefault(step, time.time() - ago_s)

    def encoding_s(self, elapsed_s: float) -> float:
        """Return the seconds since the first batch was started.

        Args:
            elapsed_s: Seconds since the run began, by a monotonic clock; returned where the clock of the day was set.
        """
        since_s = time.time() - self.reached_at_s.get("first_batch", 0.0)
        return since_s if 0 < since_s <= elapsed_s else max(elapsed_s, 1e-3)

    def of_target(self, target: int) -> "Counters":
        """Return the counters with windows, shards, failures and agreement of one target alone."""
        agreements = {target: self.agreements[target]} if target in self.agreements else {}
        none: dict[str, Any] = dict.fromkeys(("failed", "windows_encoded", "windows_written", "shards"), 0)
        own = self.by_target.get(target, {})
        return replace(self, agreements=agreements, **none | {"audio_encoded_s": 0.0} | own)

    @property
    def done_again(self) -> dict[str, int]:
        """Work that was lost with a worker: started again, or encoded and never written. Valid when a run is over."""
        return {
            "decode_tasks": self.tasks_again,
            "encoders": self.encoders_again,
            "windows": max(0, self.windows_encoded - self.windows_written),
        }

    def plus(self, later: "Counters") -> "Counters":
        """Return the sum of both, with the origin of ``later``."""
        total = Counters(origin=later.origin)
        for counter in fields(Counters):
            mine, others = getattr(self, counter.name), getattr(later, counter.name)
            if isinstance(mine, int | float) and isinstance(others, int | float):
                setattr(total, counter.name, mine + others)
        firsts = {step: at_s for step, at_s in self.reached_at_s.items() if step.startswith("first_")}
        total.reached_at_s = self.reached_at_s | later.reached_at_s | firsts
        total.agreements = self.agreements | later.agreements
        total.busy_s = dict(Counter(self.busy_s) + Counter(later.busy_s))
        for target in self.by_target.keys() | later.by_target.keys():
            both = Counter(self.by_target.get(target, {})) + Counter(later.by_target.get(target, {}))
            total.by_target[target] = dict(both)
        return total
