"""The channel between the driver of a run and its workers: an actor in which workers count and which the driver reads.

The actor lives on the driver's own node, so that it is lost with the run and not before.
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
from embedding.schema.failures import Failure
from embedding.schema.targets import Targets

logger = logging.getLogger("avex_batch")

POLL_S = 0.5
# Time between two questions of a worker about stopping; a question takes about a millisecond.
ASK_S = 0.5


# --- the driver's end -------------------------------------------------------------------------------------------


class ProgressChannel:
    """The driver's end of the channel.

    Attributes:
        actor: The actor, a ``RunProgress``; workers make a ``ProgressReporter`` of it.
    """

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        self.actor: Any = ray.remote(RunProgress).options(**options).remote()
        self._received = ReceivedProgress()
        self._reading = threading.Lock()

    def begin_leg(self) -> None:
        """Start a leg of the run, which has encoders of its own."""
        self.actor.begin_leg.remote()

    def broken_gpus(self) -> dict[Gpu, str]:
        """Return the GPUs that are given up, each with its last error."""
        return ray.get(self.actor.broken_gpus.remote())

    def read(self) -> "ReceivedProgress":
        """Read the actor; return everything received so far."""
        with self._reading:  # answers must arrive in order
            self._received.add(*ray.get(self.actor.snapshot.remote(*self._received.known), timeout=30))
            return self._received


class ReceivedProgress:
    """Running totals, kept across restarts of the progress actor.

    Attributes:
        unchanged: For each target, ``file_id`` of the recordings whose audio is that of a former version.
    """

    def __init__(self) -> None:
        self.unchanged: defaultdict[int, set[int]] = defaultdict(set)
        self._before = Counters()  # of former processes of the actor
        self._last = Counters(origin=self._before.origin)
        self._n_unchanged = 0  # received from the present process

    @property
    def counters(self) -> Counters:
        """Counters of the run so far."""
        return self._before.plus(self._last)

    @property
    def known(self) -> tuple[str, int]:
        """The arguments of ``RunProgress.snapshot`` that leave out what has been received."""
        return self._last.origin, self._n_unchanged

    def add(self, counters: Counters, unchanged: list[tuple[int, Targets]]) -> None:
        """Add a snapshot that was taken with the arguments ``known``."""
        if counters.origin != self._last.origin:
            self._before = self._before.plus(self._last)
            self._n_unchanged = 0
        self._last = counters
        self._n_unchanged += len(unchanged)
        for file_id, targets in unchanged:
            for target in targets:
                self.unchanged[target].add(file_id)


@contextmanager
def watching(
    channel: ProgressChannel, on_counters: Callable[[Counters], None], is_stopping: Callable[[], bool]
) -> Iterator[None]:
    """Read the channel every POLL_S from a thread of its own while the block runs.

    Args:
        channel: The channel.
        on_counters: Called with the counters after each reading.
        is_stopping: Asked before each reading; once true, workers are told to stop.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            try:
                if is_stopping():
                    channel.actor.stop.remote()
                on_counters(channel.read().counters)
            except ray.exceptions.RayError:
                continue  # the actor restarts, or the cluster goes down and the main thread reports why

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- the workers' end -------------------------------------------------------------------------------------------


class ProgressReporter:
    """A worker's end of the channel: it reports work to the driver and to Ray's metrics, and asks whether to stop."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._is_stopping = False
        self._next_question_s = 0.0

    def is_stopping(self) -> bool:
        """Return whether the worker is to decode and encode no more."""
        if not self._is_stopping and time.monotonic() >= self._next_question_s:
            with suppress(ray.exceptions.RayError):  # the actor restarts; the next call asks again
                self._is_stopping = bool(ray.get(self._actor.is_stopping.remote(), timeout=30))
            self._next_question_s = time.monotonic() + ASK_S
        return self._is_stopping

    def begin_task(self) -> int:
        """Count the start of the present task; return the number of starts so far, 1 for the first try."""
        return ray.get(self._actor.begin_task.remote(ray.get_runtime_context().get_task_id()))

    def encoder_ready(self) -> None:
        """Report that this actor has loaded its models."""
        self._actor.encoder_ready.remote(again=ray.get_runtime_context().was_current_actor_reconstructed)

    def window_encoded(self) -> None:
        """Report that this actor has encoded its first window; the batch may end seconds later."""
        self._actor.window_encoded.remote()

    def open_batches(self) -> dict[str, int]:
        """Return the batches that have started and not ended, with their number of starts."""
        return ray.get(self._actor.open_batches.remote())

    def gpu_failed(self, gpu: Gpu, error: Exception, batches: Collection[str]) -> None:
        """Report a fault of a GPU, and wait until it is counted: this process ends next."""
        message = redact(str(error).strip().partition("\n")[0])
        logger.warning(f"{gpu}: {message}")
        ray.get(self._actor.gpu_failed.remote(gpu, message, list(batches)))

    def choose_measured(self, batch: str, targets: Collection[int]) -> list[int]:
        """Return the targets for which the windows of a batch are to be encoded in fp32, too."""
        return ray.get(self._actor.choose_measured.remote(batch, list(targets)))

    def agreed(self, target: int, agreement: dict[str, float]) -> None:
        """Report the agreement of a target with fp32, and wait until the driver can read it: the run may end next."""
        ray.get(self._actor.add_agreements.remote({target: agreement}))

    def begin_batch(self, batch: str, fill: float) -> None:
        """Report the start of a batch; ``fill`` is its share of the rows of a full batch."""
        metrics.batch_filled(fill)
        self._actor.begin_batch.remote(batch)

    def end_batch(self, batch: str) -> None:
        """Report that a batch is encoded."""
        self._actor.end_batch.remote(batch)

    def add(
        self, stage: str, busy_s: float, by_target: Mapping[int, Mapping[str, float]] = NOTHING, **counts: float
    ) -> None:
        """Add to the counters of the run, see ``Counters.add``."""
        metrics.add(stage, busy_s, **sum(map(Counter, by_target.values()), Counter(counts)))
        self._actor.add.remote(stage, busy_s, dict(by_target), **counts)

    def failed(self, failures: list[tuple[int, Failure]]) -> None:
        """Report failures, each with its target, that are stored as rows already."""
        for failure in dict.fromkeys(failure for _, failure in failures):
            metrics.failed(failure.kind)
            logger.warning(redact(f"{failure.file}: {failure.kind}: {failure.message}"))
        self._actor.add_failed.remote([(target, failure.file_id) for target, failure in failures])

    def unchanged(self, recordings: list[tuple[int, Targets]]) -> None:
        """Report recordings with unchanged audio, and wait until they are counted: the round may end with this task."""
        ray.get(self._actor.add_unchanged.remote(recordings))
