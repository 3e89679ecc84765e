"""Evaluation of outputs and layers on labels, on recordings kept apart.

For each output and layer:
1. learn a linear probe, and measure it on the windows of the test (accuracy, mean average precision)
2. other classifiers, in the same way
3. retrieval among the windows of the test: ROC AUC, precision among the k nearest
4. clustering of the windows of the test: agreement of k-means with the labels
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from embedding.cli.terminal import Terminal
from embedding.errors import storage_failure
from embedding.evaluating.bootstrap import Interval, interval, weighted_average_precision, weighted_mean
from embedding.evaluating.classifiers import classify
from embedding.evaluating.retrieval import measure_retrieval
from embedding.output.shard_reading import list_shards, open_shard
from embedding.output.store import Store
from embedding.probing.labelled_windows import read_vectors
from embedding.probing.labels import Booleans, Floats, Integers
from embedding.probing.probe_result import ProbeOptions, ProbeResult
from embedding.probing.train import learn_probe
from embedding.schema.vectors import EMBEDDING, vector_columns
from embedding.search.nearest_windows import unit_vectors

ALL_LAYERS = "all"
# Windows of the test for retrieval and clustering: every window is compared with every other.
MAX_COMPARED = 5_000


@dataclass(frozen=True)
class Evaluation:
    """The figures of one output and layer.

    Attributes:
        root: The output.
        layer: The inner layer; None for the output of the model.
        model: Name of the model.
        n_train: Windows for training.
        n_test: Windows of the test.
        figures: By name.
    """

    root: str
    layer: str | None
    model: str
    n_train: int
    n_test: int
    figures: dict[str, Interval]

    def describe(self) -> dict[str, Any]:
        """Return the figures as one row of a table."""
        row: dict[str, Any] = {
            "output": self.root,
            "layer": self.layer or EMBEDDING,
            "model": self.model,
            "windows_for_training": self.n_train,
            "windows_of_test": self.n_test,
        }
        for name, figure in self.figures.items():
            row |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        return row


def layers_of(root: str, layer: str | None) -> list[str | None]:
    """Return the layers to evaluate; with ALL_LAYERS the output of the model and every inner layer that is stored.

    Raises:
        RequestError: There are no embeddings, or not the layer.
        RunError: The storage failed.
    """
    try:
        if layer != ALL_LAYERS:
            Store(root, "").column_of(layer)
            return [layer]
        with open_shard(list_shards(root)[0]) as shard:
            return [None, *(name for name in vector_columns(shard.schema_arrow) if name != EMBEDDING)]
    except OSError as error:
        raise storage_failure(error) from error


def evaluate(options: ProbeOptions, classifiers: tuple[str, ...], k: int, terminal: Terminal) -> Evaluation:
    """Evaluate one output and layer.

    Args:
        options: The output, the layer, the labels and the split.
        classifiers: Names of CLASSIFIERS.
        k: Number of nearest windows for the precision of retrieval.
        terminal: Prints what is learnt from, and warnings.

    Raises:
        RequestError: There is nothing to learn from or to measure on, or a shard is damaged.
        RunError: The storage failed.
    """
    try:
        result = learn_probe(replace(options, replace=True), terminal)
        shards, column = list_shards(options.root), Store(options.root, "").column_of(options.layer)
        test_vectors = read_vectors(result.test.windows, shards, column)
        train_vectors = read_vectors(result.train.windows, shards, column)
    except OSError as error:
        raise storage_failure(error) from error
    truth, recording, seed = result.test.truth[:, result.is_learnt], result.test.recording, options.seed
    figures: dict[str, Interval] = {}
    for name in classifiers:
        if name == "logistic":
            probability = result.probe.probabilities(result.scores)
        else:
            train_truth = result.train.truth[:, result.is_learnt]
            is_exclusive = result.probe.is_exclusive
            probability = classify(name, train_vectors, train_truth, test_vectors, is_exclusive=is_exclusive, seed=seed)
        figures |= {
            f"{name}_{figure}": value for figure, value in _measure_answers(probability, truth, result, seed).items()
        }
    compared = _choose_compared(truth, seed)
    figures |= _measure_neighbours(test_vectors[compared], truth[compared], recording[compared], k, seed)
    model = str(result.settings.get("model", ""))
    return Evaluation(options.root, options.layer, model, len(result.train.windows), len(result.test.windows), figures)


def _measure_answers(probability: Floats, truth: Booleans, result: ProbeResult, seed: int) -> dict[str, Interval]:
    """Return accuracy and mean average precision, each with its interval."""
    likeliest = np.arange(truth.shape[1]) == probability.argmax(axis=1)[:, None]
    answers = likeliest if result.probe.is_exclusive else probability >= 0.5
    is_right = (answers == truth).all(axis=1).astype(np.float64)
    order = np.argsort(probability, axis=0, kind="stable")
    scores, labels = np.take_along_axis(probability, order, 0), np.take_along_axis(truth, order, 0).astype(np.float64)

    def mean_average_precision(weights: Floats) -> float:
        values = [
            weighted_average_precision(scores[:, at], labels[:, at], weights[order[:, at]])
            for at in range(truth.shape[1])
        ]
        return float("nan") if np.isnan(values).all() else float(np.nanmean(values))

    recording = result.test.recording
    return {
        "accuracy": interval(lambda weights: weighted_mean(is_right, weights), recording, seed),
        "map": interval(mean_average_precision, recording, seed),
    }


def _choose_compared(truth: Booleans, seed: int) -> Integers:
    """Return the windows of the test that have a label, or as many of them as can be compared with each other."""
    labelled = np.flatnonzero(truth.any(axis=1))
    if len(labelled) <= MAX_COMPARED:
        return labelled
    return np.sort(np.random.default_rng(seed).choice(labelled, MAX_COMPARED, replace=False))


def _measure_neighbours(
    vectors: NDArray[np.float32], truth: Booleans, recording: Integers, k: int, seed: int
) -> dict[str, Interval]:
    """Return the figures of retrieval and clustering, each with its interval."""
    found = measure_retrieval(vectors, truth, recording, k)
    figures = {
        "retrieval_auc": interval(lambda weights: weighted_mean(found.roc_auc, weights), recording, seed),
        f"precision_at_{k}": interval(lambda weights: weighted_mean(found.precision, weights), recording, seed),
    }
    is_single = truth.sum(axis=1) == 1
    label, units = truth[is_single].argmax(axis=1), np.nan_to_num(unit_vectors(vectors[is_single]))
    n_clusters = len(np.unique(label))
    if n_clusters < 2:
        return figures | {"clustering_nmi": Interval(float("nan"), float("nan"), float("nan"))}
    cluster = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(units)  # type: ignore[arg-type] — documented

    def agreement(weights: Floats) -> float:
        rows = np.repeat(np.arange(len(label)), weights.astype(np.int64))
        return float(normalized_mutual_info_score(label[rows], cluster[rows])) if len(rows) else float("nan")

    return figures | {"clustering_nmi": interval(agreement, recording[is_single], seed)}
