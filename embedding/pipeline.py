"""The whole flow, arranged with Ray Data.

    recordings ─▶ decode (CPU tasks) ─▶ encode (actor pool) ─▶ write (tasks, one shard each)

Each stage is a plain function or class of another module; what follows only says where it runs, and on what.
"""

import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from embedding.decoding.apart import decode_apart
from embedding.decoding.decode import Failure, Observer, decode
from embedding.encoding.checkpoints import keep
from embedding.errors import RequestError, RunError
from embedding.output.claim import check_holder
from embedding.scheduling import data
from embedding.scheduling.cluster import plain_errors
from embedding.scheduling.line import Line, Reporter
from embedding.scheduling.progress import ENCODE_TRIES
from embedding.scheduling.resources import Cluster, Plan
from embedding.settings import Job, Settings

# Deaths of encoders in a row while they load, after which it is not bad luck.
ENCODER_STARTS = 20


def embed(
    recordings: list[pa.Table],
    job: Job,
    plan: Plan,
    cluster: Cluster,
    line: Line,
    *,
    weights: ray.ObjectRef | None = None,
    verbose: bool = False,
) -> None:
    """Embed ``recordings`` (one table per decode task): a leg of a run.

    Args:
        weights: ``share_weights``, for nodes that do not have the checkpoint.
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
                fn_constructor_args=(job, plan.device, plan.encoder_threads, line.actor, weights),
                batch_size=job.batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=plan.n_actors),
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
    observer = _Observer()
    decoding = decode if report.begin_task() == 1 else decode_apart
    began = time.perf_counter()
    for windows in decoding(recordings, job.settings.windows, job.batch_size, observer):
        observer.flush(job, report, time.perf_counter() - began)
        yield windows
        if report.is_stopping():
            return
        began = time.perf_counter()
    observer.flush(job, report, time.perf_counter() - began)


class _Observer(Observer):
    """Collects what decoding reports between two batches."""

    def __init__(self) -> None:
        self._failures: list[Failure] = []
        self._unchanged: list[int] = []
        self._audio_s = 0.0
        self._read_bytes = 0
        self._without_windows = 0

    def failed(self, failure: Failure) -> None:
        self._failures.append(failure)

    def unchanged(self, file_id: int) -> None:
        self._unchanged.append(file_id)

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


def store_failures(failures: list[Failure], job: Job, report: Reporter) -> None:
    if failures:
        job.store.write_failures(failures, job.run_id)
        report.failed(failures)


def share_weights(settings: Settings) -> ray.ObjectRef | None:
    """The checkpoint's bytes, for nodes that do not have it: one of them gets it from the driver's, others from it."""
    path = settings.checkpoint.path
    return None if path is None else ray.put(np.fromfile(Path(path), np.uint8))


class EncodeStage:
    """Windows to vectors, one actor of the pool: it holds a loaded model."""

    def __init__(self, job: Job, device: str, n_threads: int, progress: Any, weights: ray.ObjectRef | None) -> None:
        # Imported here, not above: torch and avex take seconds and belong to the actors alone.
        from embedding.encoding.encoder import Encoder

        self._job = job
        self._report = Reporter(progress)
        self._refusal: RequestError | RunError | None = None
        # Ray starts an actor that died anew, and gives it the same windows, without end.
        self._fatal = self._report.fatal_batches()
        try:
            job.shared_paths.check()
            self._encoder = Encoder(_with_own_weights(job, weights).settings, device, n_threads)
            self._report.encoder_ready()
        except (RequestError, RunError) as error:
            # An error of an actor's constructor reaches the driver as a text; one of a call, as itself.
            self._refusal = error

    def __call__(self, windows: pa.Table) -> pa.Table:
        from embedding.encoding.encoder import encode_table

        if self._refusal is not None:
            raise self._refusal
        batch = _name_of(windows)
        if batch in self._fatal:
            raise RunError(
                f"the encoder's process died {ENCODE_TRIES} times over the windows from {batch} on: out of memory? "
                "Try fewer --actors or a smaller --batch-size"
            )
        report = self._report
        report.begin_batch(batch, len(windows) / self._job.batch_size)
        began = time.perf_counter()
        vectors, failures = encode_table(self._encoder, windows, report.is_stopping)
        store_failures(failures, self._job, report)
        report.end_batch(batch)
        report.add(
            "encode",
            time.perf_counter() - began,
            windows_encoded=len(vectors),
            audio_encoded_s=self._job.settings.windows.covered_s(
                vectors["start_time"].to_numpy(), vectors["duration"].to_numpy()
            ),
            recordings=int((vectors["window_index"].to_numpy() + 1 == vectors["n_windows"].to_numpy()).sum()),
        )
        return vectors


def _with_own_weights(job: Job, weights: ray.ObjectRef | None) -> Job:
    """The same job with the checkpoint as it lies on this node."""
    if weights is None:
        return job
    checkpoint = keep(job.settings.checkpoint, lambda: ray.get(weights))
    return replace(job, settings=replace(job.settings, checkpoint=checkpoint))


def _name_of(windows: pa.Table) -> str:
    return f"window {windows['window_index'][0]} of {windows['file'][0]}"


class WriteStage(ray.data.Datasink[None]):
    """Vectors to shards, one shard per write task.

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
        # This task may have outlived its driver, and another run may have begun.
        check_holder(self._job.store.root, self._job.run_id)
        self._job.store.write_shard(table, f"{self._job.shard_prefix}-{ctx.task_idx:06d}")
        report = Reporter(self._progress)
        report.add("write", time.perf_counter() - began, windows_written=len(table), shards=1)


def _configure_data(job: Job, plan: Plan, cluster: Cluster, *, verbose: bool) -> None:
    if not verbose:
        # It takes one decode task for one batch; a task yields as many as its recordings have.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
    context = data.context(verbose=verbose)
    # One batch of windows, one block: a larger target would merge batches, a smaller one would split them.
    context.target_max_block_size = int(0.8 * job.batch_size * job.settings.window_bytes)
    # An encoder whose process dies while it loads ends a run, unless it is replaced. One that comes up proves that they
    # can, and the count begins anew.
    context.max_consecutive_actor_init_deaths = ENCODER_STARTS
    # Ray Data asks the autoscaler for more GPUs than its fixed pool of actors can use, unless told where to end.
    context.execution_options.resource_limits = ray.data.ExecutionResources(gpu=plan.n_actors * plan.encoder_gpus)
    if not cluster.is_own:
        # It ends a run without progress for 30 minutes; spot machines may take longer to come. The console says so.
        context.execution_no_progress_timeout_s = -1
