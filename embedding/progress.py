"""What the workers of a run tell its driver, and the driver them. It lives in an actor; nothing here is Ray."""

from collections import Counter
from dataclasses import dataclass, field

from embedding.report import Tally

# Deaths of an encoder over one batch of windows before the run gives up: a lost machine is not the batch's fault.
ENCODE_TRIES = 5


@dataclass
class Progress:
    """Counts so far, what has been tried how often, and whether to stop."""

    tally: Tally = field(default_factory=Tally)
    _stopping: bool = False
    _begun_tasks: Counter[str] = field(default_factory=Counter)
    _open_batches: Counter[str] = field(default_factory=Counter)  # begun and not finished, by how often

    def begin_task(self, task_id: str) -> int:
        """Which try of this task begins: 1 is the first."""
        self._begun_tasks[task_id] += 1
        return self._begun_tasks[task_id]

    def begin_batch(self, batch: str) -> None:
        self._open_batches[batch] += 1

    def end_batch(self, batch: str) -> None:
        self._open_batches.pop(batch, None)

    def fatal_batches(self) -> set[str]:
        """Batches that ended their encoder's process ENCODE_TRIES times."""
        return {batch for batch, n in self._open_batches.items() if n >= ENCODE_TRIES}

    def add(self, stage: str, busy_s: float, **counts: float) -> None:
        self.tally.add(stage, busy_s, **counts)

    def add_failures(self, failures: list[tuple[int, str]]) -> None:
        """Failures as (file_id, kind)."""
        for file_id, kind in failures:
            self.tally.failed_ids.setdefault(file_id, kind)

    def add_unchanged(self, file_ids: list[int]) -> None:
        self.tally.unchanged_ids.update(file_ids)

    def stop(self) -> None:
        """Read and encode no more."""
        self._stopping = True

    def is_stopping(self) -> bool:
        return self._stopping

    def snapshot(self) -> Tally:
        """The counts, as a value: how another process reads them."""
        return self.tally
