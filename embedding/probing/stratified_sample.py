"""A bounded, stratified sample of rows that arrive in several tables."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass
class StratifiedSample:
    """At most ``limit`` of all rows that are added, in equal numbers of each stratum (``select_balanced``).

    The sample does not depend on the way in which rows are divided into tables.

    Attributes:
        limit: Largest number of rows in the sample.
        rng: Source of random numbers.
        n_added: Number of rows that were added.
    """

    limit: int
    rng: np.random.Generator
    n_added: int = 0
    _tables: list[pa.Table] = field(default_factory=list)
    _n_rows: int = 0  # in the tables
    _n_by_stratum: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # of all rows added

    def add(self, rows: pa.Table, stratum: NDArray[np.int64]) -> None:
        """Add rows to draw from.

        Args:
            rows: The rows.
            stratum: ``[rows]``, the stratum of each row: 0, 1, …
        """
        draw = self.rng.random(len(rows))
        self._tables.append(rows.append_column("stratum", pa.array(stratum)).append_column("draw", pa.array(draw)))
        n_by_stratum = np.bincount(stratum, minlength=len(self._n_by_stratum))
        n_by_stratum[: len(self._n_by_stratum)] += self._n_by_stratum
        self._n_by_stratum = n_by_stratum
        self.n_added += len(rows)
        self._n_rows += len(rows)
        if self._n_rows > 2 * self.limit:
            self._drop_excess()

    def rows(self) -> pa.Table:
        """Return the rows of the sample, in the order in which they were added."""
        self._drop_excess()
        return self._tables[0].drop_columns(["stratum", "draw"])

    def _drop_excess(self) -> None:
        table = pa.concat_tables(self._tables)
        stratum, draw = table["stratum"].to_numpy(), table["draw"].to_numpy()
        kept = table.filter(pa.array(select_balanced(stratum, draw, self.limit, self._n_by_stratum)))
        self._tables, self._n_rows = [kept.combine_chunks()], len(kept)


def select_balanced(
    stratum: NDArray[np.int64], draw: NDArray[np.float64], limit: int, n_by_stratum: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Select the rows with the lowest random numbers of each stratum.

    Each stratum gives the same number of rows, the largest number with at most ``limit`` rows in all; a smaller stratum
    gives all of its rows. More rows can only lower that number, so a row that is not selected now never will be.

    Args:
        stratum: ``[rows]``.
        draw: ``[rows]``, a random number for each row.
        limit: Largest number of rows to select.
        n_by_stratum: Rows of each stratum, including rows that were dropped before; by default the rows in ``stratum``.

    Returns:
        ``[rows]``, true for the rows that are selected.
    """
    order = np.lexsort((draw, stratum))
    n = np.bincount(stratum)
    rank = np.empty(len(order), np.int64)  # within its stratum
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(n) - n, n)
    return rank < _rows_per_stratum(n if n_by_stratum is None else n_by_stratum, limit)


def _rows_per_stratum(n: NDArray[np.int64], limit: int) -> int:
    """Return the largest number, at least 1, for which ``minimum(n, number).sum()`` is at most ``limit``."""
    left = limit
    for at, size in enumerate(sorted(n.tolist())):
        if size * (len(n) - at) > left:
            return max(1, left // (len(n) - at))
        left -= size
    return int(n.max(initial=0))
