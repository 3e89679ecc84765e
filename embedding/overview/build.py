"""The steps from an output to its overview.

1. The key columns of all shards decide which windows are in the sample.
2. Each shard is read once, for the sums over its windows and for its windows in the sample.
3. The sample is projected to the plane, with neighbours, clusters and colours.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.errors import RunError, storage_failure
from embedding.listing.manifest_columns import ManifestColumns
from embedding.output.inventory import READERS, Inventory
from embedding.overview.drawn_sample import DrawnSample, project_sample
from embedding.overview.sample_choice import largest_sampled_hash
from embedding.overview.shard_sums import ShardSums, empty_sums, sum_shard
from embedding.overview.weighted_values import UsualRange
from embedding.stopping import thread_pool

# Outliers in the table of the page.
MOST_OUTLIERS = 20


@dataclass(frozen=True)
class Overview:
    """The numbers behind the page of an output.

    Attributes:
        sums: Sums over all windows.
        manifest_columns: Columns of manifests.
        usual_norms: Range of usual norms; None where there is no finite vector.
        sample: The sample as it is drawn.
    """

    sums: ShardSums
    manifest_columns: ManifestColumns
    usual_norms: UsualRange | None
    sample: DrawnSample

    @property
    def n_outliers(self) -> int:
        """Number of windows with unusual norms."""
        norms, usual = self.sums.norms, self.usual_norms
        return 0 if usual is None else round(norms.total - norms.between(usual.low, usual.high))

    def outliers(self) -> pa.Table:
        """Return windows with unusual norms (shard_sums.NORMS), the furthest from the median first."""
        table, usual = self.sums.extremes, self.usual_norms
        if usual is None:
            return table
        distance = np.abs(table["norm"].to_numpy() - usual.median)
        order = np.argsort(-distance, kind="stable")
        return table.take(pa.array(order[distance[order] > usual.high - usual.median][:MOST_OUTLIERS]))


def build_overview(
    inventory: Inventory,
    manifest_columns: ManifestColumns,
    sample_size: int,
    count: Callable[[int], None],
    chosen: NDArray[np.int64] | None = None,
) -> Overview:
    """Sum up all windows of an output, and project a sample.

    Args:
        inventory: The inventory of the output.
        manifest_columns: Columns of manifests.
        sample_size: Windows in the sample.
        count: Called with the number of shards that were read since its last call.
        chosen: ``file_id`` of the recordings that count; None: all.

    Raises:
        RunError: The storage failed, or a shard is damaged or has vectors of another length.
    """
    ranges = inventory.window_ranges
    if chosen is not None:
        ranges = ranges.filter(pa.array(np.isin(ranges["file_id"].to_numpy(), chosen)))
    largest_hash = largest_sampled_hash(ranges, sample_size)
    read = partial(sum_shard, largest_hash=largest_hash, recorded_at=manifest_columns.recorded_at, chosen=chosen)
    sums = _sum_shards(inventory, read, count)
    usual_norms = UsualRange.of(sums.norms) if len(sums.norms.values) else None
    return Overview(sums, manifest_columns, usual_norms, project_sample(sums.sample, manifest_columns))


def _sum_shards(inventory: Inventory, read: Callable[[str], ShardSums], count: Callable[[int], None]) -> ShardSums:
    total: ShardSums | None = None
    # At most one thread per core: reading is mostly decompression, and each thread holds some vectors.
    with thread_pool(min(READERS, os.cpu_count() or 1)) as pool:
        try:
            for uri, sums in zip(inventory.shards, pool.map(read, inventory.shards), strict=True):
                if total is not None and sums.dim != total.dim:
                    raise RunError(f"{uri} holds vectors of {sums.dim} numbers, other shards hold {total.dim}")
                total = sums if total is None else total.plus(sums)
                count(1)
        except OSError as error:
            raise storage_failure(error) from error
    return total or empty_sums()
