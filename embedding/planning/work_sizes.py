"""How large the pieces of a run are: batches, shards, decode tasks, legs. Arithmetic only.

Pieces must be few, since the driver pays for each; and small, since each is lost as a whole and fills memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from embedding.config import AUTO, EmbedConfig
from embedding.encoding.settings import Settings
from embedding.listing.listing import n_bytes as bytes_of
from embedding.planning.placement import ClusterResources, Placement
from embedding.schema.batches import by_rate

# Windows handed to an encoder at once: on a CPU some seconds of work, on a GPU enough for any micro-batch. What is not
# listed: BATCH_FALLBACK.
BATCH_ON_CPU = {"efficientnet": 64, "beats": 8}
BATCH_FALLBACK = 8
BATCH_ON_GPU = 256
# A batch costs the driver 15 ms, whatever is in it (benchmarks/results/scale.md): of a long run batches are up to so
# many times as large, ...
BATCH_GROWTH = 4
# ... as long as each encoder has so many of them, or at the end of the run one would work while the others wait; ...
BATCHES_PER_ENCODER = 128
# ... and a node's object store holds so many: each of its decoders makes one while others wait for their encoder.
BATCHES_PER_STORE = 16

# About this many shards per run, within these rows: an interruption then costs about 1/256 of the work.
SHARDS_PER_RUN = 256
SHARD_ROWS = (256, 32_768)
# And no more than this, which a write task holds several times over: of BEATs with all layers a row is 43 kB.
SHARD_BYTES = 256 << 20

# A decode task's work: enough to amortise a task (some ms), little enough that cores finish together.
TASK_BYTES = 64 << 20
TASK_RECORDINGS = 256
# Where that makes more tasks than these in a leg, they become longer: each takes some 10 kB and 1 ms of the driver
# before the first one runs.
MAX_TASKS = 16_384

# A leg's work. Ray keeps some 13 kB of every batch on the driver, and of every recording its name in the driver's store
# of objects, until the last one is done; so a long run goes in legs. Between two of them the encoders load anew, which
# is half a minute after hours.
LEG_BATCHES = 100_000
LEG_RECORDINGS = 1_000_000


@dataclass(frozen=True)
class WorkSizes:
    """Of a run: ``batch_size`` in windows, ``shard_rows``, and about how many batches there are."""

    batch_size: int
    shard_rows: int
    n_batches: int


def plan_sizes(
    config: EmbedConfig, targets: Sequence[Settings], placement: Placement, nodes: ClusterResources, audio_s: float
) -> WorkSizes:
    """For a run over about ``audio_s`` seconds of audio; what ``config`` asks for stands."""
    specs = by_rate(settings.windows for settings in targets)
    n_windows = int(audio_s * specs[0].rate_hz / specs[0].hop)
    window_bytes = sum(spec.n_bytes for spec in specs)
    batch_size, shard_rows = config.batch_size, config.shard_rows
    if batch_size == AUTO:
        least = min(least_batch(placement.device, settings.model.architecture) for settings in targets)
        most_in_store = nodes.store_bytes // (BATCHES_PER_STORE * window_bytes)
        batch_size = grown(least, min(n_windows // (placement.n_actors * BATCHES_PER_ENCODER), most_in_store))
    if shard_rows == AUTO:
        most = SHARD_BYTES // sum(settings.row_bytes for settings in targets)
        shard_rows = np.clip(min(n_windows // SHARDS_PER_RUN, most), *SHARD_ROWS)
    return WorkSizes(int(batch_size), int(shard_rows), n_windows // int(batch_size))


def least_batch(device: str, architecture: str) -> int:
    """Windows per batch where a run is short."""
    return BATCH_ON_GPU if device == "cuda" else BATCH_ON_CPU.get(architecture, BATCH_FALLBACK)


def grown(least: int, most: int) -> int:
    """The largest batch up to ``most`` windows that is a multiple of ``least``, and not too large."""
    return least * int(np.clip(most // least, 1, BATCH_GROWTH))


def legs(todo: pa.Table, batches_per_byte: float) -> list[pa.Table]:
    """One table per leg of a run over ``todo``, all of them about as much work."""
    load = np.cumsum(np.maximum(todo["size"].to_numpy(), 0) * (batches_per_byte / LEG_BATCHES) + 1 / LEG_RECORDINGS)
    n_legs = int(np.ceil(load[-1] - 1e-9))
    ends = [*np.searchsorted(load, load[-1] / n_legs * np.arange(1, n_legs), side="right"), len(todo)]
    return [todo.slice(start, end - start) for start, end in pairwise([0, *ends]) if end > start]


def tasks(leg: pa.Table, n_decoders: int) -> list[pa.Table]:
    """One table per decode task: about TASK_BYTES each, and enough of them that no decoder is idle early."""
    n_tasks = max(4 * n_decoders, MAX_TASKS)
    task_bytes = max(TASK_BYTES, bytes_of(leg) // n_tasks)
    most = int(np.clip(-(-len(leg) // (4 * n_decoders)), 1, max(TASK_RECORDINGS, -(-len(leg) // n_tasks))))
    tables, start, n_bytes = [], 0, 0
    for at, n in enumerate(leg["size"].to_numpy()):
        if at > start and (at - start == most or n_bytes + n > task_bytes):
            tables.append(leg.slice(start, at - start))
            start, n_bytes = at, 0
        n_bytes += max(int(n), 0)
    return [*tables, leg.slice(start)]
