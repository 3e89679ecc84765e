"""How many CPUs and GPUs each stage asks for, from what the cluster has. Arithmetic only; Ray is asked elsewhere.

Ray places a task only where its CPUs are free, and waits in silence where they are not. Encoder actors never give
theirs back, so what they leave over must be enough for one decode and one write task, on one core as on a thousand.
"""

import math
from dataclasses import dataclass

from embedding.config import AUTO
from embedding.errors import RequestError

# An encoder on a CPU works with its core's full time, but is booked a little less, so that decoding (a few percent of
# the work for these models) and writing fit beside it. Ray's CPUs are bookkeeping, not a limit.
ENCODER_CPU_SHARE = 0.75
DECODE_CPUS = 0.125
WRITE_CPUS = 0.0625
# An encoder on a GPU asks for no CPU: decode tasks that came first would keep it waiting for one, with its GPU idle.
# What its thread needs is what decode tasks there leave of their cores.
DECODE_CPUS_BESIDE_GPUS = 0.9
# While a GPU computes one batch, the next is brought to it and the one before turned into a table.
CALLS_ON_GPU = 2
# Decode tasks that are expected with a GPU that is not there yet: a node has some cores beside it.
DECODERS_PER_GPU = 8
# avex and torch imported, a model loaded and activations at work: at most 1.9 GB resident (measured 2026-11-20).
ENCODER_MEMORY_BYTES = 2 << 30

# The object store of nodes that are still to come: as cluster.yaml starts them.
STORE_BYTES = 8_000_000_000


@dataclass(frozen=True)
class ClusterResources:
    """What Ray has at this moment. Only a Ray of our own (``is_own``) is sure to have the same later.

    ``node_cpus`` are those of its smallest node that has any, ``n_nodes`` counts these, and ``store_bytes`` is the
    smallest object store of theirs.
    """

    n_cpus: float
    n_gpus: float
    memory_bytes: float
    node_cpus: float
    n_nodes: int = 1
    store_bytes: int = STORE_BYTES
    is_own: bool = True


@dataclass(frozen=True)
class Placement:
    """What each stage asks for. ``encoder_threads`` are the encoder's, per actor."""

    device: str  # cpu or cuda
    n_actors: int
    encoder_cpus: float
    encoder_gpus: float
    encoder_threads: int
    decode_cpus: float
    n_decoders: int  # decode tasks at once; on a cluster, about so many
    write_cpus: float
    n_writers: int
    encoder_calls: int = 1  # batches that an encoder has at once
    may_grow: bool = False  # as many decode tasks as find a place, also on nodes that come later
    may_wait: bool = False  # for nodes that are not there yet

    @property
    def workers(self) -> dict[str, int]:
        """Number of workers by stage; a stage is missing where new nodes may add workers."""
        decoders = {} if self.may_wait else {"decode": self.n_decoders}
        return {"encode": self.n_actors, "write": self.n_writers} | decoders


def plan_placement(
    cluster: ClusterResources, device: str, actors: int | str, gpus_per_actor: float = 1.0, *, n_models: int = 1
) -> Placement:
    """Shares for every stage such that all of them can run at once.

    Of a cluster, other than of a Ray of our own, more actors may be asked for than it carries now: an autoscaler is
    told by their waiting what to bring.

    Raises:
        RequestError: a device or a number of actors that the cluster cannot give.
    """
    n_cpus = cluster.n_cpus
    if actors == AUTO and not n_cpus and not cluster.is_own:
        raise RequestError(
            "--actors: this cluster has no worker yet, so auto has nothing to go by: say how many encoders to ask its "
            "autoscaler for, and on what (--actors 8 --device cuda)"
        )
    if device == "cuda" and not cluster.n_gpus and (cluster.is_own or actors == AUTO):
        way_out = "or add a GPU node" if cluster.is_own else "or say how many to wait for, with --actors"
        raise RequestError(
            f"--device: cuda needs a GPU, and Ray sees none ({n_cpus:g} CPUs); use --device cpu, {way_out}"
        )
    if cluster.is_own and n_cpus < DECODE_CPUS + WRITE_CPUS:
        raise RequestError(f"Ray offers {n_cpus:g} CPUs, and decoding alone needs some: start Ray with --num-cpus")
    if device == "cuda" or (device == AUTO and cluster.n_gpus):
        return _on_gpus(cluster, actors, gpus_per_actor)
    return _on_cpus(cluster, actors, n_models)


