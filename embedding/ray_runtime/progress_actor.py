"""The state that the workers of a run share with its driver. It lives in an actor; nothing here imports Ray."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedding.counters import NOTHING, Counters
from embedding.schema.targets import Targets

# Deaths of an encoder over one batch of windows before the run gives up; a death may be the fault of a lost machine.
ENCODE_TRIES = 5
# Faults of a GPU in one run before the GPU is given up. Each fault costs its encoder a new start.
GPU_FAULTS = 3


@dataclass
class RunProgress:
    """Counts of a run so far, open batches, faults of GPUs, and the request to stop.

    Attributes:
        counters: The counts.
    """

    counters: Counters = field(default_factory=Counters)
    _stopping: bool = False
    _leg_is_ending: bool = False
    _gpu_faults: Counter[Any] = field(default_factory=Counter)
    _failed_over: set[tuple[Any, str]] = field(default_factory=set)  # a GPU, and a batch that was open when it failed
    _broken_gpus: dict[Any, str] = field(default_factory=dict)  # with the last error of each
    _begun_tasks: Counter[str] = field(default_factory=Counter)
    _open_batches: Counter[str] = field(default_factory=Counter)  # number of starts of batches that have not ended
    _failed: set[int] = field(default_factory=set)
    _failed_by_target: set[tuple[int, int]] = field(default_factory=set)
    _unchanged: list[tuple[int, Targets]] = field(default_factory=list)
    _measured_batches: dict[int, str] = field(default_factory=dict)  # by target

    def begin_leg(self) -> None:
        """Start a leg, which has encoders of its own."""
        self.counters.encoders = 0
        self._leg_is_ending = False

    def begin_task(self, task_id: str) -> int:
        """Count the start of a decode task; return the number of starts so far, 1 for the first try."""
        self._begun_tasks[task_id] += 1
        self.counters.tasks_again += self._begun_tasks[task_id] > 1
        return self._begun_tasks[task_id]

    def encoder_ready(self, *, again: bool) -> None:
        """Count an encoder that has loaded its model.

        Args:
            again: Its process or node had died before.
        """
        self.counters.encoders_again += again
        self.counters.encoders += not again
        self.counters.reached("first_encoder")

    def window_encoded(self) -> None:
        """Take note of the time of the first window; windows are counted at the end of their batch."""
        self.counters.reached("first_window")

    def begin_batch(self, batch: str) -> None:
        """Count the start of a batch."""
        self._open_batches[batch] += 1

    def end_batch(self, batch: str) -> None:
        """Forget a batch that is encoded."""
        self._open_batches.pop(batch, None)

    def open_batches(self) -> dict[str, int]:
        """Return the batches that have started and not ended, with their number of starts.

        A process that died leaves one or two of them.
        """
        return dict(self._open_batches)

    def choose_measured(self, batch: str, targets: Collection[int]) -> list[int]:
        """Return the targets for which the windows of a batch are to be encoded in fp32, too.

        For each target the windows of one batch of a run are.

        Args:
            batch: The batch.
            targets: Targets that have windows in the batch.
        """
        return [target for target in targets if self._measured_batches.setdefault(target, batch) == batch]

    def add_agreements(self, agreements: Mapping[int, dict[str, float]]) -> None:
        """Take note of the agreement of targets with fp32."""
        self.counters.agreements.update(agreements)

    def gpu_failed(self, gpu: Any, message: str, batches: Collection[str]) -> None:
        """Count a fault of a GPU.

        At the last fault that is allowed the leg ends, so that the next leg goes on without the GPU. Each GPU counts
        once against a batch: a GPU that always fails says nothing about the batch, several GPUs that fail over the same
        batch do.

        Args:
            gpu: The GPU.
            message: The error.
            batches: The batches that were open in its process.
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
        """Return the GPUs that failed GPU_FAULTS times, each with its last error."""
        return self._broken_gpus

    def add(
        self, stage: str, busy_s: float, by_target: Mapping[int, Mapping[str, float]] = NOTHING, **counts: float
    ) -> None:
        """Add to the counters, see ``Counters.add``."""
        self.counters.add(stage, busy_s, by_target, **counts)

    def add_failed(self, failures: list[tuple[int, int]]) -> None:
        """Count recordings that failed, given as target and ``file_id``; repetitions count once."""
        for target, file_id in set(failures) - self._failed_by_target:
            own = self.counters.by_target.setdefault(target, {})
            own["failed"] = own.get("failed", 0) + 1
            self._failed.add(file_id)
        self._failed_by_target.update(failures)
        self.counters.failed = len(self._failed)  # a recording that fails for several targets counts once

    def add_unchanged(self, recordings: list[tuple[int, Targets]]) -> None:
        """Add recordings whose audio is that of a former version: ``file_id``, and the targets that have stored it."""
        self._unchanged.extend(recordings)

    def stop(self) -> None:
        """Tell workers to decode and encode no more."""
        self._stopping = True

    def is_stopping(self) -> bool:
        """Return whether workers are to decode and encode no more, because the run or its present leg ends."""
        return self._stopping or self._leg_is_ending

    def snapshot(self, origin: str = "", n_unchanged: int = 0) -> tuple[Counters, list[tuple[int, Targets]]]:
        """Return the counters, and the unchanged recordings that the caller does not have.

        Not all of them each time: those of 10⁷ recordings would be 100 MB twice a second.

        Args:
            origin: ``Counters.origin`` at the caller's last call.
            n_unchanged: Number of unchanged recordings of this origin that the caller has.
        """
        return self.counters, self._unchanged[n_unchanged if origin == self.counters.origin else 0 :]
