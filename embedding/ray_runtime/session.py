"""The connection to Ray: to a running cluster, or to a Ray that is started for this process."""

import gc
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

# Ray reads this variable when it is imported. Without it Ray reports usage to its makers; a cluster's nodes may have no
# way out of their network.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from embedding.errors import RequestError, RunError
from embedding.planning.placement import STORE_BYTES, ClusterResources
from embedding.quiet import native_output_hidden
from embedding.ray_runtime.liveness import (
    HEAD_GONE_AFTER_S,
    RAYLET_GONE_AFTER_S,
    RequiredProcess,
    end_process,
    watch_processes,
)
from embedding.ray_runtime.system_limits import raise_limits
from embedding.stopping import preserved_handlers

# Blocks in flight are a few hundred MB; Ray's own default, 30 % of the machine, is too much for a laptop in use.
LOCAL_OBJECT_STORE_BYTES = 2 << 30
# Ray ends idle workers beyond one per CPU within a second. Encoders, decoders and writers together are always more, and
# each write and each decode task then paid 1.3 s of a core for a process of its own: 0.67 of the cores' ceiling instead
# of 0.9 (measured 2026-11-21). An environment variable of Ray's own processes, read when they start; not public.
KEPT_WORKERS_PER_CPU = 8
CONNECT_TIMEOUT_S = 10


@contextmanager
def session(*, verbose: bool) -> Iterator[ClusterResources]:
    """Connect to Ray while the block runs.

    A Ray to which this process is connected already is used and left running. Otherwise the environment variable
    RAY_ADDRESS names a cluster (``ray job submit`` sets the variable); without it a Ray is started on this machine, and
    ended with the block.

    Args:
        verbose: Show what Ray logs.

    Yields:
        The resources that Ray has now.

    Raises:
        RequestError: RAY_ADDRESS is no address of a cluster, or a limit of the system is too low.
        RunError: No Ray answers at RAY_ADDRESS.
    """
    hidden = nullcontext if verbose else native_output_hidden
    if ray.is_initialized():
        # A run that failed may have left its encoders in a cycle of references that Ray Data's thread closed after the
        # error was raised. They keep their CPUs until Python collects them, and this run would wait for these CPUs.
        gc.collect()
        with hidden():
            yield cluster_resources(is_own=False)
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet = {} if verbose else {"logging_level": logging.ERROR, "log_to_driver": False}
    local = {} if address else {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES}
    os.environ.setdefault("RAY_num_workers_soft_limit", str(KEPT_WORKERS_PER_CPU * (os.cpu_count() or 1)))
    _refuse_unreachable(address)
    if not address:
        raise_limits()
    with hidden():
        try:
            with preserved_handlers():
                ray.init(address=address or "local", **quiet, **local)
        except ConnectionError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[-1]
            raise RunError(f"no Ray answers at RAY_ADDRESS={address}: {reason}") from error
        try:
            with watch_processes(_required_processes(address), end_process):
                yield cluster_resources(is_own=not address)
        finally:
            ray.shutdown()


def _refuse_unreachable(address: str | None) -> None:
    """Refuse an address at once where Ray itself would wait for minutes.

    Raises:
        RequestError: The address is that of a dashboard, which ``ray job submit`` reads from the same variable.
        RunError: Nothing listens at ``host:port``.
    """
    if (address or "").startswith(("http://", "https://")):
        raise RequestError(
            f"RAY_ADDRESS={address} is the address of a dashboard, which only `ray job submit` takes: unset it to run "
            "on this machine, or submit the job"
        )
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdigit():  # no address, `auto` or `ray://…`, which Ray checks itself
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise RunError(f"no Ray answers at RAY_ADDRESS={address}: {error.strerror or error}") from error


def _required_processes(address: str | None) -> list[RequiredProcess]:
    """Return the processes of Ray without which this driver cannot go on."""
    if (address or "").startswith("ray://"):  # the driver's own Ray is elsewhere
        return []
    context = ray.get_runtime_context()
    found = [RequiredProcess("the head of Ray", context.gcs_address, HEAD_GONE_AFTER_S)]
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            raylet = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
            found.append(RequiredProcess("Ray's process on this machine", raylet, RAYLET_GONE_AFTER_S))
    return found


def cluster_resources(*, is_own: bool) -> ClusterResources:
    """Return the resources that Ray has at this moment.

    Args:
        is_own: The Ray was started by this process.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_gpus, memory_bytes = (sum(node.get(name, 0) for node in nodes) for name in ("GPU", "memory"))
    cpus = [node["CPU"] for node in nodes if node.get("CPU")]
    store_bytes = min((int(node["object_store_memory"]) for node in nodes if takes_tasks(node)), default=STORE_BYTES)
    return ClusterResources(sum(cpus), n_gpus, memory_bytes, min(cpus, default=0), len(cpus), store_bytes, is_own)


def takes_tasks(resources: dict[str, float]) -> bool:
    """Return whether a node with these resources takes tasks; the head of a cluster may take none."""
    return bool(resources.get("CPU") or resources.get("GPU"))
