"""CPUs and GPUs of each stage, computed from what the cluster has. Arithmetic only; ``ray_runtime`` asks Ray.

Ray starts a task only where enough CPUs are free, and waits silently otherwise. Encoder actors hold their CPUs until
the end, so the CPUs that they leave must be enough for one decode task and one write task, on one core as on a
thousand.
"""

import math
from dataclasses import dataclass

from embedding.config import AUTO
from embedding.errors import RequestError

# An encoder on a CPU uses its core fully. It reserves a little less, so that decoding (a few percent of the work for
# these models) and writing fit beside it: Ray's CPUs are a number for planning, not a limit.
ENCODER_CPU_SHARE = 0.75
DECODE_CPUS = 0.125
WRITE_CPUS = 0.0625
# An encoder on a GPU reserves no CPU: decode tasks that started first would keep it waiting, with its GPU idle. The
# encoder's thread runs on what decode tasks leave of their cores.
DECODE_CPUS_BESIDE_GPUS = 0.9
# While a GPU computes one batch, the next batch is read and the batch before is turned into a table.
CALLS_ON_GPU = 2
# Decode tasks that are planned for each GPU of a node that is still to come: such a node has some cores, too.
DECODERS_PER_GPU = 8
# avex and torch imported, a model loaded and activations at work: at most 1.9 GB resident (measured 2026-11-20).
ENCODER_MEMORY_BYTES = 2 << 30

# Size of the object store of nodes that are still to come, as cluster.yaml starts them.
STORE_BYTES = 8_000_000_000


@dataclass(frozen=True)
class ClusterResources:
    """The resources that Ray has now. A cluster may have others later.

    Attributes:
        n_cpus: CPUs of all nodes.
        n_gpus: GPUs of all nodes.
        memory_bytes: Memory of all nodes.
        smallest_node_cpus: CPUs of the smallest node that has any.
        n_nodes: Number of nodes that have CPUs.
        store_bytes: Size of the smallest object store of a node.
        is_own: This process started the Ray, on this machine, so that its resources stay the same.
    """

    n_cpus: float
    n_gpus: float
    memory_bytes: float
    smallest_node_cpus: float
    n_nodes: int = 1
    store_bytes: int = STORE_BYTES
    is_own: bool = True


@dataclass(frozen=True)
class Placement:
    """CPUs and GPUs of each stage, and its number of workers.

    Attributes:
        device: cpu or cuda.
        n_actors: Encoders.
        encoder_cpus: CPUs that an encoder reserves.
        encoder_gpus: GPUs that an encoder reserves; may be a fraction.
        encoder_threads: Threads of an encoder.
        decode_cpus: CPUs that a decode task reserves.
        n_decoders: Decode tasks at once; on a cluster approximate.
        write_cpus: CPUs that a write task reserves.
        n_writers: Write tasks at once.
        encoder_calls: Batches that an encoder has at once.
        may_grow: As many decode tasks run as fit, also on nodes that come later.
        may_wait: Some encoders wait for nodes that are still to come.
    """

    device: str
    n_actors: int
    encoder_cpus: float
    encoder_gpus: float
    encoder_threads: int
    decode_cpus: float
    n_decoders: int
    write_cpus: float
    n_writers: int
    encoder_calls: int = 1
    may_grow: bool = False
    may_wait: bool = False

    @property
    def workers(self) -> dict[str, int]:
        """Number of workers by stage; a stage is missing where new nodes may add workers."""
        decoders = {} if self.may_wait else {"decode": self.n_decoders}
        return {"encode": self.n_actors, "write": self.n_writers} | decoders


@dataclass(frozen=True)
class UsefulWorkers:
    """Numbers of workers on CPUs for which a run has enough work to be worth their start.

    Attributes:
        n_encoders: Encoders.
        n_decoders: Decode tasks at once.
    """

    n_encoders: float = math.inf
    n_decoders: float = math.inf


def plan_placement(
    cluster: ClusterResources,
    device: str,
    actors: int | str,
    gpus_per_actor: float = 1.0,
    *,
    n_models: int = 1,
    useful: UsefulWorkers = UsefulWorkers(),
) -> Placement:
    """Divide the cluster between the stages, so that all of them can run at once.

    More actors than fit now are allowed on a cluster: its autoscaler starts nodes for actors that wait.

    Args:
        cluster: The resources that Ray has.
        device: cpu, cuda or auto.
        actors: Number of encoders, or auto: as many as fit.
        gpus_per_actor: GPUs of an encoder; may be a fraction.
        n_models: Models that each encoder loads.
        useful: Workers for which there is enough work.

    Raises:
        RequestError: The cluster does not have the device, or not enough of it.
    """
    n_cpus = cluster.n_cpus
    if actors == AUTO and not n_cpus and not cluster.is_own:
        raise RequestError(
            "--actors: this cluster has no worker yet, so auto cannot choose a number: say how many encoders to ask "
            "its autoscaler for, and on what (--actors 8 --device cuda)"
        )
    if device == "cuda" and not cluster.n_gpus and (cluster.is_own or actors == AUTO):
        way_out = "or add a GPU node" if cluster.is_own else "or say how many to wait for, with --actors"
        raise RequestError(
            f"--device: cuda needs a GPU, and Ray sees none ({n_cpus:g} CPUs); use --device cpu, {way_out}"
        )
    if cluster.is_own and n_cpus < DECODE_CPUS + WRITE_CPUS:
        raise RequestError(f"Ray has {n_cpus:g} CPUs, too few for decoding: start Ray with --num-cpus")
    if device == "cuda" or (device == AUTO and cluster.n_gpus):
        return _place_on_gpus(cluster, actors, gpus_per_actor)
    return _place_on_cpus(cluster, actors, n_models, useful)


