"""Curves and confusions of a probe on the windows of its test, for pictures. Arrays only."""

import numpy as np

from embedding.probing.labels import Booleans, Floats, Integers

# Points of a curve; a picture shows no more.
MOST_POINTS = 60


def precision_over_recall(score: Floats, truth: Booleans) -> list[tuple[float, float]]:
    """Return points (recall, precision) for thresholds from the highest score to the lowest.

    Args:
        score: ``[windows]``.
        truth: ``[windows]``, which windows have the class.

    Returns:
        At most MOST_POINTS points, by recall; none where no window has the class.
    """
    if not truth.any():
        return []
    order = np.argsort(-score, kind="stable")
    right, ordered = np.cumsum(truth[order]), score[order]
    is_last = np.append(ordered[1:] < ordered[:-1], True)  # of windows with equal scores
    recall = (right / right[-1])[is_last]
    precision = (right / np.arange(1, len(order) + 1))[is_last]
    chosen = np.unique(np.searchsorted(recall, np.linspace(0, 1, MOST_POINTS)).clip(0, len(recall) - 1))
    return [(round(float(recall[at]), 4), round(float(precision[at]), 4)) for at in chosen]


def confusions(scores: Floats, truth: Booleans) -> Integers:
    """Return how often windows of each class have their highest score for each class.

    Args:
        scores: ``[windows, classes]``.
        truth: ``[windows, classes]``; a window counts for each of its classes.

    Returns:
        ``[classes, classes]``, by the class that a window has and the class with the highest score.
    """
    counts = np.zeros((truth.shape[1], truth.shape[1]), np.int64)
    window, label = np.nonzero(truth)
    if len(window):
        np.add.at(counts, (label, scores.argmax(axis=1)[window]), 1)
    return counts
