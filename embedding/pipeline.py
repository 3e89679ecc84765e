"""The pipeline of a run, arranged with Ray Data.

    recordings ─▶ decode (tasks) ─▶ encode (actor pool) ─▶ write (tasks, one shard each)

Each stage calls plain functions and classes of other modules. This module connects the stages and gives each of them
the CPUs and GPUs of the placement.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from embedding.decoding.decode import decode
from embedding.decoding.events import Decoded, DecodingEvent, Failed, NoMoreWindows, Unchanged, Windows
from embedding.decoding.isolated import decode_isolated
from embedding.encoding.batch_turns import BatchTurns
from embedding.encoding.checkpoints import ensure_local
from embedding.encoding.settings import Settings
from embedding.errors import RunError
from embedding.job import Job, Target
from embedding.output.claim import check_holder
from embedding.planning.placement import ClusterResources, Placement
from embedding.ray_runtime.datasets import configure_pipeline
from embedding.ray_runtime.gpus import own_gpu
from embedding.ray_runtime.progress_actor import ENCODE_TRIES
from embedding.ray_runtime.progress_channel import ProgressChannel, ProgressReporter
from embedding.ray_runtime.worker_errors import raise_worker_errors
from embedding.schema.batches import rows_of_target
from embedding.schema.failures import Failure
from embedding.schema.recordings import read_pending
from embedding.schema.targets import TargetColumn, Targets

if TYPE_CHECKING:
    from embedding.encoding.agreement import AgreementCheck
    from embedding.encoding.devices import Device
    from embedding.encoding.encode_batch import WindowEncoder

# The bytes of checkpoints in Ray's object store, by digest. Random weights have none.
SharedWeights = dict[str, ray.ObjectRef]

# Called with the rows of a shard and its name without suffix.
OnShard = Callable[[pa.Table, str], None]


def embed(
    recordings: list[pa.Table],
    job: Job,
    placement: Placement,
    cluster: ClusterResources,
    channel: ProgressChannel,
    *,
    weights: SharedWeights | None = None,
    on_shard: OnShard | None = None,
    verbose: bool = False,
) -> None:
    """Embed one leg of a run.

    Args:
        recordings: A table (``recordings.PENDING``) for each decode task.
        job: The leg.
        placement: CPUs and GPUs of each stage.
        cluster: The resources that Ray has.
        channel: Receives counts and failures, and tells workers to stop.
        weights: Checkpoints for nodes that do not have them, from ``share_weights``.
        on_shard: Called by workers for each shard of the only target, after it is written.
        verbose: Show what Ray Data logs.

    Raises:
        RequestError: An encoder found the request wrong, for example its weights.
        RunError: The storage or the cluster failed; what is stored stays valid.
    """
    configure_pipeline(
        job.batch_size * job.window_bytes,
        placement.n_actors * placement.encoder_gpus,
        is_own=cluster.is_own,
        verbose=verbose,
    )
    channel.begin_leg()
    n_decoders = None if placement.may_grow else min(placement.n_decoders, len(recordings))
    with raise_worker_errors():
        (
            # Not from_arrow, which runs a task per table to ask for its length: 10 s and 170 MB per 10⁶ recordings.
            ray.data.from_blocks(recordings)
            .map_batches(
                decode_stage,  # type: ignore[arg-type] — a generator, as map_batches documents
                fn_args=(job, channel.actor),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=placement.decode_cpus,
                compute=ray.data.TaskPoolStrategy(size=n_decoders),
            )
            .map_batches(
                EncodeStage,
                fn_constructor_args=(job, placement, channel.actor, weights),
                batch_size=job.batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    size=placement.n_actors,
                    max_concurrent_calls_per_actor=placement.encoder_calls,
                    enable_true_multi_threading=placement.encoder_calls > 1,
                ),
                num_cpus=placement.encoder_cpus,
                num_gpus=placement.encoder_gpus,
            )
            .write_datasink(
                WriteStage(job, channel.actor, on_shard),
                ray_remote_args={"num_cpus": placement.write_cpus},
                concurrency=placement.n_writers,
            )
        )


def decode_stage(recordings: pa.Table, job: Job, progress: Any) -> Iterator[pa.Table]:
    """Decode the recordings of one task; yield tables of windows.

    Ray retries a task indefinitely when its process dies. From the second try on, recordings are decoded in a process
    of their own, where a recording that ends its process is found.
    """
    job.shared_paths.check()
    reporter = ProgressReporter(progress)
    if reporter.is_stopping():  # thousands of tasks may still come after a leg was told to end
        return
    is_first_try = reporter.begin_task() == 1
    decoding = decode if is_first_try else decode_isolated
    pending = read_pending(recordings, len(job.targets))
    news = _News()
    began = time.perf_counter()
    for event in decoding(pending, job.windows, job.batch_size):
        if not isinstance(event, Windows):
            news.add(event)
            continue
        news.deliver(job, reporter, time.perf_counter() - began)
        news = _News()
        yield event.table
        if reporter.is_stopping():
            return
        began = time.perf_counter()
    news.deliver(job, reporter, time.perf_counter() - began)


class _News:
    """Events of decoding since the last table of windows."""

    def __init__(self) -> None:
        self._failures: list[tuple[int, Failure]] = []
        self._unchanged: list[tuple[int, Targets]] = []
        self._audio_s = 0.0
        self._read_bytes = 0
        self._n_without_windows = 0

    def add(self, event: DecodingEvent) -> None:
        """Take note of an event."""
        match event:
            case Failed(failure, targets):
                self._failures += [(target, failure) for target in sorted(targets)]
            case Unchanged(file_id, targets):
                self._unchanged.append((file_id, targets))
            case Decoded(duration_s, size):
                self._audio_s += duration_s
                self._read_bytes += max(size, 0)
            case NoMoreWindows():
                self._n_without_windows += 1

    def deliver(self, job: Job, reporter: "ProgressReporter", busy_s: float) -> None:
        """Store failures and report counts, before the windows that follow travel on.

        A recording whose last window is stored counts as complete, so its failure has to be stored before.
        """
        store_failures(self._failures, job, reporter)
        if self._unchanged:
            reporter.unchanged(self._unchanged)
        reporter.add(
            "decode",
            busy_s,
            recordings=self._n_without_windows,
            read_bytes=self._read_bytes,
            audio_s=self._audio_s,
        )


def store_failures(failures: list[tuple[int, Failure]], job: Job, reporter: ProgressReporter) -> None:
    """Store failures in the outputs of their targets, and report them.

    Args:
        failures: Each with the number of its target.
        job: The leg.
        reporter: Receives the failures.
    """
    for number, target in enumerate(job.targets):
        target.store.write_failures((failure for owner, failure in failures if owner == number), job.run_id)
    if failures:
        reporter.failed(failures)


def share_weights(targets: Sequence[Target]) -> SharedWeights:
    """Put the checkpoints of the driver into Ray's object store, for nodes that do not have them."""
    checkpoints = [target.settings.checkpoint for target in targets]
    return {each.digest: ray.put(np.fromfile(Path(each.path), np.uint8)) for each in checkpoints if each.path}


