"""Arithmetic of probes: splits without leaks, balanced samples, labels of windows, weights, metrics."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from embedding.probing.labels import TEST, TRAIN, Labels
from embedding.probing.logistic_regression import MAX_ITERATIONS, C, fit
from embedding.probing.metrics import measure, pool_by_recording
from embedding.probing.stratified_sample import StratifiedSample, select_balanced
from embedding.probing.train_test_split import split_groups, split_recordings

SECONDS = st.integers(0, 20).map(lambda tenths: tenths / 2)


def make_labels(n_recordings: int, annotations: list[tuple[int, int]], groups: list[str] | None = None) -> Labels:
    """Return labels with annotations of whole recordings, given as (recording, label)."""
    recording, label = (np.array(sorted(annotations), np.int64).reshape(-1, 2)[:, at] for at in (0, 1))
    files = np.array([f"{at:04d}.wav" for at in range(n_recordings)], object)
    return Labels(
        files=files,
        groups=files if groups is None else np.array(groups, object),
        splits=None,
        classes=np.array([str(at) for at in range(10)], object),
        recording=recording,
        label=label,
        start_s=np.full(len(label), -np.inf),
        end_s=np.full(len(label), np.inf),
    )


@given(st.data())
def test_no_group_is_both_in_train_and_in_test(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, 9)), max_size=60))
    groups = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=n, max_size=n))
    labels = make_labels(n, pairs, groups)
    is_test = split_recordings(labels, data.draw(st.floats(0.05, 0.95)), data.draw(st.integers(0, 99)))
    assert is_test.shape == (n,)
    assert len({*zip(groups, is_test.tolist(), strict=True)}) == len(set(groups))


@given(
    n_of_class=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    test_share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_a_class_in_two_groups_or_more_is_in_train_and_test_in_its_share(
    n_of_class: list[int], test_share: float, seed: int
) -> None:
    class_of_group = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(n_of_class)), n_of_class))
    is_test = split_groups(class_of_group[:, None] == np.arange(len(n_of_class)), test_share, seed)
    for at, n in enumerate(n_of_class):
        n_test = int(is_test[class_of_group == at].sum())
        assert abs(n_test - test_share * n) <= 1
        assert n < 2 or 1 <= n_test < n


def test_another_seed_draws_another_split() -> None:
    has_class = np.ones((20, 1), bool)
    assert (split_groups(has_class, 0.5, 0) == split_groups(has_class, 0.5, 0)).all()
    assert (split_groups(has_class, 0.5, 0) != split_groups(has_class, 0.5, 1)).any()


def test_the_split_of_a_manifest_is_used() -> None:
    labels = make_labels(3, [(0, 0), (1, 1), (2, 1)])
    splits = np.array([TRAIN, TEST, TRAIN], object)
    assert split_recordings(replace(labels, splits=splits), 0.9, 0).tolist() == [False, True, False]


@given(
    windows=st.lists(st.tuples(st.integers(0, 3), SECONDS, SECONDS), max_size=12),
    annotations=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), SECONDS, SECONDS), max_size=12),
    whole_recordings=st.booleans(),
)
def test_a_window_has_the_labels_that_share_half_of_the_shorter_one(
    windows: list[tuple[int, float, float]], annotations: list[tuple[int, int, float, float]], whole_recordings: bool
) -> None:
    window_rows = [(file, start_s, start_s + length_s) for file, start_s, length_s in windows]
    label_rows = sorted((file, label, min(edges), max(edges)) for file, label, *edges in annotations)
    if whole_recordings:
        label_rows = [(file, label, -np.inf, np.inf) for file, label, *_ in label_rows]
    recording, label, start_s, end_s = (np.array([row[at] for row in label_rows]) for at in range(4))
    labels = replace(
        make_labels(4, []),
        recording=recording.astype(np.int64),
        label=label.astype(np.int64),
        start_s=start_s.astype(float),
        end_s=end_s.astype(float),
    )
    expected = np.zeros((len(window_rows), 10), bool)
    for at, (window_file, start, end) in enumerate(window_rows):
        for file, name, first, last in label_rows:
            shared_s = min(end, last) - max(start, first)
            shares_half = shared_s >= min(end - start, last - first) / 2
            # A label without length lies in the window that begins with it, not in the one that ends with it.
            expected[at, name] |= file == window_file and shares_half and (last > first or first < end)
    file, start, end = (np.array([row[at] for row in window_rows]) for at in range(3))
    assert (labels.label_windows(file.astype(np.int64), start.astype(float), end.astype(float)) == expected).all()


@given(
    stratum=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    limit=st.integers(5, 60),
    n_tables=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@example(stratum=[0] * 8 + [1] * 3 + [0] * 2, limit=5, n_tables=5, seed=0)  # one is cut, then the other grows
def test_a_sample_is_balanced_and_bounded_however_rows_are_divided_into_tables(
    stratum: list[int], limit: int, n_tables: int, seed: int
) -> None:
    rows = pa.table({"row": np.arange(len(stratum))})
    sample = StratifiedSample(limit, np.random.default_rng(seed))
    for part in np.array_split(np.arange(len(stratum)), n_tables):
        sample.add(rows.take(pa.array(part)), np.array(stratum, np.int64)[part])
        assert sum(map(len, sample._tables)) <= 2 * limit + len(part)  # rows in memory
    draw = np.random.default_rng(seed).random(len(stratum))
    drawn = sample.rows()["row"].to_pylist()
    assert drawn == np.flatnonzero(select_balanced(np.array(stratum), draw, limit)).tolist()
    assert sample.n_added == len(stratum)
    assert len(drawn) <= limit
    n_drawn, n = (np.bincount(np.array(stratum)[at], minlength=5) for at in (drawn, slice(None)))
    for drawn_of_stratum, size in zip(n_drawn, n, strict=True):  # a stratum gives all rows, or as many as the others
        assert drawn_of_stratum == size or drawn_of_stratum >= n_drawn.max() - 1
    assert len(drawn) == len(stratum) or len(drawn) > limit - 5


def fit_with_scikit_learn(vectors: np.ndarray, target: np.ndarray) -> Pipeline:
    """Learn the same model with scikit-learn alone."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=MAX_ITERATIONS)).fit(vectors, target)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("n_classes", [2, 3])
