"""Metrics of a probe, and of a probe without knowledge for comparison: arrays only."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from embedding.pooling.partial_sums import recording_starts
from embedding.probing.labels import Booleans, Floats, Integers

# Area under the ROC curve of random scores.
CHANCE_AUC = 0.5


@dataclass(frozen=True)
class Metrics:
    """Metrics over windows, or over recordings.

    A class is NaN if it was not learnt, or if no row of the test or every row has it; means leave such classes out.

    Attributes:
        accuracy: Share of rows whose labels are all right.
        average_precision: ``[classes]``.
        roc_auc: ``[classes]``, area under the ROC curve.
        majority_accuracy: Accuracy of a probe that always answers with the most frequent labels of the training.
        prevalence: ``[classes]``, share of rows with the class: the average precision of random scores.
    """

    accuracy: float
    average_precision: Floats
    roc_auc: Floats
    majority_accuracy: float
    prevalence: Floats

    def means(self) -> dict[str, float | None]:
        """Return the accuracy and the means over the classes."""
        return {
            "accuracy": self.accuracy,
            "mean_average_precision": _mean_of_numbers(self.average_precision),
            "roc_auc": _mean_of_numbers(self.roc_auc),
        }

    def chance(self) -> dict[str, float | None]:
        """Return the same for a probe without knowledge."""
        return {
            "accuracy": self.majority_accuracy,
            "mean_average_precision": _mean_of_numbers(self.prevalence),
            "roc_auc": CHANCE_AUC,
        }


def measure(
    probabilities: Floats, truth: Booleans, train_truth: Booleans, is_learnt: Booleans, *, is_exclusive: bool
) -> Metrics:
    """Measure the answers of a probe for the rows of the test.

    Args:
        probabilities: ``[rows, classes]``; zero for a class that was not learnt.
        truth: ``[rows, classes]``, the labels.
        train_truth: ``[training rows, classes]``, the labels of the training.
        is_learnt: ``[classes]``.
        is_exclusive: The answer is the likeliest class, otherwise all classes with a probability of at least 0.5.
    """
    likeliest = np.arange(truth.shape[1]) == probabilities.argmax(axis=1)[:, None]
    answers = likeliest if is_exclusive else probabilities >= 0.5
    is_measurable = is_learnt & truth.any(axis=0) & ~truth.all(axis=0)
    average_precision, roc_auc, prevalence = (np.full(truth.shape[1], np.nan) for _ in range(3))
    for at in np.flatnonzero(is_measurable):
        average_precision[at] = average_precision_score(truth[:, at], probabilities[:, at])
        roc_auc[at] = roc_auc_score(truth[:, at], probabilities[:, at])
        prevalence[at] = truth[:, at].mean()
    return Metrics(
        accuracy=float((answers == truth).all(axis=1).mean()),
        average_precision=average_precision,
        roc_auc=roc_auc,
        majority_accuracy=float((_most_frequent_row(train_truth) == truth).all(axis=1).mean()),
        prevalence=prevalence,
    )


def _most_frequent_row(rows: Booleans) -> Booleans:
    distinct_rows, n = np.unique(rows, axis=0, return_counts=True)
    return distinct_rows[n.argmax()]


def _mean_of_numbers(values: Floats) -> float | None:
    """Return the mean of the values that are not NaN; None where all are NaN."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def pool_by_recording(
    recording: Integers, probabilities: Floats | Booleans, truth: Booleans
) -> tuple[Floats, Booleans]:
    """Pool windows to recordings: the mean of their probabilities, and every label that a window has.

    Args:
        recording: ``[windows]``.
        probabilities: ``[windows, classes]``.
        truth: ``[windows, classes]``, the labels.

    Returns:
        Probabilities and labels, both ``[recordings, classes]``, in the order of ``recording``.
    """
    order = np.argsort(recording, kind="stable")
    start = recording_starts(recording[order])
    n = np.diff([*start, len(order)])
    return np.add.reduceat(probabilities[order], start) / n[:, None], np.logical_or.reduceat(truth[order], start)
