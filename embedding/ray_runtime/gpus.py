"""GPUs as Ray numbers them: the GPU of a process, and broken GPUs that no encoder may get."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Time for Ray to assign the GPUs of a node to this run. The encoders of the leg before are ending then; on a busy
# machine of two cores four actors took 34 s to start (2026-11-25).
HOLD_S = 120.0


@dataclass(frozen=True)
class Gpu:
    """The GPUs of one encoder, usually a single one.

    Attributes:
        node_id: Ray's identifier of the node.
        host: Name of the machine.
        numbers: Numbers of the GPUs, as Ray assigned them to the process.
    """

    node_id: str
    host: str
    numbers: tuple[str, ...]

    def __str__(self) -> str:
        return f"GPU {', '.join(self.numbers)} of {self.host}"


def own_gpu() -> Gpu:
    """Return the GPUs that Ray has assigned to this process."""
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    (host,) = (node["NodeManagerHostname"] for node in ray.nodes() if node["NodeID"] == node_id)
    return Gpu(node_id, host, tuple(context.get_accelerator_ids().get("GPU", ())))


class _Occupant:
    """An actor that holds a GPU and never uses it: starting CUDA on a broken GPU may hang."""

    def numbers(self) -> list[str]:
        return ray.get_runtime_context().get_accelerator_ids().get("GPU", [])


def hold_gpus(broken: Collection[Gpu]) -> dict[Gpu, list[Any]]:
    """Hold broken GPUs, so that Ray gives them to no encoder.

    Ray has no way to ask for a GPU by its number. So this function takes GPUs of the node until the broken GPUs are
    among them, and returns the others.

    Args:
        broken: The GPUs to hold.

    Returns:
        For each GPU that is held, the actors that hold it as long as they are referenced. A GPU of a lost node needs
        no actors. A GPU that did not become free in time is missing.
    """
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    held: dict[Gpu, list[Any]] = {gpu: [] for gpu in broken if gpu.node_id not in nodes}
    for node_id in {gpu.node_id for gpu in broken} & nodes.keys():
        by_number = _take(node_id, {number for gpu in broken if gpu.node_id == node_id for number in gpu.numbers})
        for gpu in broken:
            if gpu.node_id == node_id and all(number in by_number for number in gpu.numbers):
                held[gpu] = [by_number[number] for number in gpu.numbers]
    return held


def _take(node_id: str, numbers: Collection[str]) -> dict[str, Any]:
    """Return actors that hold GPUs of a node, by number: ``numbers`` as far as they were free, and perhaps others."""
    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1, "scheduling_strategy": here}
    until_s = time.monotonic() + HOLD_S
    taken: dict[str, Any] = {}
    while not taken.keys() >= set(numbers):
        occupant: Any = ray.remote(_Occupant).options(**options).remote()
        try:
            (number,) = ray.get(occupant.numbers.remote(), timeout=max(0.0, until_s - time.monotonic()))
        except ray.exceptions.RayError:  # no more GPU is free, or the node was lost meanwhile
            break
        taken[number] = occupant
    return taken
