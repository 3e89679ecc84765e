"""The whole flow, arranged with Ray Data. Ray is imported here and nowhere else in this package.

    recordings ─▶ decode (CPU tasks) ─▶ encode (actor pool) ─▶ write (tasks, one shard each)

Each stage is a plain function or class of another module; what follows only says where it runs, and on what.
"""

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyarrow as pa

# Read when Ray is imported. Nothing leaves this machine unasked, and a cluster's nodes may have no way out.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.data
import ray.exceptions

from embedding.decode import Failure, decode
from embedding.errors import RequestError, RunError
from embedding.redact import redact
from embedding.report import Tally
from embedding.resources import Cluster, Plan
from embedding.settings import Job
from embedding.store import Store

# Activations are tens of MB, allocated and freed at every layer. Kept by the process instead of returned to the
# kernel, they are not page-faulted anew each time: 1.7 × for EfficientNet on two cores (docs/decisions.md).
ENCODER_ENV = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
# Blocks in flight are a few hundred MB; Ray's own default, 30 % of the machine, is a laptop's browser.
LOCAL_OBJECT_STORE_BYTES = 2 << 30
POLL_S = 0.5


def embed(recordings: list[pa.Table], job: Job, plan: Plan, on_tally: Callable[[Tally], None]) -> Tally:
    """Embed ``recordings`` (one table per decode task) and return the counts; ``on_tally`` sees them meanwhile.

    Raises:
        RequestError: what an actor found wrong with the request (its weights).
        RunError: the storage or the cluster failed; what is stored stays valid.
    """
    _configure_data(job)
    tally: Any = ray.remote(Tally).options(num_cpus=0).remote()
    with _watching(tally, on_tally), _plain_errors():
        (
            ray.data.from_arrow(recordings)
            .map_batches(
                decode_stage,  # type: ignore[arg-type] — a generator, as map_batches documents
                fn_args=(job, tally),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=plan.decode_cpus,
                concurrency=min(plan.n_decoders, len(recordings)),
            )
            .map_batches(
                EncodeStage,
                fn_constructor_args=(job, plan.device, plan.encoder_threads, tally),
                batch_size=job.batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=plan.n_actors),
                num_cpus=plan.encoder_cpus,
                num_gpus=plan.encoder_gpus,
                runtime_env={"env_vars": ENCODER_ENV},
            )
            .write_datasink(
                WriteStage(job, tally),
                ray_remote_args={"num_cpus": plan.write_cpus},
                concurrency=plan.n_writers,
            )
        )
    return ray.get(tally.snapshot.remote())


def decode_stage(recordings: pa.Table, job: Job, tally: Any) -> Iterator[pa.Table]:
    """Recordings to windows, one decode task."""
    observer = _Observer()
    began = time.perf_counter()
    for windows in decode(recordings, job.settings.windows, job.batch_size, observer):
        observer.flush(job.store, tally, time.perf_counter() - began)
        yield windows
        began = time.perf_counter()
    observer.flush(job.store, tally, time.perf_counter() - began)


class _Observer:
    """Collects what decoding reports between two batches."""

    def __init__(self) -> None:
        self._failures: list[Failure] = []
        self._audio_s = 0.0
        self._without_windows = 0

    def failed(self, failure: Failure) -> None:
        self._failures.append(failure)

    def decoded(self, audio_s: float) -> None:
        self._audio_s += audio_s

    def without_windows(self) -> None:
        self._without_windows += 1

    def flush(self, store: Store, tally: Any, busy_s: float) -> None:
        """Failure rows are stored before the windows that follow them travel on: see store.py."""
        store_failures(self._failures, store, tally)
        tally.add.remote("decode", busy_s, recordings=self._without_windows, audio_s=self._audio_s)
        self.__init__()


def store_failures(failures: list[Failure], store: Store, tally: Any) -> None:
    if failures:
        store.write_failures(failures)
        # Redacted here, too: a node's secrets are in its own environment, not in that of the driver.
        tally.add_failures.remote([(f.file_id, f.kind, f.file, redact(f.message)) for f in failures])