class EncodeStage:
    """One actor of the encoder pool: it holds a loaded model for each target and turns windows into vectors.

    On a GPU two threads call it at once, so that one batch is read and written while the GPU computes the other.
    """

    def __init__(self, job: Job, placement: Placement, progress: Any, weights: SharedWeights | None) -> None:
        self._job = job
        self._reporter = ProgressReporter(progress)
        self._failure: Exception | None = None
        self._encoders: Sequence[WindowEncoder] | None = None
        self._agreement: AgreementCheck | None = None
        self._exiting = threading.Lock()
        self._n_questions = 0
        # Ray restarts an actor that died, and gives it the same windows again, without end.
        self._tries = self._reporter.open_batches()
        self._turns = BatchTurns(self._tries)
        try:
            job.shared_paths.check()
            # A leg that is ending needs no encoder; perhaps it ends because of this encoder's own GPU.
            if not self._reporter.is_stopping():
                self._encoders = self._load(placement, weights or {})
        except (OSError, ray.exceptions.RayError):
            raise  # a fault of this node, or of a node that is gone: Ray starts another encoder, perhaps elsewhere
        except Exception as error:  # noqa: BLE001 — raised by the first call
            # An error of an actor's constructor reaches the driver as text, after ENCODER_STARTS of them; an error of a
            # call reaches the driver as itself.
            self._failure = self._explain_or_exit(error)

    def _load(self, placement: Placement, weights: SharedWeights) -> "Sequence[WindowEncoder]":
        # Imported here: the actors alone need OpenVINO, or torch and avex.
        from embedding.encoding.agreement import AgreementCheck
        from embedding.encoding.encoder_loading import load_encoders

        settings = [_with_local_weights(target.settings, weights) for target in self._job.targets]
        is_gpu = placement.device == "cuda"
        gpu = self.open_gpu(placement, [each.precision for each in settings]) if is_gpu else None
        n_threads = placement.encoder_threads
        encoders = load_encoders(settings, n_threads, gpu)
        self._agreement = AgreementCheck(
            encoders,
            lambda exact: load_encoders([exact], n_threads, gpu, keeps_times=False)[0],
            self._reporter,
            self._job.min_agreement,
            gpu,
        )
        warm_up_s = sum(encoder.warm_up(self._job.batch_size) for encoder in encoders)
        self._reporter.encoder_ready()
        if is_gpu:
            self._reporter.add("warm_up", warm_up_s)
        return encoders

    @staticmethod
    def open_gpu(placement: Placement, precisions: Sequence[str]) -> "Device":
        """Return the GPU of this process; tests and benchmarks override it with a simulated one."""
        from embedding.encoding.devices import Cuda

        return Cuda(precisions, placement.encoder_gpus)

    def __call__(self, windows: pa.Table) -> pa.Table:
        """Encode a batch of windows."""
        from embedding.encoding.encode_batch import encode_batch

        if self._failure is not None:
            raise self._failure
        batch = _name_of(windows)
        if self._tries.get(batch, 0) >= ENCODE_TRIES:
            raise RunError(
                f"the encoder's process died {ENCODE_TRIES} times over the windows from {batch} on: out of memory? "
                "Try fewer --actors or a smaller --batch-size"
            )
        if self._encoders is None:
            return windows.slice(0, 0)
        reporter = self._reporter
        with self._turns.turn(batch):
            reporter.begin_batch(batch, len(windows) / self._job.batch_size)
            began = time.perf_counter()
            try:
                if self._agreement and batch not in self._tries:  # a process may have died of the second model
                    self._agreement.run(batch, windows)
                vectors, failures = encode_batch(self._encoders, windows, self._is_stopping)
            except RuntimeError as error:
                if (explained := self._explain_or_exit(error)) is error:
                    raise
                raise explained from error
            store_failures(failures, self._job, reporter)
            reporter.end_batch(batch)
        reporter.add(
            "encode",
            self._turns.count_busy_s(began),
            _count_encoded(vectors, self._job),
            recordings=int((vectors["window_index"].to_numpy() + 1 == vectors["n_windows"].to_numpy()).sum()),
        )
        return vectors

    def _is_stopping(self) -> bool:
        """Return whether to encode no more. Asked before each pass, so the second time a first window is encoded."""
        self._n_questions += 1
        if self._n_questions == 2:
            self._reporter.window_encoded()
        return self._reporter.is_stopping()

    def _explain_or_exit(self, error: Exception) -> Exception:
        """Return the exception to raise for ``error``. Where the GPU has failed, end this process instead.

        A process cannot use a GPU again that failed in it. Ray starts another process, and gives it the open batches.
        """
        if not isinstance(error, RuntimeError):
            return error
        from embedding.encoding.devices import is_device_failure, is_out_of_memory

        if is_device_failure(error):
            self._exiting.acquire()  # never released: a fault shows in both threads, and counts once
            self._reporter.gpu_failed(own_gpu(), error, self._turns.active)
            os._exit(1)
        if is_out_of_memory(error):
            return RunError(
                f"{own_gpu()} has too little memory for the model and one window: give each encoder more of it "
                "(--gpus-per-actor), cut shorter windows, or see what else uses it"
            )
        return error


