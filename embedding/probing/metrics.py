"""Measures of a probe, beside those of a probe without knowledge: arrays only."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from embedding.pooling.partial_sums import starts
from embedding.probing.labels import Floats, Integers, Truth

# Of the area under the ROC curve.
CHANCE_AUC = 0.5


@dataclass(frozen=True)
class Metrics:
    """Measures over windows, or over recordings.

    A class that no row of the test has, or every one, cannot be measured, nor one that was not learnt: it is NaN, and
    the means are over the others.
    """

    accuracy: float  # of all labels of a row at once
    average_precision: Floats  # [classes]
    roc_auc: Floats  # [classes]
    majority: float  # the accuracy of always saying what is most frequent among rows to learn from
    prevalence: Floats  # [classes], the share of rows that have it: average precision of scores drawn by lot

    def means(self) -> dict[str, float | None]:
        """Return the means over the classes."""
        return {
            "accuracy": self.accuracy,
            "mean_average_precision": mean(self.average_precision),
            "roc_auc": mean(self.roc_auc),
        }

    def chance(self) -> dict[str, float | None]:
        """Return the means of a probe without knowledge."""
        return {
            "accuracy": self.majority,
            "mean_average_precision": mean(self.prevalence),
            "roc_auc": CHANCE_AUC,
        }


def measure(probabilities: Floats, truth: Truth, before: Truth, is_learnt: Truth, *, is_exclusive: bool) -> Metrics:
    """Measure rows of the test.

    Args:
        probabilities: ``[rows, classes]``; zero of a class that was not learnt.
        truth: ``[rows, classes]``.
        before: ``[rows to learn from, classes]``, the truth of those.
        is_learnt: ``[classes]``.
        is_exclusive: a row is said to have its likeliest class, else all that are at least as likely as not.
    """
    likeliest = np.arange(truth.shape[1]) == probabilities.argmax(axis=1)[:, None]
    said = likeliest if is_exclusive else probabilities >= 0.5
    can_be_measured = is_learnt & truth.any(axis=0) & ~truth.all(axis=0)
    average_precision, roc_auc, prevalence = (np.full(truth.shape[1], np.nan) for _ in range(3))
    for at in np.flatnonzero(can_be_measured):
        average_precision[at] = average_precision_score(truth[:, at], probabilities[:, at])
        roc_auc[at] = roc_auc_score(truth[:, at], probabilities[:, at])
        prevalence[at] = truth[:, at].mean()
    return Metrics(
        accuracy=float((said == truth).all(axis=1).mean()),
        average_precision=average_precision,
        roc_auc=roc_auc,
        majority=float((_most_frequent(before) == truth).all(axis=1).mean()),
        prevalence=prevalence,
    )


def _most_frequent(rows: Truth) -> Truth:
    kinds, n = np.unique(rows, axis=0, return_counts=True)
    return kinds[n.argmax()]


def mean(values: Floats) -> float | None:
    """Return the mean of the values that are numbers; None where there is none."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def to_recordings(recording: Integers, probabilities: Floats | Truth, truth: Truth) -> tuple[Floats, Truth]:
    """Pool windows (``[windows]``, twice ``[windows, classes]``) to recordings: mean probabilities, and any label."""
    order = np.argsort(recording, kind="stable")
    start = starts(recording[order])
    n = np.diff([*start, len(order)])
    return np.add.reduceat(probabilities[order], start) / n[:, None], np.logical_or.reduceat(truth[order], start)
