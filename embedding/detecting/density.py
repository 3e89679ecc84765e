"""Call density: the share of windows with a call, estimated from a validated sample of scores. Arrays only.

Windows are put into bins by their score, of which each further bin holds half as many windows. In each bin the share of
windows with a call, P(+|b), is known from those that a person has judged; the density of a site or an hour is the sum
over the bins of P(+|b) · P(b), with the scores of that site or hour. P(+|b) has a Beta distribution, from which the
interval is drawn.

Source: Navine, Denton, Weldy, Hart: All Thresholds Barred: Direct Estimation of Call Density in Bioacoustic Data,
arXiv 2402.15360 (2024), sections 2.2 and 2.3. P(+|b) is taken to be the same at all sites and hours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Fine bins of logits, from which the bins of a class are made once all windows are counted.
EDGES = np.linspace(-12, 12, 97)
N_FINE = len(EDGES) + 1

MOST_BINS = 12
# The last bin holds at least so many windows.
LEAST_WINDOWS = 20
# Of the Beta distribution: as in the source.
PRIOR = 0.1
N_DRAWS = 4_000
INTERVAL = (2.5, 97.5)

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Density:
    """The share of windows with a call.

    Attributes:
        windows: Number of windows.
        density: The estimate.
        low: Lower end of the interval of 95 %.
        high: Upper end.
    """

    windows: int
    density: float
    low: float
    high: float

    def describe(self) -> dict[str, float]:
        """Return the figures for ``summary.json``, also as numbers of windows with a call."""
        return {
            "windows": self.windows,
            "density": round(self.density, 6),
            "density_low": round(self.low, 6),
            "density_high": round(self.high, 6),
            "windows_with_call": round(self.density * self.windows, 1),
            "windows_with_call_low": round(self.low * self.windows, 1),
            "windows_with_call_high": round(self.high * self.windows, 1),
        }


def fine_bin(logits: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the numbers of the fine bins of logits, in their shape."""
    return np.searchsorted(EDGES, logits, side="right")


def bins_of(counts: Counts) -> NDArray[np.intp]:
    """Return for each fine bin the number of its bin.

    The first bin holds the lower half of the windows, the next a quarter, and so on.

    Args:
        counts: ``[N_FINE]``, windows in each fine bin.
    """
    total, above = int(counts.sum()), np.cumsum(counts[::-1])[::-1]  # windows in this fine bin and those above it
    bins = np.zeros(len(counts), np.intp)
    for number in range(1, MOST_BINS):
        most = total / 2**number
        if most < LEAST_WINDOWS:
            break
        first = int(np.argmax(above <= most))
        if above[first] > most or above[first] < LEAST_WINDOWS / 2:
            break
        bins[first:] = bins[first - 1] + 1
    return bins


def merge_unjudged(bins: NDArray[np.intp], judged: Counts) -> NDArray[np.intp]:
    """Return the bins after those without a judged window have joined the bin below them, and the lowest the bin above.

    Args:
        bins: ``[N_FINE]``, the bin of each fine bin.
        judged: ``[bins]``, judged windows in each bin.
    """
    # A bin begins at each bin with a judged window, except that the first one reaches down to the lowest score.
    starts = np.asarray(judged > 0, np.intp)
    return np.maximum(np.cumsum(starts) - 1, 0)[bins]


def estimate(
    judged_bin: NDArray[np.intp], is_call: NDArray[np.bool_], shares: Floats, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Estimate the density of several groups of windows.

    Args:
        judged_bin: ``[judged]``, the bins of the judged windows.
        is_call: ``[judged]``, whether a window has a call.
        shares: ``[groups, bins]``, the share of each group's windows in each bin; rows add up to 1.
        seed: Seed of the draws.

    Returns:
        Estimate, lower and upper end of the interval, each ``[groups]``.
    """
    n_bins = shares.shape[1]
    positive = np.bincount(judged_bin[is_call], minlength=n_bins)
    negative = np.bincount(judged_bin[~is_call], minlength=n_bins)
    rng = np.random.default_rng(seed)
    draws = rng.beta(positive + PRIOR, negative + PRIOR, size=(N_DRAWS, n_bins))
    low, high = np.percentile(draws @ shares.T, INTERVAL, axis=0)
    rate = positive / np.maximum(positive + negative, 1)
    # The interval of draws may miss an estimate of 0 or 1 by a hair, because of the prior.
    value = shares @ rate
    return value, np.minimum(low, value), np.maximum(high, value)
