"""Parts of a probe: splits that do not leak, samples, labels of windows, weights for vectors as they are."""

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
from embedding.probing.logistic_regression import MOST_ITERATIONS, C, fit
from embedding.probing.metrics import measure, to_recordings
from embedding.probing.stratified_sample import Sample, balanced
from embedding.probing.train_test_split import draw, is_test

SECONDS = st.integers(0, 20).map(lambda tenths: tenths / 2)


def labels_of(n_recordings: int, annotations: list[tuple[int, int]], groups: list[str] | None = None) -> Labels:
    """Return labels of (recording, label), each for the whole recording."""
    recording, label = (np.array(sorted(annotations), np.int64).reshape(-1, 2)[:, at] for at in (0, 1))
    files = np.array([f"{at:04d}.wav" for at in range(n_recordings)], object)
    return Labels(
        files=files,
        groups=files if groups is None else np.array(groups, object),
        sides=None,
        classes=np.array([str(at) for at in range(10)], object),
        recording=recording,
        label=label,
        start_s=np.full(len(label), -np.inf),
        end_s=np.full(len(label), np.inf),
    )


@given(st.data())
def test_no_group_is_on_both_sides(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, 9)), max_size=60))
    groups = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=n, max_size=n))
    side = is_test(labels_of(n, pairs, groups), data.draw(st.floats(0.05, 0.95)), data.draw(st.integers(0, 99)))
    assert side.shape == (n,)
    assert len({*zip(groups, side.tolist(), strict=True)}) == len(set(groups))


@given(
    n_of_class=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    test_share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_a_class_in_two_groups_or_more_is_on_both_sides_in_its_share(
    n_of_class: list[int], test_share: float, seed: int
) -> None:
    of_class = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(n_of_class)), n_of_class))
    side = draw(of_class[:, None] == np.arange(len(n_of_class)), test_share, seed)
    for at, n in enumerate(n_of_class):
        n_test = int(side[of_class == at].sum())
        assert abs(n_test - test_share * n) <= 1
        assert n < 2 or 1 <= n_test < n


def test_another_seed_draws_another_split() -> None:
    has = np.ones((20, 1), bool)
    assert (draw(has, 0.5, 0) == draw(has, 0.5, 0)).all()
    assert (draw(has, 0.5, 0) != draw(has, 0.5, 1)).any()


def test_what_the_manifest_says_of_sides_counts() -> None:
    labels = labels_of(3, [(0, 0), (1, 1), (2, 1)])
    sides = np.array([TRAIN, TEST, TRAIN], object)
    assert is_test(Labels(**vars(labels) | {"sides": sides}), 0.9, 0).tolist() == [False, True, False]


@given(
    windows=st.lists(st.tuples(st.integers(0, 3), SECONDS, SECONDS), max_size=12),
    annotations=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), SECONDS, SECONDS), max_size=12),
    throughout=st.booleans(),
)
def test_a_window_has_the_labels_that_share_half_of_the_shorter_one(
    windows: list[tuple[int, float, float]], annotations: list[tuple[int, int, float, float]], throughout: bool
) -> None:
    of_windows = [(file, start_s, start_s + length_s) for file, start_s, length_s in windows]
    of_labels = sorted((file, label, min(edges), max(edges)) for file, label, *edges in annotations)
    if throughout:
        of_labels = [(file, label, -np.inf, np.inf) for file, label, *_ in of_labels]
    recording, label, start_s, end_s = (np.array([row[at] for row in of_labels]) for at in range(4))
    labels = Labels(
        **vars(labels_of(4, []))
        | {
            "recording": recording.astype(np.int64),
            "label": label.astype(np.int64),
            "start_s": start_s.astype(float),
            "end_s": end_s.astype(float),
        }
    )
    expected = np.zeros((len(of_windows), 10), bool)
    for at, (file, start, end) in enumerate(of_windows):
        for own, name, first, last in of_labels:
            shared_s = min(end, last) - max(start, first)
            expected[at, name] |= own == file and shared_s >= min(end - start, last - first) / 2
    columns = (np.array([row[at] for row in of_windows]) for at in range(3))
    file, start, end = columns
    assert (labels.of_windows(file.astype(np.int64), start.astype(float), end.astype(float)) == expected).all()