def _count_encoded(vectors: pa.Table, job: Job) -> dict[int, dict[str, float]]:
    """Return the counts of a batch, by target."""
    start_s, duration_s = vectors["start_time"].to_numpy(), vectors["duration"].to_numpy()
    targets = TargetColumn.of(vectors)
    counts = {}
    for target, spec in enumerate(job.windows):
        own = targets.needed_by(target)
        audio_s = spec.covered_s(start_s[own], duration_s[own])
        counts[target] = {"windows_encoded": int(own.sum()), "audio_encoded_s": audio_s}
    return counts


def _with_local_weights(settings: Settings, weights: SharedWeights) -> Settings:
    """Return the settings with the checkpoint as it lies on this node."""
    digest = settings.checkpoint.digest
    if digest not in weights:
        return settings
    return replace(settings, checkpoint=ensure_local(settings.checkpoint, lambda: ray.get(weights[digest])))


def _name_of(windows: pa.Table) -> str:
    return f"window {windows['window_index'][0]} of {windows['file'][0]}"


class WriteStage(ray.data.Datasink[None]):
    """Vectors to shards, one shard per write task and target.

    Ray gathers at least ``min_rows_per_write`` rows for a task.
    """

    def __init__(self, job: Job, progress: Any, on_shard: OnShard | None = None) -> None:
        self._job = job
        self._on_shard = on_shard
        self._progress = progress  # a ProgressReporter is made where the task runs

    @property
    def min_rows_per_write(self) -> int:
        """Rows per shard."""
        return self._job.shard_rows

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        """Write the shards of one task."""
        began = time.perf_counter()
        # Where no recording had a window, Ray writes one block without rows or columns.
        filled = [block for block in blocks if block.num_rows]
        if not filled:
            return
        table = pa.concat_tables(filled)
        self._job.shared_paths.check()
        written: dict[int, dict[str, float]] = {}
        for number, target in enumerate(self._job.targets):
            rows = rows_of_target(table, number, target.settings.windows.rate_hz)
            if len(rows):
                # This task may have outlived its driver, and another run may have begun.
                check_holder(target.store.root, self._job.run_id)
                name = self._job.shard_name(ctx.task_idx)
                target.store.write_shard(rows, name)
                if self._on_shard is not None:
                    self._on_shard(rows, name)
                written[number] = {"windows_written": len(rows), "shards": 1}
        ProgressReporter(self._progress).add("write", time.perf_counter() - began, written)
