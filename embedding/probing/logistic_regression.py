"""A probe: logistic regression on standardised vectors, with weights for vectors as they are stored. Arrays only."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from embedding.probing.labels import Booleans, Floats

# Inverse strength of L2 regularisation: scikit-learn's default.
C = 1.0
MAX_ITERATIONS = 1000
# Rows that are copied to float64 at a time.
CHUNK_ROWS = 8192

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """A linear probe: ``scores = vectors @ weight.T + bias``, for vectors as they are stored.

    Attributes:
        weight: ``[classes, dim]``.
        bias: ``[classes]``.
        is_exclusive: Each window has exactly one class, and the softmax of its scores is the classes' probabilities.
            Otherwise the probability of each class is the logistic function of its score.
        has_converged: The fit ended before MAX_ITERATIONS.
    """

    weight: Floats
    bias: Floats
    is_exclusive: bool
    has_converged: bool

    def scores(self, vectors: Vectors) -> Floats:
        """Return the scores of vectors ``[windows, dim]``, as ``[windows, classes]``."""
        scores = np.empty((len(vectors), len(self.bias)))
        for first in range(0, len(vectors), CHUNK_ROWS):
            chunk = slice(first, first + CHUNK_ROWS)
            scores[chunk] = vectors[chunk] @ self.weight.T + self.bias
        return scores

    def probabilities(self, scores: Floats) -> Floats:
        """Return the probabilities of scores, both ``[windows, classes]``."""
        if not self.is_exclusive:
            return 0.5 + 0.5 * np.tanh(0.5 * scores)  # the logistic function, without overflow
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def fit(vectors: Vectors, truth: Booleans, *, is_exclusive: bool) -> Probe:
    """Learn a probe.

    Args:
        vectors: ``[windows, dim]``; they are standardised in place.
        truth: ``[windows, classes]``; each class is present in some windows and absent in others.
        is_exclusive: Each window has exactly one class; the classes are learnt together, otherwise one by one.
    """
    # 1. Standardise the vectors.
    scaler = StandardScaler(copy=False)
    for first in range(0, len(vectors), CHUNK_ROWS):  # all at once would take three times the memory
        scaler.partial_fit(vectors[first : first + CHUNK_ROWS])
    standardised = scaler.transform(vectors)

    # 2. Learn the classes.
    targets = [truth.argmax(axis=1)] if is_exclusive else list(truth.T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the summary of the probe has a warning of its own
        models = [LogisticRegression(C=C, max_iter=MAX_ITERATIONS).fit(standardised, target) for target in targets]
    has_converged = max(int(model.n_iter_.max()) for model in models) < MAX_ITERATIONS

    # 3. Compute the weights for vectors that are not standardised.
    weight, bias = _fold_scaling(scaler, models)
    if is_exclusive and len(bias) == 1:  # of two classes scikit-learn has one row: second class minus first class
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(weight, bias, is_exclusive, has_converged)


def _fold_scaling(scaler: StandardScaler, models: list[LogisticRegression]) -> tuple[Floats, Floats]:
    """Return weights ``[rows, dim]`` and biases ``[rows]`` that score vectors without standardising them.

    ``coef · (x - mean) / scale + intercept = (coef / scale) · x + (intercept - (coef / scale) · mean)``
    """
    mean, scale = (np.asarray(values, np.float64) for values in (scaler.mean_, scaler.scale_))
    weight = np.concatenate([model.coef_ for model in models]).astype(np.float64) / scale
    bias = np.concatenate([model.intercept_ for model in models]).astype(np.float64) - weight @ mean
    return weight, bias