def count_encoders_on_gpus(n_gpus: float, gpus_per_actor: float) -> int:
    """Return the number of encoders that fit on ``n_gpus`` GPUs, with ``gpus_per_actor`` GPUs each."""
    # An encoder's fraction is of one GPU: three encoders of a third fill a GPU, two of 0.4 leave a fifth unused.
    per_gpu = math.floor(1 / gpus_per_actor + 1e-9)
    return int(n_gpus) * per_gpu if per_gpu else int(n_gpus // gpus_per_actor)


def _place_on_gpus(cluster: ClusterResources, actors: int | str, gpus_per_actor: float) -> Placement:
    n_that_fit = count_encoders_on_gpus(cluster.n_gpus, gpus_per_actor)
    n_actors = n_that_fit if actors == AUTO else int(actors)
    if n_actors > n_that_fit and cluster.is_own:
        raise RequestError(
            f"--actors: {n_actors} actors need {n_actors * gpus_per_actor:g} GPUs, and Ray sees {cluster.n_gpus:g}"
        )
    if not n_actors:
        raise RequestError(f"--gpus-per-actor: {gpus_per_actor:g} GPUs an actor, and Ray sees {cluster.n_gpus:g}")
    scale = _cpu_scale(cluster)
    n_decoders = math.floor((cluster.n_cpus - WRITE_CPUS) / DECODE_CPUS_BESIDE_GPUS)
    if n_actors > n_that_fit:
        n_decoders = max(n_decoders, DECODERS_PER_GPU * math.ceil(n_actors * gpus_per_actor))
    return Placement(
        device="cuda",
        n_actors=n_actors,
        encoder_cpus=0.0,
        encoder_gpus=gpus_per_actor,
        encoder_threads=1,
        encoder_calls=CALLS_ON_GPU,
        decode_cpus=DECODE_CPUS_BESIDE_GPUS * scale,
        n_decoders=max(1, n_decoders),
        write_cpus=WRITE_CPUS * scale,
        n_writers=max(1, math.ceil(n_actors * gpus_per_actor)),
        may_grow=not cluster.is_own,
        may_wait=n_actors > n_that_fit,
    )


def _place_on_cpus(cluster: ClusterResources, actors: int | str, n_models: int, useful: UsefulWorkers) -> Placement:
    n_cores = max(1, math.floor(cluster.n_cpus))
    n_that_fit = max(1, min(n_cores, int(cluster.memory_bytes // (n_models * ENCODER_MEMORY_BYTES))))
    n_actors = int(min(n_that_fit, useful.n_encoders)) if actors == AUTO else int(actors)
    if n_actors > n_cores and cluster.is_own:
        raise RequestError(f"--actors: {n_actors} actors need a CPU core each, and Ray sees {cluster.n_cpus:g}")
    # The threads of an actor are on one node, and all actors of a node must fit on it: an actor that does not fit would
    # wait for ever.
    actors_per_node = math.ceil(n_actors / max(1, cluster.n_nodes))
    threads = max(1, math.floor(cluster.smallest_node_cpus) // actors_per_node)
    scale = _cpu_scale(cluster)
    cpus_left = max(1.0, cluster.n_cpus) - n_actors * ENCODER_CPU_SHARE * threads
    n_decoders = min(n_cores, math.floor((cpus_left - WRITE_CPUS) / DECODE_CPUS))
    n_decoders = max(1, n_decoders, n_actors if n_actors > n_cores else 0)
    return Placement(
        device="cpu",
        n_actors=n_actors,
        encoder_cpus=ENCODER_CPU_SHARE * threads * scale,
        encoder_gpus=0.0,
        encoder_threads=threads,
        decode_cpus=DECODE_CPUS * scale,
        n_decoders=int(min(n_decoders, useful.n_decoders)),
        write_cpus=WRITE_CPUS * scale,
        n_writers=max(1, max(n_cores, n_actors) // 4),
        may_grow=not cluster.is_own and n_decoders <= useful.n_decoders,
        may_wait=n_actors > n_cores,
    )


def _cpu_scale(cluster: ClusterResources) -> float:
    """Return the factor of all CPU shares: below 1 on a Ray of our own with less than one CPU."""
    return min(1.0, cluster.n_cpus) if cluster.is_own else 1.0
