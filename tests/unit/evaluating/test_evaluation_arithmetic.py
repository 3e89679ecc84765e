"""Figures of an evaluation, against scikit-learn and against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from embedding.evaluating import retrieval
from embedding.evaluating.bootstrap import interval, weighted_average_precision, weighted_mean
from embedding.evaluating.classifiers import classify
from embedding.evaluating.retrieval import measure_retrieval


@pytest.mark.parametrize("chunk_rows", [3, 256])
def test_retrieval_is_that_of_each_window_over_other_recordings(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int
) -> None:
    monkeypatch.setattr(retrieval, "CHUNK_ROWS", chunk_rows)
    rng = np.random.default_rng(0)
    n, k = 40, 5
    truth = rng.random((n, 3)) < 0.4
    recording = rng.integers(0, 8, n)
    vectors = (truth @ rng.standard_normal((3, 6)) + rng.standard_normal((n, 6))).astype(np.float32)
    vectors[3] = 0
    found = measure_retrieval(vectors, truth, recording, k)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    for at in range(n):
        other = recording != recording[at]
        right = (truth[other] & truth[at]).any(axis=1)
        if right.all() or not right.any():
            assert np.isnan(found.roc_auc[at])
            continue
        cosines = units[other] @ units[at]
        assert found.roc_auc[at] == pytest.approx(roc_auc_score(right, cosines), abs=1e-6)
        if at != 3:  # all cosines of a vector of zeros are equal, and any windows are the nearest
            assert found.precision[at] == pytest.approx(right[np.argsort(-cosines)[:k]].mean())


SCORES = st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.5, 0.9]), st.booleans(), st.integers(0, 3)), min_size=1)


@given(SCORES)
def test_average_precision_with_weights_is_that_of_repeated_rows(rows: list[tuple[float, bool, int]]) -> None:
    score, truth, weight = (np.array(column, float) for column in zip(*sorted(rows), strict=True))
    found = weighted_average_precision(score, truth, weight)
    repeated = np.repeat(np.arange(len(score)), weight.astype(int))
    if not truth[repeated].any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(average_precision_score(truth[repeated], score[repeated]))


def test_an_interval_covers_the_spread_between_recordings() -> None:
    rng = np.random.default_rng(0)
    recording = np.repeat(np.arange(50), 10)
    values = np.repeat(rng.normal(0.5, 0.1, 50), 10)  # windows of a recording are alike
    found = interval(lambda weights: weighted_mean(values, weights), recording, 0)
    assert found.value == pytest.approx(values.mean())
    standard_error = 0.1 / np.sqrt(50)
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.25)
    assert str(interval(lambda weights: float("nan"), recording, 0)) == "–"
    assert found == interval(lambda weights: weighted_mean(values, weights), recording, 0), "the same seed"


def test_a_single_recording_has_no_interval() -> None:
    found = interval(lambda weights: weighted_mean(np.array([0.0, 1.0]), weights), np.zeros(2, np.int64), 0)
    assert np.isnan(found.low)
    assert str(found) == "0.500"


@pytest.mark.parametrize("name", ["knn", "mlp"])
@pytest.mark.parametrize("is_exclusive", [False, True])
@pytest.mark.usefixtures("one_thread")
def test_classifiers_learn_what_can_be_learnt(name: str, *, is_exclusive: bool) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 300)
    truth = np.arange(4) == label[:, None]  # a fourth class without examples
    if not is_exclusive:
        truth[:, 3] = label == 0
    vectors = (np.eye(3)[label] * 3 + rng.standard_normal((300, 3))).astype(np.float32)
    found = classify(name, vectors[:200], truth[:200], vectors[200:], is_exclusive=is_exclusive, seed=0)
    assert found.shape == (100, 4)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[:, :3].argmax(axis=1) == label[200:]).mean() > 0.8
    if not is_exclusive:
        assert roc_auc_score(truth[200:, 3], found[:, 3]) > 0.9


@pytest.mark.parametrize("name", ["knn", "mlp"])
@pytest.mark.usefixtures("one_thread")
def test_one_class_is_there_or_not(name: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((120, 3)).astype(np.float32)
    truth = vectors[:, :1] > 0
    found = classify(name, vectors[:100], truth[:100], vectors[100:], is_exclusive=False, seed=0)
    assert found.shape == (20, 1)
    assert ((found > 0.5) == truth[100:]).mean() > 0.7
