"""The whole flow, arranged with Ray Data.

    recordings ─▶ decode (CPU tasks) ─▶ encode (actor pool) ─▶ write (tasks, one shard each)

Each stage is a plain function or class of another module; what follows only says where it runs, and on what.
"""

import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from embedding.decoding.decode import Observer, decode
from embedding.decoding.isolated import decode_apart
from embedding.encoding.batch_turns import BatchTurns
from embedding.encoding.checkpoints import ensure_local
from embedding.encoding.settings import Settings
from embedding.errors import RunError
from embedding.job import Job, Target
from embedding.output.claim import check_holder
from embedding.planning.placement import ClusterResources, Placement
from embedding.ray_runtime import datasets
from embedding.ray_runtime.gpus import own_gpu
from embedding.ray_runtime.progress_actor import ENCODE_TRIES
from embedding.ray_runtime.progress_channel import ProgressChannel, Reporter
from embedding.ray_runtime.session import plain_errors
from embedding.schema.batches import WANTED, of_target, targets_in
from embedding.schema.failures import Failure

if TYPE_CHECKING:
    from embedding.encoding.devices import Device
    from embedding.encoding.encoder import Encoder

# The bytes of checkpoints in Ray, by their digests; of random weights there are none.
Weights = dict[str, ray.ObjectRef]

# Deaths of encoders in a row while they load, after which it is not bad luck.
ENCODER_STARTS = 20


def embed(
    recordings: list[pa.Table],
    job: Job,
    plan: Placement,
    cluster: ClusterResources,
    line: ProgressChannel,
    *,
    weights: Weights | None = None,
    verbose: bool = False,
) -> None:
    """Embed ``recordings`` (one table per decode task): a leg of a run.

    Args:
        weights: ``share_weights``, for nodes that do not have the checkpoints.
        verbose: let Ray Data speak for itself.

    Raises:
        RequestError: what an actor found wrong with the request (its weights).
        RunError: the storage or the cluster failed; what is stored stays valid.
    """
    _configure_data(job, plan, cluster, verbose=verbose)
    line.begin_leg()
    n_decoders = None if plan.may_grow else min(plan.n_decoders, len(recordings))
    with plain_errors():
        (
            # Not from_arrow, which runs a task per table to ask for its length: 10 s and 170 MB per 10⁶ recordings.
            ray.data.from_blocks(recordings)
            .map_batches(
                decode_stage,  # type: ignore[arg-type] — a generator, as map_batches documents
                fn_args=(job, line.actor),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=plan.decode_cpus,
                compute=ray.data.TaskPoolStrategy(size=n_decoders),
            )
            .map_batches(
                EncodeStage,
                fn_constructor_args=(job, plan, line.actor, weights),
                batch_size=job.batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    size=plan.n_actors,
                    max_concurrent_calls_per_actor=plan.encoder_calls,
                    enable_true_multi_threading=plan.encoder_calls > 1,
                ),
                num_cpus=plan.encoder_cpus,
                num_gpus=plan.encoder_gpus,
            )
            .write_datasink(
                WriteStage(job, line.actor),
                ray_remote_args={"num_cpus": plan.write_cpus},
                concurrency=plan.n_writers,
            )
        )


def decode_stage(recordings: pa.Table, job: Job, progress: Any) -> Iterator[pa.Table]:
    """Recordings to windows, one decode task.

    Ray tries a task again whose process died, without end. From the second try on decoding happens apart, where a
    recording that ends its process is found out.
    """
    job.shared_paths.check()
    report = Reporter(progress)
    if report.is_stopping():  # of a leg that ends early thousands of tasks may still come
        return
    observer = _Observer()
    decoding = decode if report.begin_task() == 1 else decode_apart
    began = time.perf_counter()
    for windows in decoding(recordings, job.windows, job.batch_size, observer):
        observer.flush(job, report, time.perf_counter() - began)
        yield windows
        if report.is_stopping():
            return
        began = time.perf_counter()
    observer.flush(job, report, time.perf_counter() - began)


