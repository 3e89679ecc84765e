"""The line between a run's driver and its workers, both ends: an actor in which workers count and the driver reads.

It lives on the driver's own node, so that it is lost with the run and not before.
"""

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from embedding.counters import NOTHING, Counters
from embedding.ray_runtime import metrics
from embedding.ray_runtime.gpus import Gpu
from embedding.ray_runtime.progress_actor import RunProgress
from embedding.redact import redact
from embedding.schema.batches import targets_in
from embedding.schema.failures import Failure

logger = logging.getLogger("avex_batch")

POLL_S = 0.5
# How often a worker asks whether to stop: a question takes about a millisecond.
ASK_S = 0.5


# --- the driver's end -------------------------------------------------------------------------------------------


class ProgressChannel:
    """The driver's end: a ``RunProgress`` in an actor, asked every POLL_S."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        self.actor: Any = ray.remote(RunProgress).options(**options).remote()
        self._heard = ReceivedProgress()
        self._asking = threading.Lock()

    def begin_leg(self) -> None:
        """A part of the run begins, with encoders of its own."""
        self.actor.begin_leg.remote()

    def broken_gpus(self) -> dict[Gpu, str]:
        """``RunProgress.broken_gpus``."""
        return ray.get(self.actor.broken_gpus.remote())

    def ask(self) -> "ReceivedProgress":
        """What has been heard of the run so far."""
        with self._asking:  # else an earlier answer might come later
            self._heard.hear(*ray.get(self.actor.snapshot.remote(*self._heard.known), timeout=30))
            return self._heard


class ReceivedProgress:
    """What the actor told: what one that died had said counts on, as far as it was heard."""

    def __init__(self) -> None:
        # By target the recordings whose audio is that of a former version.
        self.unchanged: defaultdict[int, set[int]] = defaultdict(set)
        self._before = Counters()  # counted by former processes of the actor
        self._last = Counters(origin=self._before.origin)
        self._n_unchanged = 0  # told by the present one

    @property
    def tally(self) -> Counters:
        """Counts of the run so far."""
        return self._before.plus(self._last)

    @property
    def known(self) -> tuple[str, int]:
        """What need not be told again: arguments of ``RunProgress.snapshot``."""
        return self._last.origin, self._n_unchanged

    def hear(self, now: Counters, unchanged: list[tuple[int, int]]) -> None:
        """An answer to a question that said ``known``."""
        if now.origin != self._last.origin:
            self._before = self._before.plus(self._last)
            self._n_unchanged = 0
        self._last = now
        self._n_unchanged += len(unchanged)
        for file_id, wanted in unchanged:
            for target in targets_in(wanted):
                self.unchanged[target].add(file_id)


@contextmanager
def watching(
    line: ProgressChannel, on_tally: Callable[[Counters], None], is_stopping: Callable[[], bool]
) -> Iterator[None]:
    """Every POLL_S call ``on_tally`` and hand a wish to stop on to the workers, from a thread of its own."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            try:
                if is_stopping():
                    line.actor.stop.remote()
                on_tally(line.ask().tally)
            except ray.exceptions.RayError:
                continue  # it is being started anew, or the cluster is going down and the main thread says why

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- the workers' end -------------------------------------------------------------------------------------------


class Reporter:
    """A worker's end: it says what was done, to the driver and to Ray's metrics, and hears whether to stop."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._is_stopping = False
        self._next_question_s = 0.0

    def is_stopping(self) -> bool:
        """Whether the run is to end early, as the driver says."""
        if not self._is_stopping and time.monotonic() >= self._next_question_s:
            with suppress(ray.exceptions.RayError):  # the actor is being started anew: asked again next time
                self._is_stopping = bool(ray.get(self._actor.is_stopping.remote(), timeout=30))
            self._next_question_s = time.monotonic() + ASK_S
        return self._is_stopping

    def begin_task(self) -> int:
        """Which try of the present task this is: 1 is the first."""
        return ray.get(self._actor.begin_task.remote(ray.get_runtime_context().get_task_id()))

    def encoder_ready(self) -> None:
        self._actor.encoder_ready.remote(again=ray.get_runtime_context().was_current_actor_reconstructed)

    def open_batches(self) -> dict[str, int]:
        """``RunProgress.open_batches``."""
        return ray.get(self._actor.open_batches.remote())

    def gpu_failed(self, gpu: Gpu, error: Exception, batches: Collection[str]) -> None:
        """``RunProgress.gpu_failed``, heard before this process ends."""
        message = redact(str(error).strip().partition("\n")[0])
        logger.warning(f"{gpu}: {message}")
        ray.get(self._actor.gpu_failed.remote(gpu, message, list(batches)))

    def begin_batch(self, batch: str, fill: float) -> None:
        metrics.batch_filled(fill)
        self._actor.begin_batch.remote(batch)

    def end_batch(self, batch: str) -> None:
        self._actor.end_batch.remote(batch)

    def add(
        self, stage: str, busy_s: float, by_target: Mapping[int, Mapping[str, float]] = NOTHING, **counts: float
    ) -> None:
        """What ``Counters.add`` counts."""
        metrics.add(stage, busy_s, **sum(map(Counter, by_target.values()), Counter(counts)))
        self._actor.add.remote(stage, busy_s, dict(by_target), **counts)

    def failed(self, failures: list[tuple[int, Failure]]) -> None:
        """These, each with its target, are stored as rows already."""
        for failure in dict.fromkeys(failure for _, failure in failures):
            metrics.failed(failure.kind)
            logger.warning(redact(f"{failure.file}: {failure.kind}: {failure.message}"))
        self._actor.add_failed.remote([(target, failure.file_id) for target, failure in failures])

    def unchanged(self, recordings: list[tuple[int, int]]) -> None:
        """``RunProgress.add_unchanged``, heard before the task ends, and with it perhaps the round."""
        ray.get(self._actor.add_unchanged.remote(recordings))
