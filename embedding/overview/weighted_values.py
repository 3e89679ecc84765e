"""Values and what each weighs, added up shard by shard: norms of windows, hours of audio. Arrays only."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of the 23 bits of a float32's mantissa: norms closer than 0.03 % count as equal, so that a hundred million of them are
# some ten thousand values.
_KEPT_BITS = 12
_ROUNDING = np.uint32(0x80000000 - (1 << (23 - _KEPT_BITS)))
# Makes the median absolute deviation of a normal distribution its standard deviation.
_MAD_TO_STD = 1.4826
# Of the median: vectors that were brought to one length have no spread at all.
_LEAST_SPREAD = 0.01
# Spreads from the median within which a norm is usual.
OUTLIER_SPREADS = 5.0


@dataclass(frozen=True)
class Weighted:
    """Distinct ``values`` in ascending order and their ``weights``, arrays of shape ``[values]``."""

    values: NDArray[Any]
    weights: NDArray[Any]

    @classmethod
    def of(cls, values: NDArray[Any], weights: NDArray[Any] | None = None) -> "Weighted":
        """Sum up ``values`` that may repeat, of weight 1 unless ``weights`` says otherwise."""
        distinct, at = np.unique(values, return_inverse=True)
        return cls(distinct, np.bincount(at, weights, len(distinct)))

    def plus(self, other: "Weighted") -> "Weighted":
        """Return the values of both."""
        values, weights = ([getattr(each, name) for each in (self, other)] for name in ("values", "weights"))
        return self.of(np.concatenate(values), np.concatenate(weights))

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum())

    def median(self) -> float:
        """Return the value below which half of the weight lies; there must be a value."""
        return float(self.values[np.searchsorted(np.cumsum(self.weights), self.total / 2)])

    def between(self, low: float, high: float) -> float:
        """The weight from ``low`` to ``high``, both included."""
        return float(self.weights[(self.values >= low) & (self.values <= high)].sum())

    def binned(self, edges: NDArray[Any]) -> NDArray[Any]:
        """The weight between each two of ``edges``, ``[edges - 1]``."""
        return np.histogram(self.values, edges, weights=self.weights)[0]


def rounded(norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """``norms``, none of them negative, rounded down to what they are told apart by."""
    return (norms.view(np.uint32) & _ROUNDING).view(np.float32)


@dataclass(frozen=True)
class Fence:
    """The range of usual values: within OUTLIER_SPREADS spreads of the median.

    Leys and others 2013, with 5 spreads instead of 3, since norms of embeddings have long tails.
    """

    median: float
    spread: float  # 1.4826 · median absolute deviation, and at least 1 % of the median

    @classmethod
    def of(cls, norms: Weighted) -> "Fence":
        """Return the range of usual norms."""
        median = norms.median()
        mad = Weighted.of(np.abs(norms.values - np.float64(median)), norms.weights).median()
        return cls(median, max(_MAD_TO_STD * mad, _LEAST_SPREAD * median))

    @property
    def low(self) -> float:
        """The lowest usual value."""
        return self.median - OUTLIER_SPREADS * self.spread

    @property
    def high(self) -> float:
        """The highest usual value."""
        return self.median + OUTLIER_SPREADS * self.spread


def seconds_by_hour(start_s: NDArray[np.float64], duration_s: NDArray[np.float64]) -> Weighted:
    """Return the seconds of recordings in each hour of the clock; values are hours since 1970 (int64).

    Args:
        start_s: when each began, in seconds since 1970 by its own clock, ``[recordings]``.
        duration_s: likewise.
    """
    end_s = start_s + duration_s
    first = np.floor(start_s / 3600).astype(np.int64)
    n = np.maximum(1, np.ceil(end_s / 3600).astype(np.int64) - first)
    which = np.repeat(np.arange(len(n)), n)
    hour = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n) + first[which]
    seconds = np.minimum(end_s[which], (hour + 1) * 3600.0) - np.maximum(start_s[which], hour * 3600.0)
    return Weighted.of(hour, seconds)
