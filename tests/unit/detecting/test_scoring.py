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
    threshold = np.array([0.3, 0.9, 0.0, LEFT_OUT], np.float32)
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
    scorer = Scorer(np.ones((2, 3), np.float32), np.zeros(2, np.float32), np.full(2, 0.5, np.float32), False)
    assert len(scorer.find_hits(np.empty((0, 3), np.float32)).window) == 0


def test_scores_far_from_zero_are_numbers() -> None:
    weight = np.array([[1e4], [-1e4]], np.float32)
    for is_exclusive in (False, True):
        scorer = Scorer(weight, np.zeros(2, np.float32), np.zeros(2, np.float32), is_exclusive)
        scores = scorer.find_hits(np.array([[3.0], [-3.0]], np.float32)).score
        assert scores.tolist() == [1, 0, 0, 1]
