"""Calibration of a probe's scores: probabilities that agree with how often a label is really there. Arrays only.

The scores of the test are those of recordings that the probe has not learnt from. A calibration has few parameters, and
they are fitted on these scores: for classes that exclude one another a temperature (Guo et al. 2017, "On calibration of
modern neural networks"), otherwise a slope and an offset for each class (Platt 1999, "Probabilistic outputs for support
vector machines"). What the calibration brings is measured on recordings that it was not fitted on.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from embedding.probing.labels import Booleans, Floats, Integers

# A class with fewer windows with the label, or without it, keeps its scores: two parameters would follow chance.
LEAST_EXAMPLES = 5
# Parts of the test recordings. Each part is measured with the calibration that was fitted on the other parts.
N_FOLDS = 5
# Intervals of probability in which the mean probability is compared with the share of windows that have the label.
N_BINS = 10
# Bounds of the logarithm of a slope.
LOG_SLOPE = (-5.0, 5.0)


@dataclass(frozen=True)
class Calibration:
    """Calibrated scores are ``scale * scores + offset``.

    Attributes:
        scale: ``[classes]``.
        offset: ``[classes]``.
        is_fitted: ``[classes]``; a class with few examples keeps its scores.
    """

    scale: Floats
    offset: Floats
    is_fitted: Booleans

    def apply(self, scores: Floats) -> Floats:
        """Return the calibrated scores, both ``[windows, classes]``."""
        return scores * self.scale + self.offset


@dataclass(frozen=True)
class Reliability:
    """The agreement of probabilities with labels.

    Attributes:
        error: Expected calibration error: the mean distance, over windows, of a bin's mean probability from its share
            of windows with the label.
        brier: Brier score: the mean squared distance of a probability from its label.
        bins: ``[bins, 3]``: number of probabilities in the bin, their mean, and the share with the label.
    """

    error: float
    brier: float
    bins: Floats

    def describe(self) -> dict[str, Any]:
        """Return the figures for ``probe.json``."""
        bins = [
            {
                "from": number / N_BINS,
                "to": (number + 1) / N_BINS,
                "n": int(n),
                "mean_probability": mean,
                "share": share,
            }
            for number, (n, mean, share) in enumerate(self.bins.tolist())
            if n
        ]
        return {"expected_calibration_error": self.error, "brier": self.brier, "bins": bins}


def uncalibrated(n_classes: int) -> Calibration:
    """Return the calibration that leaves scores as they are."""
    return Calibration(np.ones(n_classes), np.zeros(n_classes), np.zeros(n_classes, bool))


def calibrate(scores: Floats, truth: Booleans, *, is_exclusive: bool) -> Calibration:
    """Fit a calibration.

    Args:
        scores: ``[windows, classes]``, of windows that the probe has not learnt from.
        truth: ``[windows, classes]``, the labels.
        is_exclusive: Each window has exactly one class.
    """
    n_classes = scores.shape[1]
    if is_exclusive:
        labelled = truth.any(axis=1)  # a class of the test that was not learnt has no score
        if labelled.sum() < LEAST_EXAMPLES:
            return uncalibrated(n_classes)
        scale = _fit_temperature(scores[labelled], truth[labelled].argmax(axis=1))
        return Calibration(np.full(n_classes, scale), np.zeros(n_classes), np.ones(n_classes, bool))
    n_with = truth.sum(axis=0)
    is_fitted = np.minimum(n_with, len(truth) - n_with) >= LEAST_EXAMPLES
    scale, offset = np.ones(n_classes), np.zeros(n_classes)
    for at in np.flatnonzero(is_fitted):
        scale[at], offset[at] = _fit_platt(scores[:, at], truth[:, at])
    return Calibration(scale, offset, is_fitted)


def _fit_temperature(scores: Floats, label: Integers) -> float:
    """Return the factor of the scores with the least cross-entropy.

    As in Platt's targets, a label counts for a little less than certain; otherwise the factor of scores that are all
    right would have no limit.
    """
    n, n_classes = scores.shape
    smoothing = 1 / (n + 2)

    def cross_entropy(log_scale: float) -> float:
        logs = log_softmax(np.exp(log_scale) * scores, axis=1)
        right = logs[np.arange(n), label]
        wrong = (logs.sum(axis=1) - right) / max(1, n_classes - 1)
        return float(-((1 - smoothing) * right + smoothing * wrong).mean())

    found: Any = minimize_scalar(cross_entropy, bounds=LOG_SLOPE, method="bounded")  # its type is a bare object
    return float(np.exp(found.x))


def _fit_platt(scores: Floats, truth: Booleans) -> tuple[float, float]:
    """Return the slope and the offset with the least cross-entropy, for Platt's smoothed targets."""
    n_with = int(truth.sum())
    n_without = len(truth) - n_with
    target = np.where(truth, (n_with + 1) / (n_with + 2), 1 / (n_without + 2))

    def cross_entropy(parameters: Floats) -> tuple[float, Floats]:
        log_scale, offset = parameters
        scale = np.exp(log_scale)
        logits = scale * scores + offset
        distance = expit(logits) - target
        value = -(target * log_expit(logits) + (1 - target) * log_expit(-logits)).mean()
        return float(value), np.array([(distance * scores).mean() * scale, distance.mean()])

    # The logarithm keeps the slope positive: a calibration does not change the order of windows.
    found = minimize(cross_entropy, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[LOG_SLOPE, (None, None)])
    return float(np.exp(found.x[0])), float(found.x[1])


def probabilities(scores: Floats, *, is_exclusive: bool) -> Floats:
    """Return the probabilities of scores, both ``[windows, classes]``."""
    return softmax(scores, axis=1) if is_exclusive else expit(scores)


def calibrate_across(scores: Floats, truth: Booleans, recording: Integers, *, is_exclusive: bool) -> Floats:
    """Return calibrated scores, each recording's with a calibration that was fitted on other recordings.

    Args:
        scores: ``[windows, classes]``.
        truth: ``[windows, classes]``, the labels.
        recording: ``[windows]``.
        is_exclusive: Each window has exactly one class.
    """
    calibrated = scores.copy()
    _, number = np.unique(recording, return_inverse=True)
    for fold in range(N_FOLDS):
        is_own = number % N_FOLDS == fold
        if is_own.any() and not is_own.all():
            others = calibrate(scores[~is_own], truth[~is_own], is_exclusive=is_exclusive)
            calibrated[is_own] = others.apply(scores[is_own])
    return calibrated


def measure_reliability(probability: Floats, truth: Booleans) -> Reliability:
    """Compare probabilities with labels, all classes together.

    Args:
        probability: ``[windows, classes]``.
        truth: ``[windows, classes]``.
    """
    flat, present = probability.ravel(), truth.ravel()
    number = np.minimum((flat * N_BINS).astype(np.int64), N_BINS - 1)
    n = np.bincount(number, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        means = np.bincount(number, flat, N_BINS) / n
        shares = np.bincount(number, present, N_BINS) / n
    distance = np.abs(np.nan_to_num(means) - np.nan_to_num(shares))
    return Reliability(
        error=float((distance * n).sum() / max(1, n.sum())),
        brier=float(np.square(flat - present).mean()) if len(flat) else 0.0,
        bins=np.column_stack([n.astype(np.float64), means, shares]),
    )