class _Observer(Observer):
    """Collects what decoding reports between two batches."""

    def __init__(self) -> None:
        self._failures: list[tuple[int, Failure]] = []
        self._unchanged: list[tuple[int, int]] = []
        self._audio_s = 0.0
        self._read_bytes = 0
        self._without_windows = 0

    def failed(self, failure: Failure, wanted: int) -> None:
        self._failures += [(target, failure) for target in targets_in(wanted)]

    def unchanged(self, file_id: int, wanted: int) -> None:
        self._unchanged.append((file_id, wanted))

    def decoded(self, audio_s: float, n_bytes: int) -> None:
        self._audio_s += audio_s
        self._read_bytes += max(n_bytes, 0)

    def without_windows(self) -> None:
        self._without_windows += 1

    def flush(self, job: Job, report: Reporter, busy_s: float) -> None:
        """Failure rows are stored before the windows that follow them travel on: see store.py."""
        store_failures(self._failures, job, report)
        if self._unchanged:
            report.unchanged(self._unchanged)
        report.add(
            "decode",
            busy_s,
            recordings=self._without_windows,
            read_bytes=self._read_bytes,
            audio_s=self._audio_s,
        )
        self.__init__()


def store_failures(failures: list[tuple[int, Failure]], job: Job, report: Reporter) -> None:
    """Each with its target."""
    for at, target in enumerate(job.targets):
        target.store.write_failures((failure for of_target, failure in failures if of_target == at), job.run_id)
    if failures:
        report.failed(failures)


def share_weights(targets: Sequence[Target]) -> Weights:
    """For nodes that do not have the checkpoints: one of them gets them from the driver's, others from it."""
    checkpoints = [target.settings.checkpoint for target in targets]
    return {each.digest: ray.put(np.fromfile(Path(each.path), np.uint8)) for each in checkpoints if each.path}


class EncodeStage:
    """Windows to vectors, one actor of the pool: it holds a loaded model for each target.

    On a GPU two threads call it at once, so that one batch is read and written while the GPU computes the other.
    """

    def __init__(self, job: Job, plan: Placement, progress: Any, weights: Weights | None) -> None:
        self._job = job
        self._report = Reporter(progress)
        self._failure: Exception | None = None
        self._encoders: list[Encoder] | None = None
        self._exiting = threading.Lock()
        # Ray starts an actor that died anew, and gives it the same windows, without end.
        self._tries = self._report.open_batches()
        self._turns = BatchTurns(self._tries)
        try:
            job.shared_paths.check()
            # Else the leg ends, perhaps because of this encoder's own GPU.
            if not self._report.is_stopping():
                self._encoders = self._load(plan, weights or {})
        except (OSError, ray.exceptions.RayError):
            raise  # of this node, or of one that is gone: Ray starts another encoder, perhaps elsewhere
        except Exception as error:  # noqa: BLE001 — raised by the first call
            # An error of an actor's constructor reaches the driver as a text, after ENCODER_STARTS of them; one of a
            # call, as itself.
            self._failure = self._explain_or_exit(error)

    def _load(self, plan: Placement, weights: Weights) -> "list[Encoder]":
        # Imported here, not above: torch and avex take seconds and belong to the actors alone.
        from embedding.encoding.encoder import load_encoders

        settings = [_with_own_weights(target.settings, weights) for target in self._job.targets]
        device = self.open_device(plan, [each.precision for each in settings])
        encoders = load_encoders(settings, device, plan.encoder_threads)
        warm_up_s = sum(encoder.warm_up(self._job.batch_size) for encoder in encoders)
        self._report.encoder_ready()
        if device.is_gpu:
            self._report.add("warm_up", warm_up_s)
        return encoders

    @staticmethod
    def open_device(plan: Placement, precisions: Sequence[str]) -> "Device":
        """Return the device of this process; tests and benchmarks override it with a simulated one."""
        from embedding.encoding.devices import open_device

        return open_device(plan.device, precisions, plan.encoder_gpus)

    def __call__(self, windows: pa.Table) -> pa.Table:
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
        report = self._report
        with self._turns.turn(batch):
            report.begin_batch(batch, len(windows) / self._job.batch_size)
            began = time.perf_counter()
            try:
                vectors, failures = encode_batch(self._encoders, windows, report.is_stopping)
            except RuntimeError as error:
                if (explained := self._explain_or_exit(error)) is error:
                    raise
                raise explained from error
            store_failures(failures, self._job, report)
            report.end_batch(batch)
        report.add(
            "encode",
            self._turns.count_busy_s(began),
            _encoded(vectors, self._job),
            recordings=int((vectors["window_index"].to_numpy() + 1 == vectors["n_windows"].to_numpy()).sum()),
        )
        return vectors

    def _explain_or_exit(self, error: Exception) -> Exception:
        """Return what to raise for ``error``. Where the GPU has failed, this process ends instead.

        A process cannot use a GPU again that failed in it; Ray starts another process, and gives it the open batches.
        """
        if not isinstance(error, RuntimeError):
            return error
        from embedding.encoding.devices import is_device_failure, is_out_of_memory

        if is_device_failure(error):
            self._exiting.acquire()  # for good: a fault shows in both threads, and counts once
            self._report.gpu_failed(own_gpu(), error, self._turns.active)
            os._exit(1)
        if is_out_of_memory(error):
            return RunError(
                f"{own_gpu()} has too little memory for the model and one window: give each encoder more of it "
                "(--gpus-per-actor), cut shorter windows, or see what else uses it"
            )
        return error


