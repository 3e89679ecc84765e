"""Sizes of the pieces of a run: batches, shards, decode tasks, legs. Arithmetic only.

Pieces must be few, because each costs the driver time; and small, because each is lost as a whole and fills memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from embedding.config import AUTO, EmbedConfig
from embedding.encoding.settings import Settings
from embedding.listing.listing import n_bytes as bytes_of
from embedding.planning.placement import ClusterResources, Placement, UsefulWorkers
from embedding.schema.batches import by_rate

# Least and most windows per batch, unless a run is long. On a CPU, by architecture: from a second of work to some
# seconds, multiples of the passes that encoders measure. On a GPU: enough for any micro-batch.
BATCH_ON_CPU = {"efficientnet": (16, 64), "beats": (4, 16)}
BATCH_FALLBACK = (4, 8)
BATCH_ON_GPU = (256, 256)
# On a CPU each encoder gets at least this many batches, as far as the least size allows: at the end of a run encoders
# wait for the last batch.
LEAST_BATCHES_PER_ENCODER = 8
# A batch costs the driver 15 ms, whatever its size (benchmarks/results/scale.md). So a long run has batches of up to
# this many times the windows, ...
BATCH_GROWTH = 4
# ... as long as each encoder gets this many batches: otherwise one encoder works at the end while the others wait; ...
BATCHES_PER_ENCODER = 128
# ... and a node's object store holds this many: each decoder of the node makes a batch while others wait for an
# encoder.
BATCHES_PER_STORE = 16

# Starting an encoder on a CPU takes 4 s of a core, and a decoder 2 s (docs/decisions.md, "A short run starts
# fewer encoders"). A run starts one for each of these amounts of work: fewer are done sooner, with more threads.
WINDOWS_PER_ENCODER = {"efficientnet": 512, "beats": 48}
WINDOWS_FALLBACK = 48
BYTES_PER_DECODER = 32 << 20

# A run has about this many shards, within these numbers of rows: an interruption then costs about 1/256 of the work.
SHARDS_PER_RUN = 256
SHARD_ROWS = (256, 32_768)
# A shard is not larger than this, because a write task holds it several times. With all layers of BEATs a row is 43 kB.
SHARD_BYTES = 256 << 20

# The work of a decode task: enough to amortise a task (some ms), little enough that cores finish together.
TASK_BYTES = 64 << 20
TASK_RECORDINGS = 256
# Tasks become longer where a leg would have more than this many: each takes some 10 kB and 1 ms of the driver before
# the first task runs.
MAX_TASKS = 16_384

# The work of a leg. Until a leg ends Ray keeps some 13 kB on the driver for every batch, and the name of every
# recording in the driver's object store; so a long run has several legs. Encoders load again for each leg, which takes
# half a minute after hours of work.
LEG_BATCHES = 100_000
LEG_RECORDINGS = 1_000_000


@dataclass(frozen=True)
class WorkSizes:
    """Sizes of the pieces of a run.

    Attributes:
        batch_size: Windows per batch.
        shard_rows: Rows per shard.
        n_batches: Estimated number of batches.
    """

    batch_size: int
    shard_rows: int
    n_batches: int


def count_useful_workers(targets: Sequence[Settings], audio_s: float, n_bytes: int) -> UsefulWorkers:
    """Return the numbers of workers on CPUs for which a run has enough work.

    Args:
        targets: The settings of each target.
        audio_s: Estimated seconds of audio in the run.
        n_bytes: Bytes of its recordings.
    """
    n_encoders = 0.0
    for settings in targets:
        n_windows = audio_s * settings.windows.rate_hz / settings.windows.hop
        n_encoders += n_windows / WINDOWS_PER_ENCODER.get(settings.model.architecture, WINDOWS_FALLBACK)
    return UsefulWorkers(max(1, math.ceil(n_encoders)), max(1, math.ceil(n_bytes / BYTES_PER_DECODER)))


def plan_sizes(
    config: EmbedConfig, targets: Sequence[Settings], placement: Placement, nodes: ClusterResources, audio_s: float
) -> WorkSizes:
    """Choose the sizes that the request leaves open.

    Args:
        config: The request; sizes that it names are kept.
        targets: The settings of each target.
        placement: CPUs and GPUs of each stage.
        nodes: The resources that Ray has.
        audio_s: Estimated seconds of audio in the run.
    """
    specs = by_rate(settings.windows for settings in targets)
    n_windows = int(audio_s * specs[0].rate_hz / specs[0].hop)
    window_bytes = sum(spec.n_bytes for spec in specs)
    batch_size, shard_rows = config.batch_size, config.shard_rows
    if batch_size == AUTO:
        limits = [batch_limits(placement.device, settings.model.architecture) for settings in targets]
        least, most = (min(sizes) for sizes in zip(*limits, strict=True))
        per_encoder = n_windows // placement.n_actors
        most_in_store = nodes.store_bytes // (BATCHES_PER_STORE * window_bytes)
        growth = np.clip(min(per_encoder // BATCHES_PER_ENCODER, most_in_store) // most, 1, BATCH_GROWTH)
        batch_size = growth * np.clip(per_encoder // LEAST_BATCHES_PER_ENCODER // least * least, least, most)
    if shard_rows == AUTO:
        most = SHARD_BYTES // sum(settings.row_bytes for settings in targets)
        shard_rows = np.clip(min(n_windows // SHARDS_PER_RUN, most), *SHARD_ROWS)
    return WorkSizes(int(batch_size), int(shard_rows), n_windows // int(batch_size))


def batch_limits(device: str, architecture: str) -> tuple[int, int]:
    """Return the least and the most windows per batch of a run that is not long."""
    return BATCH_ON_GPU if device == "cuda" else BATCH_ON_CPU.get(architecture, BATCH_FALLBACK)


def split_into_legs(recordings: pa.Table, batches_per_byte: float) -> list[pa.Table]:
    """Split the recordings of a run into legs of about the same work.

    Args:
        recordings: The recordings, with a column ``size``.
        batches_per_byte: Estimated number of batches per byte of recordings.

    Returns:
        A table for each leg.
    """
    sizes = np.maximum(recordings["size"].to_numpy(), 0)
    load = np.cumsum(sizes * (batches_per_byte / LEG_BATCHES) + 1 / LEG_RECORDINGS)
    n_legs = int(np.ceil(load[-1] - 1e-9))
    ends = [*np.searchsorted(load, load[-1] / n_legs * np.arange(1, n_legs), side="right"), len(recordings)]
    return [recordings.slice(start, end - start) for start, end in pairwise([0, *ends]) if end > start]


def split_into_tasks(leg: pa.Table, n_decoders: int) -> list[pa.Table]:
    """Split the recordings of a leg into decode tasks of about TASK_BYTES, enough of them that no decoder is idle.

    Args:
        leg: The recordings, with a column ``size``.
        n_decoders: Decode tasks at once.

    Returns:
        A table for each task.
    """
    n_tasks = max(4 * n_decoders, MAX_TASKS)
    task_bytes = max(TASK_BYTES, bytes_of(leg) // n_tasks)
    most = int(np.clip(-(-len(leg) // (4 * n_decoders)), 1, max(TASK_RECORDINGS, -(-len(leg) // n_tasks))))
    tables, start, n_bytes = [], 0, 0
    for row, size in enumerate(leg["size"].to_numpy()):
        if row > start and (row - start == most or n_bytes + size > task_bytes):
            tables.append(leg.slice(start, row - start))
            start, n_bytes = row, 0
        n_bytes += max(int(size), 0)
    return [*tables, leg.slice(start)]
