"""Sums over the windows of one shard, and of several shards. A shard is read once, some thousand vectors at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.output.shard_reading import open_shard
from embedding.output.store import embeddings_schema
from embedding.overview.sample_choice import hash_windows
from embedding.overview.weighted_values import WeightedValues, round_norms, seconds_by_hour
from embedding.schema.batches import WINDOW_COLUMNS
from embedding.schema.vectors import matrix

# A row per window, with the norm of its vector.
NORMS = pa.schema([*WINDOW_COLUMNS, ("norm", pa.float64())])
# Windows with the smallest norms that are kept, and as many with the largest.
N_EXTREMES = 20
# Rows whose vectors are in memory at a time: 4,096 vectors of 1,280 numbers are 21 MB.
BATCH_ROWS = 4096
# Bytes of a column on disk that are read at a time.
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardSums:
    """Sums over the windows and recordings of one or more shards.

    Attributes:
        norms: Norms of all finite vectors.
        n_nonfinite: Number of vectors that are not finite.
        extremes: The N_EXTREMES windows with the smallest and those with the largest norms (NORMS), smallest first.
        sample: Windows of the sample (WINDOW_COLUMNS and ``embedding``).
        by_hour: Seconds of audio by hours since 1970, of recordings whose start time is known.
        n_timed: Number of recordings whose start time is known.
        n_untimed: Number of recordings whose start time is not known.
    """

    norms: WeightedValues
    n_nonfinite: int
    extremes: pa.Table
    sample: pa.Table
    by_hour: WeightedValues
    n_timed: int
    n_untimed: int

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.sample.schema.field("embedding").type.list_size

    def plus(self, other: "ShardSums") -> "ShardSums":
        """Return the sums over the shards of both."""
        return ShardSums(
            self.norms.plus(other.norms),
            self.n_nonfinite + other.n_nonfinite,
            _select_extremes(pa.concat_tables([self.extremes, other.extremes])),
            pa.concat_tables([self.sample, other.sample]),
            self.by_hour.plus(other.by_hour),
            self.n_timed + other.n_timed,
            self.n_untimed + other.n_untimed,
        )


def sum_shard(
    uri: str,
    largest_hash: np.uint64,
    recorded_at: Callable[[str], datetime | None],
    chosen: NDArray[np.int64] | None = None,
) -> ShardSums:
    """Return the sums of one shard.

    Args:
        uri: The shard.
        largest_hash: The largest hash in the sample, from ``sample_choice.largest_sampled_hash``.
        recorded_at: Returns the time when a recording began, from its name.
        chosen: ``file_id`` of the recordings that count; None: all.

    Raises:
        OSError: The shard cannot be read.
        RunError: The shard is damaged.
    """
    # Without pre_buffer vectors come as a stream, not as a whole column (90 MB); names and keys are read before.
    with open_shard(uri, buffer_size=BUFFER_BYTES, pre_buffer=False) as shard:
        names = [name for name, _ in WINDOW_COLUMNS]
        windows = shard.read(columns=names, use_threads=False).replace_schema_metadata(None)
        hashes = hash_windows(windows["file_id"].to_numpy(), windows["window_index"].to_numpy())
        ids = windows["file_id"].to_numpy()
        is_chosen = np.ones(len(ids), bool) if chosen is None else np.isin(ids, chosen)
        is_sampled = (hashes <= largest_hash) & is_chosen
        norms, sampled, n_read = np.empty(len(windows), np.float32), [], 0
        for batch in shard.iter_batches(BATCH_ROWS, columns=["embedding"], use_threads=False):
            rows = slice(n_read, n_read := n_read + len(batch))
            embedding = pa.chunked_array(batch.columns)
            norms[rows] = np.linalg.norm(matrix(embedding), axis=1)
            sampled += embedding.filter(pa.array(is_sampled[rows])).chunks
        vector_type = shard.schema_arrow.field("embedding").type
    sample = windows.filter(pa.array(is_sampled)).append_column("embedding", pa.chunked_array(sampled, vector_type))
    windows, norms = windows.filter(pa.array(is_chosen)), norms[is_chosen]
    is_finite = np.isfinite(norms)
    with_norms = windows.append_column("norm", pa.array(norms, pa.float64())).filter(pa.array(is_finite))
    return ShardSums(
        WeightedValues.of(round_norms(norms[is_finite])),
        int((~is_finite).sum()),
        _select_extremes(with_norms),
        sample,
        *_sum_hours(windows, recorded_at),
    )


def empty_sums() -> ShardSums:
    """Return the sums of an output without shards."""
    no_values = WeightedValues.of(np.empty(0))
    return ShardSums(no_values, 0, NORMS.empty_table(), embeddings_schema(1).empty_table(), no_values, 0, 0)


def _select_extremes(windows: pa.Table) -> pa.Table:
    """Return the windows with the smallest and the largest norms (NORMS), smallest first.

    Windows with equal norms are in the order of their names and times.
    """
    sort_keys = [("norm", "ascending"), ("file", "ascending"), ("window_index", "ascending")]
    order = pc.sort_indices(windows, sort_keys=sort_keys).to_numpy()  # type: ignore[attr-defined]
    if len(order) > 2 * N_EXTREMES:
        order = np.concatenate([order[:N_EXTREMES], order[-N_EXTREMES:]])
    return windows.take(pa.array(order))


def _sum_hours(windows: pa.Table, recorded_at: Callable[[str], datetime | None]) -> tuple[WeightedValues, int, int]:
    """Return seconds by hour, and the numbers of recordings with and without a start time.

    A recording counts in the shard that holds its first window, so a recording in several shards counts once.
    """
    first_windows = windows.filter(pc.field("window_index") == 0)
    _, positions = np.unique(first_windows["file_id"].to_numpy(), return_index=True)
    recordings = first_windows.take(pa.array(positions))
    starts = [recorded_at(file) for file in recordings["file"].to_pylist()]
    is_timed = np.array([start is not None for start in starts], bool)
    start_s = np.array([start for start in starts if start is not None], "datetime64[s]").astype(np.float64)
    by_hour = seconds_by_hour(start_s, recordings["duration"].to_numpy()[is_timed])
    return by_hour, int(is_timed.sum()), int((~is_timed).sum())
