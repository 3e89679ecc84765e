"""The balance of an output against a listing: each recording was embedded before, is embedded now, or has failed."""

from dataclasses import dataclass
from typing import Any

# Examples of each kind of failure in the run report, and of all failures in messages.
EXAMPLES_PER_KIND = 3
# Share of recordings that may fail without --max-failure-rate; a single recording of a small run may fail, too.
DEFAULT_FAILURE_RATE = 0.05


@dataclass(frozen=True)
class Balance:
    """The balance: ``listed = already_done + embedded + failed``, counted from the shards and failure rows.

    Attributes:
        listed: Recordings in the listing.
        already_done: Recordings that were complete before the run, or whose audio was found to be unchanged.
        embedded: Recordings that this run has completed.
        failed: Recordings with a failure row of this run or a former one.
        failed_before: Of these, recordings that failed in a former run and were not tried again.
        changed: Of the embedded, recordings of which a former version was stored.
        unchanged: Of those already done, recordings with another size or time, and the same audio as before.
        windows_expected: Windows of the recordings that are complete.
        windows_stored: Distinct windows stored of them.
        windows_repeated: Rows of them that are stored more than once.
        failures: For each kind, the number of recordings and examples.
        output: Totals of the whole output, see ``Inventory.totals``.
        failed_examples: Names of some recordings that failed, each with the kind of its failure.
    """

    listed: int
    already_done: int
    embedded: int
    failed: int
    failed_before: int
    changed: int
    unchanged: int
    windows_expected: int
    windows_stored: int
    windows_repeated: int
    failures: dict[str, dict[str, Any]]
    output: dict[str, float]
    failed_examples: tuple[str, ...] = ()

    @property
    def n_stored(self) -> int:
        """Number of listed recordings that are embedded and saved."""
        return self.already_done + self.embedded

    @property
    def balanced(self) -> bool:
        """True if every recording and every window is accounted for, once."""
        return (
            self.listed == self.already_done + self.embedded + self.failed
            and self.windows_expected == self.windows_stored
            and not self.windows_repeated
        )

    @property
    def failure_rate(self) -> float:
        """Share of the listed recordings that failed."""
        return self.failed / self.listed

    def describe_failures(self) -> str:
        """Return a text like ``2 failed: a.wav (empty), b.wav (corrupt)``."""
        if self.failed <= EXAMPLES_PER_KIND and len(self.failed_examples) == self.failed:
            return f"{self.failed:,} failed: {', '.join(self.failed_examples)}"
        kinds = ", ".join(f"{kind} {failure['recordings']:,}" for kind, failure in self.failures.items())
        return f"{self.failed:,} failed: {kinds}"

    def shortfall(self, max_failure_rate: float | None) -> str:
        """Return why the output is not complete within the failure limit; empty where it is complete.

        Args:
            max_failure_rate: Share of the recordings that may fail; None: DEFAULT_FAILURE_RATE, or one recording, but
                never all.
        """
        if max_failure_rate is not None:
            is_within_limit = self.failure_rate <= max_failure_rate
        else:
            most = max(DEFAULT_FAILURE_RATE * self.listed, 1)
            is_within_limit = self.failed <= most and self.failed < self.listed
        if not is_within_limit:
            limit = f"{DEFAULT_FAILURE_RATE if max_failure_rate is None else max_failure_rate:g}"
            return (
                f"{self.n_stored:,} of {self.listed:,} recordings are embedded and saved; {self.describe_failures()}; "
                f"this is more than --max-failure-rate {limit} allows"
            )
        if not self.balanced:
            return (
                f"not every recording is accounted for: of {self.listed:,} recordings {self.n_stored:,} are embedded "
                f"and {self.failed:,} failed; run the same command again"
            )
        return ""

    def as_json(self) -> dict[str, Any]:
        """Return the balance as a part of ``report.json``; docs/schema.md explains the fields."""
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
