"""The accounting of a run: what was listed, done, failed and written, and how long each stage was busy."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EXAMPLES_PER_KIND = 3


@dataclass
class Tally:
    """Counts of one run so far. Stages add to it from every node; the driver reads it."""

    started_at_s: float = field(default_factory=time.time)
    recordings: int = 0  # whose last window is encoded, or that have none
    audio_s: float = 0.0  # decoded
    windows_encoded: int = 0
    audio_encoded_s: float = 0.0
    windows_written: int = 0
    shards: int = 0
    first_window_at_s: float | None = None
    failed_ids: dict[int, str] = field(default_factory=dict)  # file_id → kind
    examples: dict[str, list[str]] = field(default_factory=dict)  # kind → "file: message"
    busy_s: dict[str, float] = field(default_factory=dict)  # stage → seconds of work, over all its workers

    def add(self, stage: str, busy_s: float, **counts: float) -> None:
        """Add to any of the counters above, and to the busy time of ``stage``."""
        self.busy_s[stage] = self.busy_s.get(stage, 0.0) + busy_s
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)
        if self.windows_encoded and self.first_window_at_s is None:
            self.first_window_at_s = time.time()

    def add_failures(self, failures: list[tuple[int, str, str, str]]) -> None:
        """Failures as (file_id, kind, file, message); one recording counts once, however often it is told."""
        for file_id, kind, file, message in failures:
            if self.failed_ids.setdefault(file_id, kind) == kind:
                examples = self.examples.setdefault(kind, [])
                line = f"{file}: {message}"
                if len(examples) < EXAMPLES_PER_KIND and line not in examples:
                    examples.append(line)

    def snapshot(self) -> "Tally":
        """Itself, as a value: how another process reads it."""
        return self

    @property
    def failed_by_kind(self) -> Counter[str]:
        return Counter(self.failed_ids.values())


@dataclass(frozen=True)
class Books:
    """The balance of a run: ``listed = already_done + embedded + failed``, as the output itself says."""

    listed: int
    already_done: int
    embedded: int  # complete now, and not before
    failed: int  # with a failure row, of this run or a former one
    failed_before: int  # of these, not tried again
    tally: Tally
    wall_s: float

    @property
    def balanced(self) -> bool:
        return self.listed == self.already_done + self.embedded + self.failed

    @property
    def failure_rate(self) -> float:
        return self.failed / self.listed

    def as_json(self) -> dict[str, Any]:
        """``report.json``; docs/schema.md explains the fields."""
        tally = self.tally
        return {
            "recordings": {
                "listed": self.listed,
                "already_done": self.already_done,
                "embedded": self.embedded,
                "failed": self.failed,
                "failed_before": self.failed_before,
                "balanced": self.balanced,
            },
            "windows": {"encoded": tally.windows_encoded, "written": tally.windows_written, "shards": tally.shards},
            "audio_s": {"decoded": round(tally.audio_s, 3), "encoded": round(tally.audio_encoded_s, 3)},
            "failures": {
                kind: {"recordings": n, "examples": tally.examples.get(kind, [])}
                for kind, n in tally.failed_by_kind.most_common()
            },
            "wall_s": round(self.wall_s, 3),
            "times_real_time": round(tally.audio_s / self.wall_s, 1) if self.wall_s else None,
            "first_window_after_s": round(tally.first_window_at_s - tally.started_at_s, 3)
            if tally.first_window_at_s
            else None,
            "busy_s": {stage: round(seconds, 3) for stage, seconds in tally.busy_s.items()},
        }
