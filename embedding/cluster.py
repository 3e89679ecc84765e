"""The connection to Ray: a session, what its errors mean, and the line between a driver and its workers."""

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

# Read when Ray is imported. Nothing leaves this machine unasked, and a cluster's nodes may have no way out.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from embedding.errors import RequestError, RunError, storage_failure
from embedding.progress import Progress
from embedding.redact import redact
from embedding.report import Tally
from embedding.resources import Cluster

# Blocks in flight are a few hundred MB; Ray's own default, 30 % of the machine, is a laptop's browser.
LOCAL_OBJECT_STORE_BYTES = 2 << 30
POLL_S = 0.5
# Ray ends idle workers beyond one per CPU within a second. Encoders, decoders and writers together are always more, and
# each write and each decode task then paid 1.3 s of a core for a process of its own: 0.67 of the cores' ceiling instead
# of 0.9 (measured 2026-11-21). An environment variable of Ray's own processes, read when they start; not public.
KEPT_WORKERS_PER_CPU = 8
# Pieces of a spread task: enough of them to even out, each worth its some ms.
SPREAD_PIECE = 64


@contextmanager
def session(*, verbose: bool) -> Iterator[Cluster]:
    """A connection to the cluster that RAY_ADDRESS names (``ray job submit`` sets it), or to a Ray of our own."""
    address = os.environ.get("RAY_ADDRESS")
    quiet = {} if verbose else {"logging_level": logging.ERROR, "log_to_driver": False}
    local = {} if address else {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES}
    os.environ.setdefault("RAY_num_workers_soft_limit", str(KEPT_WORKERS_PER_CPU * (os.cpu_count() or 1)))
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


class Line:
    """The driver's end of the line: a ``Progress`` in an actor on the driver's own node, asked every POLL_S."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        self.actor: Any = ray.remote(Progress).options(**options).remote()
        self._before = Tally()  # counted by former processes of the actor
        self._last = Tally(origin=self._before.origin)
        self._asking = threading.Lock()

    def tally(self) -> Tally:
        """Counts of the run so far; those of an actor that died are kept, as far as they were heard."""
        with self._asking:  # else an earlier answer might come later
            return self._heard(ray.get(self.actor.snapshot.remote(), timeout=30))

    def _heard(self, now: Tally) -> Tally:
        if now.origin != self._last.origin:
            self._before = self._before.plus(self._last)
        self._last = now
        return self._before.plus(now)


@contextmanager
def watching(line: Line, on_tally: Callable[[Tally], None], is_stopping: Callable[[], bool]) -> Iterator[None]:
    """Every POLL_S call ``on_tally`` and hand a wish to stop on to the workers, from a thread of its own."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            try:
                if is_stopping():
                    line.actor.stop.remote()
                on_tally(line.tally())
            except ray.exceptions.RayError:
                continue  # it is being started anew, or the cluster is going down and the main thread says why

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def spread(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call ``function`` once per tuple of ``arguments``, on all nodes; results in order (``stored.Each``)."""

    def piece(arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        from embedding.stored import threads

        return list(threads(function, arguments))

    task = ray.remote(piece).options(num_cpus=0.5, scheduling_strategy="SPREAD")
    pieces = [arguments[at : at + SPREAD_PIECE] for at in range(0, len(arguments), SPREAD_PIECE)]
    with plain_errors():
        for results in [task.remote(each) for each in pieces]:
            yield from ray.get(results)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Give the errors of workers back as what they were there, without Ray's layers of wrapping."""
    try:
        yield
    except Exception as error:
        for inner in _chain(error):
            if isinstance(inner, RequestError | RunError):
                # One line by construction; Ray Data appends a paragraph about its retries.
                raise type(inner)(str(inner).splitlines()[0]) from error
            if isinstance(inner, OSError):
                raise storage_failure(inner) from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        # A task's error is raised as a class that is both Ray's and the original's, with Ray's text: `cause` is the
        # original alone.
        cause = getattr(error, "cause", None)
        if cause is None and not isinstance(error, ray.exceptions.RayError):
            yield error
        error = cause or error.__cause__ or error.__context__
