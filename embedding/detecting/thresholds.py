"""Thresholds of the classes: one for all, from a file, or from the precision on the windows of a probe's test."""

import csv
import io
from dataclasses import dataclass

import numpy as np

from embedding import storage
from embedding.config import did_you_mean
from embedding.errors import RequestError
from embedding.probing.labels import Booleans, Floats

DEFAULT_THRESHOLD = 0.5
# Above every probability.
LEFT_OUT = 2.0
MOST_BYTES = 16 << 20
_COLUMNS = ("label", "threshold")


@dataclass(frozen=True)
class Thresholds:
    """A threshold for each class.

    Attributes:
        threshold: ``[classes]``, LEFT_OUT for a class without detections.
        precision: ``[classes]``, the share of right windows among those of the test that reach it; NaN if unknown.
        recall: ``[classes]``, the share of the test's windows with the label that reach it; NaN if unknown.
    """

    threshold: Floats
    precision: Floats
    recall: Floats


def unmeasured_thresholds(threshold: Floats) -> Thresholds:
    """Return thresholds, ``[classes]``, of a probe without a test."""
    unknown = np.full(len(threshold), np.nan)
    return Thresholds(threshold, unknown, unknown)


def measure_thresholds(threshold: Floats, probability: Floats, truth: Booleans) -> Thresholds:
    """Return thresholds with the precision and the recall that they have on the windows of a test.

    Args:
        threshold: ``[classes]``.
        probability: ``[windows, classes]``.
        truth: ``[windows, classes]``, the labels.
    """
    reaches = probability >= threshold
    right = (reaches & truth).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return Thresholds(threshold, right / reaches.sum(axis=0), right / truth.sum(axis=0))


def choose_thresholds(probability: Floats, truth: Booleans, min_precision: float) -> Thresholds:
    """Choose for each class a threshold at which the windows of a test have a precision, and the highest recall so.

    The threshold lies in the middle between the last window that reaches it and the next, so that rounding does not
    count.

    Args:
        probability: ``[windows, classes]``.
        truth: ``[windows, classes]``, the labels.
        min_precision: The least share of right windows among those that reach the threshold.
    """
    threshold = np.full(probability.shape[1], LEFT_OUT)
    for at in range(len(threshold)):
        order = np.argsort(-probability[:, at], kind="stable")
        scores, right = probability[order, at], np.cumsum(truth[order, at])
        precision = right / np.arange(1, len(order) + 1)
        is_cut = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # equal scores are above or below together
        good = np.flatnonzero(is_cut & (precision >= min_precision) & (right > 0))
        if len(good):
            last = good[-1]
            following = scores[last + 1] if last + 1 < len(scores) else 0.0
            threshold[at] = (scores[last] + following) / 2
    return measure_thresholds(threshold, probability, truth)


def read_thresholds(uri: str) -> dict[str, float]:
    """Read a CSV file with the columns ``label`` and ``threshold``.

    Raises:
        RequestError: The file cannot be read, or holds no thresholds.
    """
    option = "--threshold-file"
    try:
        text = storage.read_bytes(uri, MOST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{option}: cannot read {uri}: {getattr(error, 'strerror', None) or error}") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    thresholds: dict[str, float] = {}
    try:
        names = rows.fieldnames or ()
        if lacking := [name for name in _COLUMNS if name not in names]:
            raise RequestError(
                f"{option}: {uri} needs the columns label and threshold, and lacks {lacking[0]!r} (it has: "
                f"{', '.join(names)[:200]})"
            )
        for row in rows:
            label, threshold = (row["label"] or "").strip(), float(row["threshold"] or "nan")
            if not label or not 0 <= threshold <= 1 or label in thresholds:
                raise RequestError(
                    f"{option}: line {rows.line_num} of {uri} needs a label that no other line has, and a threshold "
                    "between 0 and 1"
                )
            thresholds[label] = threshold
    except (csv.Error, ValueError) as error:
        raise RequestError(f"{option}: line {rows.line_num} of {uri}: {error}") from error
    return thresholds


def thresholds_of(classes: list[str], chosen: dict[str, float], otherwise: float) -> Floats:
    """Return the threshold of each class: its own, or ``otherwise``.

    Raises:
        RequestError: A threshold is that of no class.
    """
    if unknown := sorted(set(chosen) - set(classes)):
        raise RequestError(
            f"--threshold-file: there is no class {unknown[0]!r}{did_you_mean(unknown[0], classes)}; there are "
            f"{', '.join(classes[:20])}{' …' if len(classes) > 20 else ''}"
        )
    return np.array([chosen.get(name, otherwise) for name in classes])