@given(
    stratum=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    limit=st.integers(5, 60),
    n_tables=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@example(
    stratum=[0] * 8 + [1] * 3 + [0] * 2, limit=5, n_tables=5, seed=0
)  # a stratum that is cut before the other grows
def test_a_sample_is_balanced_and_bounded_however_its_rows_come(
    stratum: list[int], limit: int, n_tables: int, seed: int
) -> None:
    rows = pa.table({"row": np.arange(len(stratum))})
    sample = Sample(limit, np.random.default_rng(seed))
    for part in np.array_split(np.arange(len(stratum)), n_tables):
        sample.add(rows.take(pa.array(part)), np.array(stratum, np.int64)[part])
        assert sum(map(len, sample._tables)) <= 2 * limit + len(part)  # of which it holds no more
    lots = np.random.default_rng(seed).random(len(stratum))
    drawn = sample.rows()["row"].to_pylist()
    assert drawn == np.flatnonzero(balanced(np.array(stratum), lots, limit)).tolist()
    assert sample.n_seen == len(stratum)
    assert len(drawn) <= limit
    n_drawn, n = (np.bincount(np.array(stratum)[at], minlength=5) for at in (drawn, slice(None)))
    for few, there in zip(n_drawn, n, strict=True):  # none gives less than it has while another gives more
        assert few == there or few >= n_drawn.max() - 1
    assert len(drawn) == len(stratum) or len(drawn) > limit - 5


def plain(vectors: np.ndarray, target: np.ndarray) -> Pipeline:
    """The same by scikit-learn alone."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=MOST_ITERATIONS)).fit(vectors, target)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("n_classes", [2, 3])
@settings(max_examples=30)
@given(dim=st.integers(1, 20), offset=st.sampled_from([0.0, 30.0]), seed=st.integers(0, 99))
def test_scores_of_stored_vectors_are_scikit_learns_decisions(
    n_classes: int, dim: int, offset: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(60) % n_classes)
    centred = target[:, None] * rng.standard_normal(dim) + rng.standard_normal((60, dim))
    vectors = ((centred + offset) * rng.uniform(0.1, 10, dim)).astype(np.float32)
    truth = target[:, None] == np.arange(n_classes)

    together, theirs = fit(vectors.copy(), truth, is_exclusive=True), plain(vectors, target)
    scores = together.scores(vectors)
    decisions = scores[:, 1] - scores[:, 0] if n_classes == 2 else scores
    assert np.allclose(decisions, theirs.decision_function(vectors), atol=1e-5)
    assert np.allclose(together.probabilities(scores), theirs.predict_proba(vectors), atol=1e-5)

    each = fit(vectors.copy(), truth, is_exclusive=False)
    scores = each.scores(vectors)
    for at in range(n_classes):
        theirs = plain(vectors, truth[:, at])
        assert np.allclose(scores[:, at], theirs.decision_function(vectors), atol=1e-5)
        assert np.allclose(each.probabilities(scores)[:, at], theirs.predict_proba(vectors)[:, 1], atol=1e-5)


def test_a_dimension_that_never_changes_is_harmless() -> None:
    vectors = np.array([[1, 5], [2, 5], [3, 5], [4, 5]], np.float32)
    found = fit(vectors.copy(), np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool), is_exclusive=True)
    assert np.isfinite(found.weight).all()
    assert found.scores(vectors).argmax(axis=1).tolist() == [0, 0, 1, 1]


@given(
    truth=arrays.arrays(bool, (12, 4)),
    before=arrays.arrays(bool, (9, 4)),
    is_learnt=arrays.arrays(bool, 4),
    seed=st.integers(0, 99),
)
def test_a_class_that_cannot_be_measured_has_no_number(
    truth: np.ndarray, before: np.ndarray, is_learnt: np.ndarray, seed: int
) -> None:
    probabilities = np.random.default_rng(seed).random((12, 4)) * is_learnt
    found = measure(probabilities, truth, before, is_learnt, is_exclusive=False)
    measurable = is_learnt & truth.any(axis=0) & ~truth.all(axis=0)
    for values in (found.average_precision, found.roc_auc, found.prevalence):
        assert (np.isfinite(values) == measurable).all()
    if not measurable.any():
        assert found.means()["roc_auc"] is None
    assert found.accuracy == np.mean([((probabilities[at] >= 0.5) == truth[at]).all() for at in range(len(truth))])
    kinds = [tuple(row) for row in before.tolist()]
    n_likeliest = max(map(kinds.count, kinds))
    assert found.majority in [
        np.mean([tuple(row) == kind for row in truth.tolist()]) for kind in kinds if kinds.count(kind) == n_likeliest
    ]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 99))
def test_a_recording_has_the_mean_of_its_windows_and_any_of_their_labels(recording: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities, truth = rng.random((len(recording), 3)), rng.random((len(recording), 3)) < 0.3
    means, labels = to_recordings(np.array(recording), probabilities, truth)
    for at, own in enumerate(sorted(set(recording))):
        is_own = np.array(recording) == own
        assert np.allclose(means[at], probabilities[is_own].mean(axis=0))
        assert (labels[at] == truth[is_own].any(axis=0)).all()
