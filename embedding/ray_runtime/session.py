"""The connection to Ray: a session, what the cluster has, what its errors mean, and work of its own on its nodes."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

# Read when Ray is imported. Nothing leaves this machine unasked, and a cluster's nodes may have no way out.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from embedding.errors import RequestError, RunError, storage_failure
from embedding.planning.placement import STORE_BYTES, ClusterResources
from embedding.ray_runtime import liveness, system_limits
from embedding.redact import redact
from embedding.stopping import kept_handlers

# Blocks in flight are a few hundred MB; Ray's own default, 30 % of the machine, is a laptop's browser.
LOCAL_OBJECT_STORE_BYTES = 2 << 30
# Ray ends idle workers beyond one per CPU within a second. Encoders, decoders and writers together are always more, and
# each write and each decode task then paid 1.3 s of a core for a process of its own: 0.67 of the cores' ceiling instead
# of 0.9 (measured 2026-11-21). An environment variable of Ray's own processes, read when they start; not public.
KEPT_WORKERS_PER_CPU = 8
# For a head that is there.
CONNECT_TIMEOUT_S = 10
# Pieces of a spread task: enough of them to even out, each worth its some ms.
SPREAD_PIECE = 64
# What a task bound to a node ends with that is, or was, lost.
_LOST = (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError)


@contextmanager
def session(*, verbose: bool) -> Iterator[ClusterResources]:
    """A connection to the cluster that RAY_ADDRESS names (``ray job submit`` sets it), or to a Ray of our own."""
    address = os.environ.get("RAY_ADDRESS")
    quiet = {} if verbose else {"logging_level": logging.ERROR, "log_to_driver": False}
    local = {} if address else {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES}
    os.environ.setdefault("RAY_num_workers_soft_limit", str(KEPT_WORKERS_PER_CPU * (os.cpu_count() or 1)))
    _refuse_silence(address)
    if not address:
        system_limits.refuse_low()
    with nullcontext() if verbose else _core_output_aside():
        try:
            with kept_handlers():
                ray.init(address=address or "local", **quiet, **local)
        except ConnectionError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[-1]
            raise RunError(f"no Ray answers at RAY_ADDRESS={address}: {reason}") from error
        try:
            with liveness.watching(_indispensable(address), liveness.end_process):
                yield look(is_own=not address)
        finally:
            ray.shutdown()


def _refuse_silence(address: str | None) -> None:
    """Ray itself waits for minutes for a head that is not there.

    Raises:
        RequestError: the address is that of a dashboard, which ``ray job submit`` wants under the same name.
        RunError: nothing listens at ``host:port``.
    """
    if (address or "").startswith(("http://", "https://")):
        raise RequestError(
            f"RAY_ADDRESS={address} is the address of a dashboard, which only `ray job submit` takes: unset it to run "
            "on this machine, or submit the job"
        )
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdigit():  # none, `auto`, `ray://…`: Ray's own business
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise RunError(f"no Ray answers at RAY_ADDRESS={address}: {error.strerror or error}") from error


def _indispensable(address: str | None) -> list[liveness.Watched]:
    """Processes of Ray without which this driver cannot go on."""
    if (address or "").startswith("ray://"):  # the driver's own Ray is elsewhere
        return []
    context = ray.get_runtime_context()
    found = [liveness.Watched("the head of Ray", context.gcs_address, liveness.HEAD_GONE_AFTER_S)]
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            raylet = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
            found.append(liveness.Watched("Ray's process on this machine", raylet, liveness.RAYLET_GONE_AFTER_S))
    return found


def look(*, is_own: bool) -> ClusterResources:
    """What Ray has at this moment."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_gpus, memory_bytes = (sum(node.get(name, 0) for node in nodes) for name in ("GPU", "memory"))
    cpus = [node["CPU"] for node in nodes if node.get("CPU")]
    store_bytes = min((int(node["object_store_memory"]) for node in nodes if works(node)), default=STORE_BYTES)
    return ClusterResources(sum(cpus), n_gpus, memory_bytes, min(cpus, default=0), len(cpus), store_bytes, is_own)


def works(resources: dict[str, float]) -> bool:
    """Whether a node with these takes any task of ours; a cluster's head may have none."""
    return bool(resources.get("CPU") or resources.get("GPU"))


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


def spread(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call ``function`` once per tuple of ``arguments``, on all nodes; results in order (``stored.Each``)."""

    def piece(arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        from embedding.output.inventory import threads

        return list(threads(function, arguments))

    task = ray.remote(piece).options(num_cpus=0.5, scheduling_strategy="SPREAD")
    pieces = [arguments[at : at + SPREAD_PIECE] for at in range(0, len(arguments), SPREAD_PIECE)]
    with plain_errors():
        for results in [task.remote(each) for each in pieces]:
            yield from ray.get(results)


def on_every_node(function: Callable[[], Any]) -> list[tuple[str, Any]]:
    """What ``function`` gives on each working node, beside the node's name. One that is lost meanwhile says nothing."""

    def there() -> Any:  # Ray takes no methods
        return function()

    task = ray.remote(num_cpus=0, max_retries=0)(there)
    nodes = [node for node in ray.nodes() if node["Alive"] and works(node["Resources"])]
    answers = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    found = []
    with plain_errors():
        for node, answer in zip(nodes, answers, strict=True):
            with suppress(*_LOST):
                found.append((node["NodeManagerHostname"], ray.get(answer)))
    return found


@contextmanager
def plain_errors() -> Iterator[None]:
    """Give the errors of workers back as what they were there, without Ray's layers of wrapping."""
    try:
        yield
    except ray.exceptions.ActorDiedError as error:
        if error.actor_init_failed:
            raise RunError(f"no encoder could load the model, on whichever node: {_last_line(error)}") from error
        raise RunError(
            "the encoders' processes died again and again while they loaded the model: out of memory? Try fewer "
            f"--actors ({str(error).splitlines()[0]})"
        ) from error
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise RunError(
            "a node could not get this job's working directory from Ray, which removes it with the job that brought "
            f"it: change any file in it and submit again ({_last_line(error)})"
        ) from error
    except Exception as error:
        for inner in _chain(error):
            if isinstance(inner, RequestError | RunError):
                # One line by construction; Ray Data appends a paragraph about its retries.
                raise type(inner)(str(inner).splitlines()[0]) from error
            if isinstance(inner, OSError):
                raise storage_failure(inner) from error
        raise


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        # A task's error is raised as a class that is both Ray's and the original's, with Ray's text: `cause` is the
        # original alone.
        cause = getattr(error, "cause", None)
        if cause is None and not isinstance(error, ray.exceptions.RayError):
            yield error
        error = cause or error.__cause__ or error.__context__
