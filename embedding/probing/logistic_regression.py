"""The probe itself, logistic regression on standardised vectors, and its weights for plain ones: arrays only."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from embedding.probing.labels import Floats, Truth

# Of L2 regularisation its inverse: scikit-learn's default.
C = 1.0
MOST_ITERATIONS = 1000
# Rows of which there are copies in float64 at a time.
CHUNK_ROWS = 8192

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """``scores = vectors @ weight.T + bias``, of vectors as they are stored.

    Where classes are exclusive the softmax of a window's scores is their probabilities, else the logistic function of
    each score is that of its class.
    """

    weight: Floats  # [classes, dim]
    bias: Floats  # [classes]
    is_exclusive: bool
    has_converged: bool

    def scores(self, vectors: Vectors) -> Floats:
        """``[windows, classes]``, of ``[windows, dim]``."""
        found = np.empty((len(vectors), len(self.bias)))
        for first in range(0, len(vectors), CHUNK_ROWS):
            found[first : first + CHUNK_ROWS] = vectors[first : first + CHUNK_ROWS] @ self.weight.T + self.bias
        return found

    def probabilities(self, scores: Floats) -> Floats:
        """``[windows, classes]``, of scores."""
        if not self.is_exclusive:
            return 0.5 + 0.5 * np.tanh(0.5 * scores)  # the logistic function, without overflow
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def fit(vectors: Vectors, truth: Truth, *, is_exclusive: bool) -> Probe:
    """Learn a probe.

    Args:
        vectors: ``[windows, dim]``; they are standardised in place.
        truth: ``[windows, classes]``; each class is present in some windows and absent in others.
        is_exclusive: each window has exactly one class; the classes are learnt together, otherwise one by one.
    """
    scaler = StandardScaler(copy=False)
    for first in range(0, len(vectors), CHUNK_ROWS):  # all at once would be three times the memory
        scaler.partial_fit(vectors[first : first + CHUNK_ROWS])
    standard = scaler.transform(vectors)
    targets = [truth.argmax(axis=1)] if is_exclusive else list(truth.T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is said otherwise
        models = [LogisticRegression(C=C, max_iter=MOST_ITERATIONS).fit(standard, target) for target in targets]
    has_converged = max(int(model.n_iter_.max()) for model in models) < MOST_ITERATIONS
    weight, bias = folded(scaler, models)
    if is_exclusive and len(bias) == 1:  # of two classes scikit-learn has but the second's advantage over the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(weight, bias, is_exclusive, has_converged)


def folded(scaler: StandardScaler, models: list[LogisticRegression]) -> tuple[Floats, Floats]:
    """Weights ``[rows, dim]`` and biases ``[rows]`` that give the models' decisions of vectors that are not scaled.

    ``coef · (x - mean) / scale + intercept = (coef / scale) · x + (intercept - (coef / scale) · mean)``
    """
    mean, scale = (np.asarray(each, np.float64) for each in (scaler.mean_, scaler.scale_))
    weight = np.concatenate([model.coef_ for model in models]).astype(np.float64) / scale
    bias = np.concatenate([model.intercept_ for model in models]).astype(np.float64) - weight @ mean
    return weight, bias
