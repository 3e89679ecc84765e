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
# avex and torch imported, a model loaded and activations at work: at most 1.9 GB resident (measured 2026-11-20).
ENCODER_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True)
class Cluster:
    """What Ray says there is, or could be once the autoscaler has acted."""

    n_cpus: float
    n_gpus: float
    memory_bytes: float


@dataclass(frozen=True)
class Plan:
    """What each stage asks for. ``encoder_threads`` are torch's, per actor."""

    device: str  # cpu or cuda
    n_actors: int
    encoder_cpus: float
    encoder_gpus: float
    encoder_threads: int
    decode_cpus: float
    n_decoders: int  # decode tasks at once
    write_cpus: float
    n_writers: int


def plan(cluster: Cluster, device: str, actors: int | str) -> Plan:
    """Shares for every stage such that all of them can run at once.

    Raises:
        RequestError: a device or a number of actors that the cluster cannot give.
    """
    n_cpus, n_gpus = cluster.n_cpus, int(cluster.n_gpus)
    if device == "cuda" and n_gpus < 1:
        raise RequestError(
            f"--device: cuda needs a GPU, and Ray sees none ({n_cpus:g} CPUs); use --device cpu, or add a GPU node"
        )
    if n_cpus < DECODE_CPUS + WRITE_CPUS:
        raise RequestError(f"Ray offers {n_cpus:g} CPUs, and decoding alone needs some: start Ray with --num-cpus")
    if device == "cuda" or (device == AUTO and n_gpus):
        return _on_gpus(n_cpus, n_gpus, actors)
    return _on_cpus(n_cpus, cluster.memory_bytes, actors)


def _on_gpus(n_cpus: float, n_gpus: int, actors: int | str) -> Plan:
    n_actors = n_gpus if actors == AUTO else int(actors)
    if n_actors > n_gpus:
        raise RequestError(f"--actors: {n_actors} actors need {n_actors} GPUs, and Ray sees {n_gpus}")
    # The actor's thread feeds the GPU; everything else of the machine decodes.
    encoder_cpus = min(1.0, 0.25 * n_cpus / n_actors)
    left = n_cpus - encoder_cpus * n_actors
    decode_cpus = min(1.0, left / 2)
    n_decoders = max(1, math.floor((left - WRITE_CPUS) / decode_cpus))
    return Plan("cuda", n_actors, encoder_cpus, 1.0, 1, decode_cpus, n_decoders, WRITE_CPUS, max(1, n_gpus))


def _on_cpus(n_cpus: float, memory_bytes: float, actors: int | str) -> Plan:
    n_cores = max(1, math.floor(n_cpus))
    carried = max(1, min(n_cores, int(memory_bytes // ENCODER_MEMORY_BYTES)))
    n_actors = carried if actors == AUTO else int(actors)
    if n_actors > n_cores:
        raise RequestError(f"--actors: {n_actors} actors need a CPU core each, and Ray sees {n_cpus:g}")
    threads = n_cores // n_actors
    encoder_cpus = ENCODER_CPU_SHARE * n_cpus / n_actors
    left = n_cpus * (1 - ENCODER_CPU_SHARE)
    write_cpus = min(WRITE_CPUS, left / 4)
    decode_cpus = min(DECODE_CPUS, left / 2)
    n_decoders = max(1, min(n_cores, math.floor((left - write_cpus) / decode_cpus)))
    return Plan("cpu", n_actors, encoder_cpus, 0.0, threads, decode_cpus, n_decoders, write_cpus, max(1, n_cores // 4))