def encoders_on(n_gpus: float, gpus_per_actor: float) -> int:
    """Return how many encoders find a place on ``n_gpus`` GPUs."""
    # A share of a GPU is of one GPU: of three thirds none is left over, of two 0.4 a fifth is.
    per_gpu = math.floor(1 / gpus_per_actor + 1e-9)
    return int(n_gpus) * per_gpu if per_gpu else int(n_gpus // gpus_per_actor)


def _on_gpus(cluster: ClusterResources, actors: int | str, gpus_per_actor: float) -> Placement:
    carried = encoders_on(cluster.n_gpus, gpus_per_actor)
    n_actors = carried if actors == AUTO else int(actors)
    if n_actors > carried and cluster.is_own:
        raise RequestError(
            f"--actors: {n_actors} actors need {n_actors * gpus_per_actor:g} GPUs, and Ray sees {cluster.n_gpus:g}"
        )
    if not n_actors:
        raise RequestError(f"--gpus-per-actor: {gpus_per_actor:g} GPUs an actor, and Ray sees {cluster.n_gpus:g}")
    few = min(1.0, cluster.n_cpus) if cluster.is_own else 1.0  # of a Ray with half a CPU all shares are halved
    n_decoders = math.floor((cluster.n_cpus - WRITE_CPUS) / DECODE_CPUS_BESIDE_GPUS)
    if n_actors > carried:
        n_decoders = max(n_decoders, DECODERS_PER_GPU * math.ceil(n_actors * gpus_per_actor))
    return Placement(
        device="cuda",
        n_actors=n_actors,
        encoder_cpus=0.0,
        encoder_gpus=gpus_per_actor,
        encoder_threads=1,
        encoder_calls=CALLS_ON_GPU,
        decode_cpus=DECODE_CPUS_BESIDE_GPUS * few,
        n_decoders=max(1, n_decoders),
        write_cpus=WRITE_CPUS * few,
        n_writers=max(1, math.ceil(n_actors * gpus_per_actor)),
        may_grow=not cluster.is_own,
        may_wait=n_actors > carried,
    )


def _on_cpus(cluster: ClusterResources, actors: int | str, n_models: int) -> Placement:
    n_cores = max(1, math.floor(cluster.n_cpus))
    carried = max(1, min(n_cores, int(cluster.memory_bytes // (n_models * ENCODER_MEMORY_BYTES))))
    n_actors = carried if actors == AUTO else int(actors)
    if n_actors > n_cores and cluster.is_own:
        raise RequestError(f"--actors: {n_actors} actors need a CPU core each, and Ray sees {cluster.n_cpus:g}")
    # Threads are of one node, and all actors of a node must fit on it, or one would wait for ever.
    a_node = math.ceil(n_actors / max(1, cluster.n_nodes))
    threads = max(1, math.floor(cluster.node_cpus) // a_node)
    few = min(1.0, cluster.n_cpus) if cluster.is_own else 1.0
    left = max(1.0, cluster.n_cpus) - n_actors * ENCODER_CPU_SHARE * threads
    n_decoders = min(n_cores, math.floor((left - WRITE_CPUS) / DECODE_CPUS))
    return Placement(
        device="cpu",
        n_actors=n_actors,
        encoder_cpus=ENCODER_CPU_SHARE * threads * few,
        encoder_gpus=0.0,
        encoder_threads=threads,
        decode_cpus=DECODE_CPUS * few,
        n_decoders=max(1, n_decoders, n_actors if n_actors > n_cores else 0),
        write_cpus=WRITE_CPUS * few,
        n_writers=max(1, max(n_cores, n_actors) // 4),
        may_grow=not cluster.is_own,
        may_wait=n_actors > n_cores,
    )