@settings(max_examples=30)
@given(dim=st.integers(1, 20), offset=st.sampled_from([0.0, 30.0]), seed=st.integers(0, 99))
def test_scores_of_vectors_as_stored_are_the_decisions_of_scikit_learn(
    n_classes: int, dim: int, offset: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(60) % n_classes)
    centred = target[:, None] * rng.standard_normal(dim) + rng.standard_normal((60, dim))
    vectors = ((centred + offset) * rng.uniform(0.1, 10, dim)).astype(np.float32)
    truth = target[:, None] == np.arange(n_classes)

    exclusive, expected = fit(vectors.copy(), truth, is_exclusive=True), fit_with_scikit_learn(vectors, target)
    scores = exclusive.scores(vectors)
    decisions = scores[:, 1] - scores[:, 0] if n_classes == 2 else scores
    assert np.allclose(decisions, expected.decision_function(vectors), atol=1e-5)
    assert np.allclose(exclusive.probabilities(scores), expected.predict_proba(vectors), atol=1e-5)

    independent = fit(vectors.copy(), truth, is_exclusive=False)
    scores = independent.scores(vectors)
    for at in range(n_classes):
        expected = fit_with_scikit_learn(vectors, truth[:, at])
        assert np.allclose(scores[:, at], expected.decision_function(vectors), atol=1e-5)
        assert np.allclose(independent.probabilities(scores)[:, at], expected.predict_proba(vectors)[:, 1], atol=1e-5)


def test_a_dimension_that_never_changes_is_harmless() -> None:
    vectors = np.array([[1, 5], [2, 5], [3, 5], [4, 5]], np.float32)
    probe = fit(vectors.copy(), np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool), is_exclusive=True)
    assert np.isfinite(probe.weight).all()
    assert probe.scores(vectors).argmax(axis=1).tolist() == [0, 0, 1, 1]


@given(
    truth=arrays.arrays(bool, (12, 4)),
    train_truth=arrays.arrays(bool, (9, 4)),
    is_learnt=arrays.arrays(bool, 4),
    seed=st.integers(0, 99),
)
def test_a_class_that_cannot_be_measured_is_nan(
    truth: np.ndarray, train_truth: np.ndarray, is_learnt: np.ndarray, seed: int
) -> None:
    probabilities = np.random.default_rng(seed).random((12, 4)) * is_learnt
    metrics = measure(probabilities, truth, train_truth, is_learnt, is_exclusive=False)
    measurable = is_learnt & truth.any(axis=0) & ~truth.all(axis=0)
    for values in (metrics.average_precision, metrics.roc_auc, metrics.prevalence):
        assert (np.isfinite(values) == measurable).all()
    if not measurable.any():
        assert metrics.means()["roc_auc"] is None
    assert metrics.accuracy == np.mean([((probabilities[at] >= 0.5) == truth[at]).all() for at in range(len(truth))])
    train_rows = [tuple(row) for row in train_truth.tolist()]
    n_most_frequent = max(map(train_rows.count, train_rows))
    assert metrics.majority_accuracy in [
        np.mean([tuple(row) == train_row for row in truth.tolist()])
        for train_row in train_rows
        if train_rows.count(train_row) == n_most_frequent
    ]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 99))
def test_a_recording_has_the_mean_probability_and_all_labels_of_its_windows(recording: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities, truth = rng.random((len(recording), 3)), rng.random((len(recording), 3)) < 0.3
    means, labels = pool_by_recording(np.array(recording), probabilities, truth)
    for at, number in enumerate(sorted(set(recording))):
        is_of_recording = np.array(recording) == number
        assert np.allclose(means[at], probabilities[is_of_recording].mean(axis=0))
        assert (labels[at] == truth[is_of_recording].any(axis=0)).all()