class EncodeStage:
    """Windows to vectors, one actor of the pool: it holds a loaded model."""

    def __init__(self, job: Job, device: str, n_threads: int, tally: Any) -> None:
        # Imported here, not above: torch and avex take seconds and belong to the actors alone.
        from embedding.encoder import Encoder

        self._job = job
        self._tally = tally
        self._refusal: RequestError | None = None
        try:
            self._encoder = Encoder(job.settings, device, n_threads)
        except RequestError as error:
            # An error of an actor's constructor reaches the driver as a text; one of a call, as itself.
            self._refusal = error

    def __call__(self, windows: pa.Table) -> pa.Table:
        from embedding.encoder import encode_table

        if self._refusal is not None:
            raise self._refusal
        began = time.perf_counter()
        vectors, failures = encode_table(self._encoder, windows)
        store_failures(failures, self._job.store, self._tally)
        self._tally.add.remote(
            "encode",
            time.perf_counter() - began,
            windows_encoded=len(windows),
            audio_encoded_s=self._job.settings.windows.covered_s(
                windows["start_time"].to_numpy(), windows["duration"].to_numpy()
            ),
            recordings=int((windows["window_index"].to_numpy() + 1 == windows["n_windows"].to_numpy()).sum()),
        )
        return vectors


class WriteStage(ray.data.Datasink[None]):
    """Vectors to shards, one shard per write task.

    Ray gathers at least ``min_rows_per_write`` rows for a task. A task that is tried again has the same index and so
    overwrites its own shard.
    """

    def __init__(self, job: Job, tally: Any) -> None:
        self._job = job
        self._tally = tally

    @property
    def min_rows_per_write(self) -> int:
        return self._job.shard_rows

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        began = time.perf_counter()
        # Where no recording had a window, Ray writes one block without rows or columns.
        filled = [block for block in blocks if block.num_rows]
        if filled:
            table = pa.concat_tables(filled)
            self._job.store.write_shard(table, f"{self._job.run_id}-{ctx.task_idx:06d}")
            self._tally.add.remote("write", time.perf_counter() - began, windows_written=len(table), shards=1)


def _configure_data(job: Job) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    # One batch of windows, one block: a larger target would merge batches, a smaller one would split them.
    context.target_max_block_size = int(0.8 * job.batch_size * job.settings.windows.length * 4)


@contextmanager
def _core_output_aside() -> Iterator[None]:
    """Keep what C and C++ write to stderr (Ray's core, libmpg123) in a file; show it only if the run dies of a bug.

    Ray 2.60's core complains on the driver's stderr about how Ray Data starts its own actors, past Python's logging
    and whatever RAY_BACKEND_LOG_LEVEL says.
    """
    python_stderr, descriptor = sys.stderr, sys.stderr.fileno()
    sys.stderr.flush()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as aside,
        os.fdopen(os.dup(descriptor), "w", buffering=1) as kept,
    ):
        sys.stderr = kept
        os.dup2(aside.fileno(), descriptor)
        try:
            yield
        except (RequestError, RunError, KeyboardInterrupt):
            raise
        except BaseException:
            aside.seek(0)
            kept.write(redact(aside.read()))
            raise
        finally:
            os.dup2(kept.fileno(), descriptor)
            sys.stderr = python_stderr


@contextmanager
def session(*, verbose: bool) -> Iterator[Cluster]:
    """A connection to the cluster that RAY_ADDRESS names (``ray job submit`` sets it), or to a Ray of our own."""
    address = os.environ.get("RAY_ADDRESS")
    quiet = {} if verbose else {"logging_level": logging.ERROR, "log_to_driver": False}
    local = {} if address else {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES}
    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it logs as an error, it also raises
    with nullcontext() if verbose else _core_output_aside():
        try:
            ray.init(address=address or "local", **quiet, **local)
        except ConnectionError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[-1]
            raise RunError(f"no Ray answers at RAY_ADDRESS={address}: {reason}") from error
        try:
            total = ray.cluster_resources()
            yield Cluster(total.get("CPU", 0), total.get("GPU", 0), total.get("memory", 0))
        finally:
            ray.shutdown()


@contextmanager
def _watching(tally: Any, on_tally: Callable[[Tally], None]) -> Iterator[None]:
    """Call ``on_tally`` with fresh counts every POLL_S, from a thread of its own."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_S):
            try:
                on_tally(ray.get(tally.snapshot.remote(), timeout=30))
            except ray.exceptions.RayError:
                return  # the cluster is going down; the main thread says why

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Give the errors of workers back as what they were there, without Ray's layers of wrapping."""
    try:
        yield
    except Exception as error:
        for inner in _chain(error):
            if isinstance(inner, RequestError | RunError):
                # One line by construction; Ray Data appends a paragraph about its retries.
                raise type(inner)(str(inner).splitlines()[0]) from error
            if isinstance(inner, OSError):
                raise RunError(f"the storage failed: {inner}; run the same command again to go on") from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        # A task's error is raised as a class that is both Ray's and the original's, with Ray's text: `cause` is the
        # original alone.
        cause = getattr(error, "cause", None)
        if cause is None and not isinstance(error, ray.exceptions.RayError):
            yield error
        error = cause or error.__cause__ or error.__context__
