"""Sums over the windows of one shard, and of several shards. A shard is read once, some thousand vectors at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding.output.shard_reading import open_shard
from embedding.output.store import embeddings_schema
from embedding.overview.sample_choice import numbers
from embedding.overview.weighted_values import Weighted, rounded, seconds_by_hour
from embedding.schema.batches import WINDOW_COLUMNS
from embedding.schema.vectors import matrix

# A window and the length of its vector.
NORMS = pa.schema([*WINDOW_COLUMNS, ("norm", pa.float64())])
# Of the shortest and of the longest vectors each.
N_EXTREMES = 20
# Rows whose vectors are in memory at a time: 4,096 of 1,280 numbers are 21 MB.
BATCH_ROWS = 4096
# Of a column on disk that are read at a time.
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Sums:
    """Sums over windows and recordings."""

    norms: Weighted  # of all windows with finite vectors
    n_nonfinite: int
    extremes: pa.Table  # NORMS, of the N_EXTREMES shortest and longest, shortest first
    drawn: pa.Table  # WINDOW_COLUMNS and embedding, of the sample
    by_hour: Weighted  # seconds of recordings whose time is known, by hours since 1970
    n_timed: int  # these recordings
    n_untimed: int  # and the others

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self.drawn.schema.field("embedding").type.list_size

    def plus(self, other: "Sums") -> "Sums":
        """Return the sums of both."""
        return Sums(
            self.norms.plus(other.norms),
            self.n_nonfinite + other.n_nonfinite,
            _ends(pa.concat_tables([self.extremes, other.extremes])),
            pa.concat_tables([self.drawn, other.drawn]),
            self.by_hour.plus(other.by_hour),
            self.n_timed + other.n_timed,
            self.n_untimed + other.n_untimed,
        )


def sums_of(uri: str, last_number: np.uint64, recorded_at: Callable[[str], datetime | None]) -> Sums:
    """Return the sums of one shard.

    Args:
        uri: the shard.
        last_number: the largest random number in the sample, from ``sample_choice.last_number``.
        recorded_at: returns the time when a recording began.

    Raises:
        OSError: the shard cannot be read.
        RunError: it is damaged.
    """
    # Without pre_buffer vectors come as a stream, not as a whole column (90 MB); names and keys come before.
    with open_shard(uri, buffer_size=BUFFER_BYTES, pre_buffer=False) as shard:
        names = [name for name, _ in WINDOW_COLUMNS]
        windows = shard.read(columns=names, use_threads=False).replace_schema_metadata(None)
        is_drawn = numbers(windows["file_id"].to_numpy(), windows["window_index"].to_numpy()) <= last_number
        norms, drawn, at = np.empty(len(windows), np.float32), [], 0
        for batch in shard.iter_batches(BATCH_ROWS, columns=["embedding"], use_threads=False):
            rows = slice(at, at := at + len(batch))
            embedding = pa.chunked_array(batch.columns)
            norms[rows] = np.linalg.norm(matrix(embedding), axis=1)
            drawn += embedding.filter(pa.array(is_drawn[rows])).chunks
        dim = shard.schema_arrow.field("embedding").type
    sample = windows.filter(pa.array(is_drawn)).append_column("embedding", pa.chunked_array(drawn, dim))
    finite = np.isfinite(norms)
    named = windows.append_column("norm", pa.array(norms, pa.float64())).filter(pa.array(finite))
    return Sums(
        Weighted.of(rounded(norms[finite])),
        int((~finite).sum()),
        _ends(named),
        sample,
        *_hours(windows, recorded_at),
    )


def nothing() -> Sums:
    """Those of no shard."""
    none = Weighted.of(np.empty(0))
    return Sums(none, 0, NORMS.empty_table(), embeddings_schema(1).empty_table(), none, 0, 0)


def _ends(windows: pa.Table) -> pa.Table:
    """The shortest and the longest (NORMS); ties in the order of their names and times."""
    order = [("norm", "ascending"), ("file", "ascending"), ("window_index", "ascending")]
    at = pc.sort_indices(windows, sort_keys=order).to_numpy()  # type: ignore[attr-defined]
    if len(at) > 2 * N_EXTREMES:
        at = np.concatenate([at[:N_EXTREMES], at[-N_EXTREMES:]])
    return windows.take(pa.array(at))


def _hours(windows: pa.Table, recorded_at: Callable[[str], datetime | None]) -> tuple[Weighted, int, int]:
    """Sum up hours of recordings whose first window is in this shard: a recording in several shards counts once."""
    first = windows.filter(pc.field("window_index") == 0)
    _, at = np.unique(first["file_id"].to_numpy(), return_index=True)
    first = first.take(pa.array(at))
    starts = [recorded_at(file) for file in first["file"].to_pylist()]
    is_timed = np.array([start is not None for start in starts], bool)
    start_s = np.array([start for start in starts if start is not None], "datetime64[s]").astype(np.float64)
    by_hour = seconds_by_hour(start_s, first["duration"].to_numpy()[is_timed])
    return by_hour, int(is_timed.sum()), int((~is_timed).sum())
