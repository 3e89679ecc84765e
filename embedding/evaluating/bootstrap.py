"""Intervals by the bootstrap over recordings: windows of one recording are alike, so recordings are drawn, not windows.

Efron and Tibshirani 1993, "An introduction to the bootstrap", percentile intervals.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from embedding.probing.labels import Floats, Integers

N_DRAWS = 200
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and the interval in which it lies with a confidence of LEVEL.

    Attributes:
        value: The figure over all recordings; NaN where it cannot be measured.
        low: Lower end; NaN for a single recording, which says nothing about others.
        high: Upper end, in the same way.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "–"
        if np.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


def interval(figure: Callable[[Floats], float], recording: Integers, seed: int) -> Interval:
    """Return a figure with its interval.

    Args:
        figure: Returns the figure for weights ``[windows]``: how often each window counts.
        recording: ``[windows]``.
        seed: Seed of the draws.
    """
    value = figure(np.ones(len(recording)))
    names, number = np.unique(recording, return_inverse=True)
    if len(names) < 2:
        return Interval(float(value), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(N_DRAWS):
        counts = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        draws.append(figure(counts[number].astype(np.float64)))
    known = np.array(draws)[~np.isnan(draws)]
    if np.isnan(value) or not len(known):
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def weighted_mean(values: Floats, weights: Floats) -> float:
    """Return the mean of the values that are not NaN; NaN if they have no weight."""
    is_known = ~np.isnan(values)
    total = weights[is_known].sum()
    return float((values[is_known] * weights[is_known]).sum() / total) if total else float("nan")


def weighted_average_precision(score: Floats, truth: Floats, weights: Floats) -> float:
    """Return the average precision of a class, with equal scores counted together; NaN without examples.

    Args:
        score: ``[windows]``, in ascending order.
        truth: ``[windows]``, 1 or 0, in this order.
        weights: ``[windows]``, in this order.
    """
    right, every = np.cumsum((truth * weights)[::-1]), np.cumsum(weights[::-1])
    is_cut = np.append(np.diff(score[::-1]) != 0, True)
    right, every = right[is_cut], every[is_cut]
    if not right[-1]:
        return float("nan")
    with np.errstate(invalid="ignore"):
        precision = np.nan_to_num(right / every)
    return float((np.diff(right, prepend=0) * precision).sum() / right[-1])
