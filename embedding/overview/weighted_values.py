"""Values with weights, added up shard by shard: norms of windows, hours of audio. Arrays only."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Bits that rounding keeps of the 23 bits of a float32's mantissa. Norms that differ by less than 0.03 % count as equal,
# so a hundred million norms are some ten thousand values.
_KEPT_BITS = 12
_ROUNDING = np.uint32(0x80000000 - (1 << (23 - _KEPT_BITS)))
# The median absolute deviation of a normal distribution, times this, is its standard deviation.
_MAD_TO_STD = 1.4826
# As a share of the median: vectors that were normalised to one length have no deviation at all.
_LEAST_DEVIATION = 0.01
# A norm that is further from the median is an outlier.
USUAL_DEVIATIONS = 5.0


@dataclass(frozen=True)
class WeightedValues:
    """Distinct values and their weights.

    Attributes:
        values: In ascending order, ``[values]``.
        weights: Weight of each value, ``[values]``.
    """

    values: NDArray[Any]
    weights: NDArray[Any]

    @classmethod
    def of(cls, values: NDArray[Any], weights: NDArray[Any] | None = None) -> "WeightedValues":
        """Add up the weights of equal values.

        Args:
            values: In any order, with repetitions.
            weights: Weight of each value; None: 1 each.
        """
        distinct, positions = np.unique(values, return_inverse=True)
        return cls(distinct, np.bincount(positions, weights, len(distinct)))

    def plus(self, other: "WeightedValues") -> "WeightedValues":
        """Return the values of both, with the weights of equal values added up."""
        return self.of(np.concatenate([self.values, other.values]), np.concatenate([self.weights, other.weights]))

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum())

    def median(self) -> float:
        """Return the value below which half of the weight lies; there must be a value."""
        return float(self.values[np.searchsorted(np.cumsum(self.weights), self.total / 2)])

    def between(self, low: float, high: float) -> float:
        """Return the weight of the values from ``low`` to ``high``, both included."""
        return float(self.weights[(self.values >= low) & (self.values <= high)].sum())

    def binned(self, edges: NDArray[Any]) -> NDArray[Any]:
        """Return the weight in each bin between two of ``edges``, ``[edges - 1]``."""
        return np.histogram(self.values, edges, weights=self.weights)[0]


def round_norms(norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return norms, none of them negative, rounded down to ``_KEPT_BITS`` bits of mantissa."""
    return (norms.view(np.uint32) & _ROUNDING).view(np.float32)


@dataclass(frozen=True)
class UsualRange:
    """The range of usual norms: within USUAL_DEVIATIONS deviations of the median.

    Leys and others 2013, with 5 deviations instead of 3, since norms of embeddings have long tails.

    Attributes:
        median: The median norm.
        deviation: 1.4826 · median absolute deviation, and at least 1 % of the median.
    """

    median: float
    deviation: float

    @classmethod
    def of(cls, norms: WeightedValues) -> "UsualRange":
        """Return the range of usual norms; there must be a norm."""
        median = norms.median()
        mad = WeightedValues.of(np.abs(norms.values - np.float64(median)), norms.weights).median()
        return cls(median, max(_MAD_TO_STD * mad, _LEAST_DEVIATION * median))

    @property
    def low(self) -> float:
        """The lowest usual norm."""
        return self.median - USUAL_DEVIATIONS * self.deviation

    @property
    def high(self) -> float:
        """The highest usual norm."""
        return self.median + USUAL_DEVIATIONS * self.deviation


def seconds_by_hour(start_s: NDArray[np.float64], duration_s: NDArray[np.float64]) -> WeightedValues:
    """Return the seconds of recordings in each hour of the clock.

    Args:
        start_s: Start of each recording, in seconds since 1970 by the clock of its recorder, ``[recordings]``.
        duration_s: Duration of each recording, ``[recordings]``.

    Returns:
        Hours since 1970 (int64), with seconds as weights.
    """
    end_s = start_s + duration_s
    first_hour = np.floor(start_s / 3600).astype(np.int64)
    n_hours = np.maximum(1, np.ceil(end_s / 3600).astype(np.int64) - first_hour)
    recording = np.repeat(np.arange(len(n_hours)), n_hours)
    hour = np.arange(len(recording)) - np.repeat(np.cumsum(n_hours) - n_hours, n_hours) + first_hour[recording]
    seconds = np.minimum(end_s[recording], (hour + 1) * 3600.0) - np.maximum(start_s[recording], hour * 3600.0)
    return WeightedValues.of(hour, seconds)
