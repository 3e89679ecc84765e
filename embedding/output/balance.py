"""The balance of an output against a listing: each recording is done before, embedded or failed."""

from dataclasses import dataclass
from typing import Any

EXAMPLES_PER_KIND = 3


@dataclass(frozen=True)
class Balance:
    """The balance of an output against a listing: ``listed = already_done + embedded + failed``, as the shards say."""

    listed: int
    already_done: int  # before this run; also where only name or times had changed
    embedded: int  # complete now, and not before
    failed: int  # with a failure row, of this run or a former one
    failed_before: int  # of these, not tried again
    changed: int  # of the embedded: size or audio had changed since, former rows are gone
    unchanged: int  # of those already done: touched since, the same audio
    windows_expected: int  # of the recordings that are done
    windows_stored: int
    windows_repeated: int
    failures: dict[str, dict[str, Any]]  # kind → recordings, examples
    output: dict[str, float]  # Inventory.totals

    @property
    def balanced(self) -> bool:
        return (
            self.listed == self.already_done + self.embedded + self.failed
            and self.windows_expected == self.windows_stored
            and not self.windows_repeated
        )

    @property
    def failure_rate(self) -> float:
        return self.failed / self.listed

    def as_json(self) -> dict[str, Any]:
        """The part of ``report.json`` that the output itself says; docs/schema.md explains the fields."""
        return {
            "recordings": {
                "listed": self.listed,
                "already_done": self.already_done,
                "embedded": self.embedded,
                "failed": self.failed,
                "failed_before": self.failed_before,
                "changed": self.changed,
                "unchanged": self.unchanged,
                "balanced": self.balanced,
            },
            "windows": {
                "expected": self.windows_expected,
                "stored": self.windows_stored,
                "repeated": self.windows_repeated,
            },
            "failures": self.failures,
            "output": self.output,
        }
