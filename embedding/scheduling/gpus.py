"""GPUs as Ray numbers them: which one a process has, and how one that is broken is kept from the next encoder."""

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# For Ray to give all GPUs of a node to us. Encoders of the leg before are ending then.
SET_ASIDE_S = 60.0


@dataclass(frozen=True)
class Gpu:
    """The GPUs of one encoder, mostly one; ``numbers`` as Ray gave them to the process."""

    node_id: str
    host: str
    numbers: tuple[str, ...]

    def __str__(self) -> str:
        return f"GPU {', '.join(self.numbers)} of {self.host}"


def own_gpu() -> Gpu:
    """Return the GPUs that Ray has given to this process."""
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    (host,) = (node["NodeManagerHostname"] for node in ray.nodes() if node["NodeID"] == node_id)
    return Gpu(node_id, host, tuple(context.get_accelerator_ids().get("GPU", ())))


class _Occupant:
    """An actor that holds a GPU and never touches it: a broken one may hang whoever starts CUDA on it."""

    def numbers(self) -> list[str]:
        return ray.get_runtime_context().get_accelerator_ids().get("GPU", [])


def set_aside(broken: Collection[Gpu], n_held: int = 0) -> list[Any]:
    """Hold broken GPUs, so that Ray gives them to no encoder.

    Ray lets nobody choose a GPU by its number, so all free GPUs of a node are taken, and the sound ones given back.

    Args:
        broken: GPUs that are to be held. A node that is gone, or whose GPUs do not become free, is passed over.
        n_held: how many earlier calls hold.

    Returns:
        Actors; a GPU is held as long as its actor is referenced.
    """
    held: list[Any] = []
    for node in ray.nodes():
        numbers = {number for gpu in broken if gpu.node_id == node["NodeID"] for number in gpu.numbers}
        if not numbers or not node["Alive"]:
            continue
        n_gpus = int(node["Resources"].get("GPU", 0))
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1, "scheduling_strategy": here}
        occupants: list[Any] = [ray.remote(_Occupant).options(**options).remote() for _ in range(n_gpus)]
        answers = {occupant.numbers.remote(): occupant for occupant in occupants}
        ready, _ = ray.wait(list(answers), num_returns=max(1, n_gpus - n_held), timeout=SET_ASIDE_S)
        held += [answers[answer] for answer in ready if numbers.intersection(_numbers(answer))]
    return held


def _numbers(answer: ray.ObjectRef) -> Iterable[str]:
    with suppress(ray.exceptions.RayError):  # its node was lost meanwhile, and the GPU with it
        return ray.get(answer)
    return ()
