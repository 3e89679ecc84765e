"""Classifiers beside the linear probe: k nearest neighbours, and a small neural network, both of scikit-learn."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from embedding.probing.labels import Booleans, Floats

N_NEIGHBOURS = 10
HIDDEN = 128
MAX_EPOCHS = 200


def classify(
    name: str,
    vectors: NDArray[np.float32],
    truth: Booleans,
    others: NDArray[np.float32],
    *,
    is_exclusive: bool,
    seed: int,
) -> Floats:
    """Learn from some windows, and return the probabilities of others, ``[others, classes]``.

    Args:
        name: ``knn`` or ``mlp``.
        vectors: ``[windows, dim]``.
        truth: ``[windows, classes]``.
        others: ``[others, dim]``.
        is_exclusive: Each window has exactly one class.
        seed: Seed of the random numbers.
    """
    model: Any
    if name == "knn":  # by Euclidean distance of vectors of length 1, which is in the order of the cosine
        n = min(N_NEIGHBOURS, len(vectors))
        model = make_pipeline(Normalizer(), KNeighborsClassifier(n_neighbors=n, weights="distance"))
    else:
        network = MLPClassifier((HIDDEN,), max_iter=MAX_EPOCHS, early_stopping=len(vectors) >= 100, random_state=seed)
        model = make_pipeline(StandardScaler(), network)
    has_one_class = truth.shape[1] == 1 and not is_exclusive
    target = truth.argmax(axis=1) if is_exclusive else truth.astype(int)
    if has_one_class:
        target = target[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = model.fit(vectors, target).predict_proba(others)
    if isinstance(found, list):  # of nearest neighbours over several labels: [without, with] for each label
        return np.column_stack([each[:, 1] if each.shape[1] > 1 else np.zeros(len(others)) for each in found])
    if has_one_class:
        return np.asarray(found, np.float64)[:, [1]]
    if not is_exclusive:
        return np.asarray(found, np.float64).reshape(len(others), truth.shape[1])
    probability = np.zeros((len(others), truth.shape[1]))
    probability[:, model.classes_] = found
    return probability
