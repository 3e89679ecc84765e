"""Hits of a scorer are those windows whose probability reaches the threshold of a class."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from embedding.detecting import scoring
from embedding.detecting.scoring import Scorer
from embedding.detecting.thresholds import LEFT_OUT


@pytest.mark.parametrize("is_exclusive", [False, True])
@pytest.mark.parametrize("chunk_rows", [7, 16_384])
def test_hits_are_all_windows_that_reach_the_threshold(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, *, is_exclusive: bool
) -> None:
    monkeypatch.setattr(scoring, "CHUNK_ROWS", chunk_rows)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((100, 5)).astype(np.float32)
    weight, bias = rng.standard_normal((4, 5)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    threshold = np.array([0.3, 0.9, 0.0, LEFT_OUT])
    found = Scorer(weight, bias, threshold, is_exclusive).find_hits(vectors)
    logits = vectors.astype(float) @ weight.T + bias
    probability = softmax(logits, axis=1) if is_exclusive else expit(logits)
    window, label = np.nonzero(probability >= threshold)
    assert (found.window == window).all()
    assert (found.label == label).all()
    assert np.allclose(found.score, probability[window, label], atol=1e-6)
    assert 3 not in found.label, "this class is left out"
    assert (found.label == 2).sum() == len(vectors), "every window reaches 0"


def test_no_windows_have_no_hits() -> None:
    scorer = Scorer(np.ones((2, 3), np.float32), np.zeros(2, np.float32), np.full(2, 0.5), False)
    assert len(scorer.find_hits(np.empty((0, 3), np.float32)).window) == 0


def test_scores_far_from_zero_are_numbers() -> None:
    weight = np.array([[1e4], [-1e4]], np.float32)
    for is_exclusive in (False, True):
        scorer = Scorer(weight, np.zeros(2, np.float32), np.zeros(2), is_exclusive)
        scores = scorer.find_hits(np.array([[3.0], [-3.0]], np.float32)).score
        assert scores.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("is_exclusive", [False, True])
@pytest.mark.parametrize("n", [1, 9, 200])
def test_the_best_windows_of_each_class_are_found(
    monkeypatch: pytest.MonkeyPatch, n: int, *, is_exclusive: bool
) -> None:
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 32)
    rng = np.random.default_rng(0)
    vectors, weight = rng.standard_normal((100, 5)).astype(np.float32), rng.standard_normal((3, 5)).astype(np.float32)
    scorer = Scorer(weight, np.zeros(3, np.float32), np.zeros(3), is_exclusive)
    every, found = scorer.find_hits(vectors), scorer.find_best(vectors, n)
    for label in range(3):
        best = np.sort(every.score[every.label == label])[::-1][:n]
        assert np.allclose(np.sort(found.score[found.label == label])[::-1][:n], best)
    assert len(set(zip(found.window, found.label, strict=True))) == len(found.window)


def test_a_threshold_close_to_one_is_a_threshold() -> None:
    weight = np.ones((1, 1), np.float32)
    for threshold, least in {1 - 1e-9: 20.7, 1 - 1e-12: 27.6}.items():
        scorer = Scorer(weight, np.zeros(1, np.float32), np.array([threshold]), False)
        found = scorer.find_hits(np.array([[least - 1], [least + 1]], np.float32))
        assert found.window.tolist() == [1]
