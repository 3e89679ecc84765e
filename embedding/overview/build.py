"""The whole flow: key columns say which windows are drawn, shards are read once, the sample becomes pictures.

spans ─▶ which windows ─▶ shards ─▶ sums, and those windows ─▶ projections, neighbours, colours
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from embedding.errors import RunError, storage_failure
from embedding.output.inventory import READERS, Inventory
from embedding.overview.drawn_sample import Drawn, draw
from embedding.overview.manifest_columns import Columns
from embedding.overview.sample_choice import last_number
from embedding.overview.shard_sums import Sums, nothing, sums_of
from embedding.overview.weighted_values import Fence
from embedding.stopping import thread_pool

# Of the outliers that are named.
MOST_OUTLIERS = 20


@dataclass(frozen=True)
class Overview:
    """What the pictures show."""

    sums: Sums
    known: Columns
    fence: Fence | None  # None where there is no vector
    drawn: Drawn

    @property
    def n_outliers(self) -> int:
        """Windows with norms outside the fence."""
        norms, fence = self.sums.norms, self.fence
        return 0 if fence is None else round(norms.total - norms.between(fence.low, fence.high))

    def outliers(self) -> pa.Table:
        """Of these the furthest from the median (sums.NORMS), first of all."""
        table = self.sums.extremes
        if self.fence is None:
            return table
        away = np.abs(table["norm"].to_numpy() - self.fence.median)
        order = np.argsort(-away, kind="stable")
        return table.take(pa.array(order[away[order] > self.fence.high - self.fence.median][:MOST_OUTLIERS]))


def look(inventory: Inventory, known: Columns, n_drawn: int, count: Callable[[int], None]) -> Overview:
    """Sum up all windows of ``stored``, and draw ``n_drawn`` of them.

    Args:
        count: told how many shards more are read.

    Raises:
        RunError: the storage failed, or a shard is damaged or has vectors of another length.
    """
    sums = _sums(inventory, known, n_drawn, count)
    fence = Fence.of(sums.norms) if len(sums.norms.values) else None
    return Overview(sums, known, fence, draw(sums.drawn, known))


def _sums(inventory: Inventory, known: Columns, n_drawn: int, count: Callable[[int], None]) -> Sums:
    read = partial(sums_of, last_number=last_number(inventory.window_ranges, n_drawn), recorded_at=known.recorded_at)
    total: Sums | None = None
    # As many at once as there are cores: reading is decompressing, and each holds some vectors.
    with thread_pool(min(READERS, os.cpu_count() or 1)) as pool:
        try:
            for uri, sums in zip(inventory.shards, pool.map(read, inventory.shards), strict=True):
                if total is not None and sums.dim != total.dim:
                    raise RunError(f"{uri} holds vectors of {sums.dim} numbers, others hold {total.dim}")
                total = sums if total is None else total.plus(sums)
                count(1)
        except OSError as error:
            raise storage_failure(error) from error
    return total or nothing()
