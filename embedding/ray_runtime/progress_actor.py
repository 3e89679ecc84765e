"""What the workers of a run tell its driver, and the driver them. It lives in an actor; nothing here is Ray."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedding.counters import NOTHING, Counters

# Deaths of an encoder over one batch of windows before the run gives up: a lost machine is not the batch's fault.
ENCODE_TRIES = 5
# Faults of a GPU in one run before it is given up. Each costs its encoder a new start.
GPU_FAULTS = 3


@dataclass
class RunProgress:
    """Counts so far, what has been tried how often, and whether to stop."""

    tally: Counters = field(default_factory=Counters)
    _stopping: bool = False
    _leg_is_ending: bool = False
    _gpu_faults: Counter[Any] = field(default_factory=Counter)
    _failed_over: set[tuple[Any, str]] = field(default_factory=set)  # GPUs, and the batches that were open then
    _broken_gpus: dict[Any, str] = field(default_factory=dict)  # with the last error of each
    _begun_tasks: Counter[str] = field(default_factory=Counter)
    _open_batches: Counter[str] = field(default_factory=Counter)  # begun and not finished, by how often
    _failed: set[int] = field(default_factory=set)
    _failed_of: set[tuple[int, int]] = field(default_factory=set)
    _unchanged: list[tuple[int, int]] = field(default_factory=list)

    def begin_leg(self) -> None:
        """The encoders from here on are others."""
        self.tally.encoders = 0
        self._leg_is_ending = False

    def begin_task(self, task_id: str) -> int:
        """Which try of this task begins: 1 is the first."""
        self._begun_tasks[task_id] += 1
        self.tally.tasks_again += self._begun_tasks[task_id] > 1
        return self._begun_tasks[task_id]

    def encoder_ready(self, *, again: bool) -> None:
        """An encoder has loaded its model, ``again`` if its process or node had died."""
        self.tally.encoders_again += again
        self.tally.encoders += not again

    def begin_batch(self, batch: str) -> None:
        self._open_batches[batch] += 1

    def end_batch(self, batch: str) -> None:
        self._open_batches.pop(batch, None)

    def open_batches(self) -> dict[str, int]:
        """Batches that were begun and not finished, with how often: of each process that died one or two."""
        return dict(self._open_batches)

    def gpu_failed(self, gpu: Any, message: str, batches: Collection[str]) -> None:
        """Count a fault of a GPU; ``batches`` were open in its process.

        At the last fault that is borne the leg ends, so that the next one goes on without the GPU. Each GPU counts once
        against a batch: a GPU that always fails says nothing of the batch, several GPUs that fail over it do.
        """
        self._gpu_faults[gpu] += 1
        for batch in batches:
            if (gpu, batch) in self._failed_over:
                self._open_batches[batch] -= 1
            self._failed_over.add((gpu, batch))
        if self._gpu_faults[gpu] >= GPU_FAULTS:
            self._broken_gpus[gpu] = message
            self._leg_is_ending = True

    def broken_gpus(self) -> dict[Any, str]:
        """GPUs that failed GPU_FAULTS times, each with its last error."""
        return self._broken_gpus

    def add(
        self, stage: str, busy_s: float, by_target: Mapping[int, Mapping[str, float]] = NOTHING, **counts: float
    ) -> None:
        self.tally.add(stage, busy_s, by_target, **counts)

    def add_failed(self, failures: list[tuple[int, int]]) -> None:
        """Recordings that failed, each as a target and its ``file_id``; one may be told several times."""
        for target, file_id in set(failures) - self._failed_of:
            own = self.tally.by_target.setdefault(target, {})
            own["failed"] = own.get("failed", 0) + 1
            self._failed.add(file_id)
        self._failed_of.update(failures)
        self.tally.failed = len(self._failed)  # for several targets it failed once

    def add_unchanged(self, recordings: list[tuple[int, int]]) -> None:
        """``file_id`` of recordings whose audio is that of a former version, and bits of the targets that have it."""
        self._unchanged.extend(recordings)

    def stop(self) -> None:
        """Read and encode no more."""
        self._stopping = True

    def is_stopping(self) -> bool:
        """Tell whether workers are to read and encode no more, because the run or its present leg ends."""
        return self._stopping or self._leg_is_ending

    def snapshot(self, origin: str = "", n_unchanged: int = 0) -> tuple[Counters, list[tuple[int, int]]]:
        """The counts, and the unchanged recordings beyond those ``n_unchanged`` that the asker has of this ``origin``.

        Not all of them each time: of 10⁷ they would be 100 MB twice a second.
        """
        return self.tally, self._unchanged[n_unchanged if origin == self.tally.origin else 0 :]