def _encoded(vectors: pa.Table, job: Job) -> dict[int, dict[str, float]]:
    """What to count of a batch, by target."""
    start_s, duration_s = vectors["start_time"].to_numpy(), vectors["duration"].to_numpy()
    counts = {}
    for target, spec in enumerate(job.windows):
        own = (vectors[WANTED[0]].to_numpy() >> target & 1).astype(bool)
        audio_s = spec.covered_s(start_s[own], duration_s[own])
        counts[target] = {"windows_encoded": int(own.sum()), "audio_encoded_s": audio_s}
    return counts


def _with_own_weights(settings: Settings, weights: Weights) -> Settings:
    """The same with the checkpoint as it lies on this node."""
    digest = settings.checkpoint.digest
    if digest not in weights:
        return settings
    return replace(settings, checkpoint=ensure_local(settings.checkpoint, lambda: ray.get(weights[digest])))


def _name_of(windows: pa.Table) -> str:
    return f"window {windows['window_index'][0]} of {windows['file'][0]}"


class WriteStage(ray.data.Datasink[None]):
    """Vectors to shards, one shard per write task and target.

    Ray gathers at least ``min_rows_per_write`` rows for a task. A task that is tried again has the same index and so
    overwrites its own shard.
    """

    def __init__(self, job: Job, progress: Any) -> None:
        self._job = job
        self._progress = progress  # a Reporter is made where the task runs

    @property
    def min_rows_per_write(self) -> int:
        return self._job.shard_rows

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        began = time.perf_counter()
        # Where no recording had a window, Ray writes one block without rows or columns.
        filled = [block for block in blocks if block.num_rows]
        if not filled:
            return
        table = pa.concat_tables(filled)
        self._job.shared_paths.check()
        written: dict[int, dict[str, float]] = {}
        for at, target in enumerate(self._job.targets):
            rows = of_target(table, at, target.settings.windows.rate_hz)
            if len(rows):
                # This task may have outlived its driver, and another run may have begun.
                check_holder(target.store.root, self._job.run_id)
                target.store.write_shard(rows, f"{self._job.shard_prefix}-{ctx.task_idx:06d}")
                written[at] = {"windows_written": len(rows), "shards": 1}
        Reporter(self._progress).add("write", time.perf_counter() - began, written)


def _configure_data(job: Job, plan: Placement, cluster: ClusterResources, *, verbose: bool) -> None:
    if not verbose:
        # It takes one decode task for one batch; a task yields as many as its recordings have.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
    context = datasets.context(verbose=verbose)
    # One batch of windows, one block: a larger target would merge batches, a smaller one would split them.
    context.target_max_block_size = int(0.8 * job.batch_size * job.window_bytes)
    # An encoder whose process dies while it loads ends a run, unless it is replaced. One that comes up proves that they
    # can, and the count begins anew.
    context.max_consecutive_actor_init_deaths = ENCODER_STARTS
    # Ray Data asks the autoscaler for more GPUs than its fixed pool of actors can use, unless told where to end.
    context.execution_options.resource_limits = ray.data.ExecutionResources(gpu=plan.n_actors * plan.encoder_gpus)
    if not cluster.is_own:
        # It ends a run without progress for 30 minutes; spot machines may take longer to come. The console says so.
        context.execution_no_progress_timeout_s = -1
