"""A bounded sample of rows that come one table after the other."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass
class Sample:
    """At most ``limit`` rows of all that are added: by ``balanced``, however they are spread over tables."""

    limit: int
    rng: np.random.Generator
    n_seen: int = 0
    _tables: list[pa.Table] = field(default_factory=list)
    _n_rows: int = 0
    _n_by_stratum: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # of all rows so far

    def add(self, rows: pa.Table, stratum: NDArray[np.int64]) -> None:
        """Rows, each of a stratum (0, 1, …)."""
        lot = self.rng.random(len(rows))
        self._tables.append(rows.append_column("stratum", pa.array(stratum)).append_column("lot", pa.array(lot)))
        self.n_seen += len(rows)
        n_more = np.bincount(stratum, minlength=len(self._n_by_stratum))
        n_more[: len(self._n_by_stratum)] += self._n_by_stratum
        self._n_by_stratum = n_more
        self._n_rows += len(rows)
        if self._n_rows > 2 * self.limit:
            self._sieve()

    def rows(self) -> pa.Table:
        """Return the rows that were drawn, in the order in which they came."""
        self._sieve()
        return self._tables[0].drop_columns(["stratum", "lot"])

    def _sieve(self) -> None:
        table = pa.concat_tables(self._tables)
        stratum, lot = table["stratum"].to_numpy(), table["lot"].to_numpy()
        kept = table.filter(pa.array(balanced(stratum, lot, self.limit, self._n_by_stratum)))
        self._tables, self._n_rows = [kept.combine_chunks()], len(kept)


def balanced(
    stratum: NDArray[np.int64], lot: NDArray[np.float64], limit: int, n_by_stratum: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Return the rows that are drawn: the rows of each stratum with the lowest lots.

    Strata give equal numbers of rows, as many as make ``limit`` in all; a smaller stratum gives all of its rows. More
    rows can only lower that number, so a row that is not drawn now never will be.

    Args:
        stratum: ``[rows]``.
        lot: ``[rows]``, a random number for each row.
        limit: most rows to draw.
        n_by_stratum: rows of each stratum, including those that were left out before; by default those of ``stratum``.

    Returns:
        ``[rows]``.
    """
    order = np.lexsort((lot, stratum))
    n = np.bincount(stratum)
    rank = np.empty(len(order), np.int64)  # within its stratum
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(n) - n, n)
    return rank < _each(n if n_by_stratum is None else n_by_stratum, limit)


def _each(n: NDArray[np.int64], limit: int) -> int:
    """The largest number (at least 1) of which ``minimum(n, number)`` are no more than ``limit`` in all."""
    left = limit
    for at, size in enumerate(sorted(n.tolist())):
        if size * (len(n) - at) > left:
            return max(1, left // (len(n) - at))
        left -= size
    return int(n.max(initial=0))
