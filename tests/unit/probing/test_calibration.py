"""Calibration of scores: probabilities that agree with how often a label is there."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from embedding.probing.calibration import (
    LEAST_EXAMPLES,
    N_BINS,
    calibrate,
    calibrate_across,
    measure_reliability,
    probabilities,
)

N = 4000


def draw(*, is_exclusive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, and labels that are there with just the logits' probabilities."""
    rng = np.random.default_rng(1)
    logits = rng.normal(-0.5, 1.5, (N, 3))
    if not is_exclusive:
        return logits, rng.random((N, 3)) < expit(logits)
    label = (rng.random((N, 1)) > np.cumsum(softmax(logits, axis=1), axis=1)).sum(axis=1)
    return logits, np.arange(3) == label[:, None]


@pytest.mark.parametrize("is_exclusive", [False, True])
def test_overconfident_scores_are_brought_back(*, is_exclusive: bool) -> None:
    logits, truth = draw(is_exclusive=is_exclusive)
    scores = 4 * logits + (0 if is_exclusive else 3)
    found = calibrate(scores, truth, is_exclusive=is_exclusive)
    assert found.is_fitted.all()
    assert np.allclose(found.scale, 0.25, rtol=0.15)
    assert np.allclose(found.offset, 0 if is_exclusive else -0.75, atol=0.15)
    before, after = (
        measure_reliability(probabilities(each, is_exclusive=is_exclusive), truth)
        for each in (scores, calibrate_across(scores, truth, np.arange(N) // 8, is_exclusive=is_exclusive))
    )
    assert after.error < 0.03 < before.error
    assert after.brier < before.brier


def test_each_recording_is_calibrated_by_others() -> None:
    logits, truth = draw(is_exclusive=False)
    recording = np.arange(N) // 100
    scores = 4 * logits
    expected = calibrate_across(scores, truth, recording, is_exclusive=False)
    changed = truth.copy()
    changed[recording == 0] = ~changed[recording == 0]
    found = calibrate_across(scores, changed, recording, is_exclusive=False)
    assert (found[recording == 0] == expected[recording == 0]).all()
    assert not (found[recording == 1] == expected[recording == 1]).all()


def test_a_class_with_few_examples_keeps_its_scores() -> None:
    logits, truth = draw(is_exclusive=False)
    truth[:, 1] = False
    truth[: LEAST_EXAMPLES - 1, 1] = True
    found = calibrate(logits, truth, is_exclusive=False)
    assert found.is_fitted.tolist() == [True, False, True]
    assert (found.scale[1], found.offset[1]) == (1, 0)


def test_calibration_keeps_the_order_of_windows() -> None:
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((200, 1))
    truth = scores < 0  # a probe that is worse than chance
    calibrated = calibrate(scores, truth, is_exclusive=False).apply(scores)
    assert (np.argsort(calibrated[:, 0]) == np.argsort(scores[:, 0])).all()


def test_reliability_by_hand() -> None:
    probability = np.array([[0.05], [0.05], [0.95], [0.95], [1.0]])
    truth = np.array([[False], [True], [True], [True], [False]])
    found = measure_reliability(probability, truth)
    low, high = abs(0.05 - 0.5), abs((0.95 + 0.95 + 1) / 3 - 2 / 3)
    assert found.error == pytest.approx((2 * low + 3 * high) / 5)
    assert found.brier == pytest.approx((2 * 0.05**2 + 0.95**2 - 0.05**2 + 2 * 0.05**2 + 1 - 0) / 5, abs=0.02)
    bins = found.describe()["bins"]
    assert [(each["from"], each["n"]) for each in bins] == [(0.0, 2), ((N_BINS - 1) / N_BINS, 3)]


def test_scores_that_are_all_right_do_not_become_certain() -> None:
    label = np.arange(20) % 2
    truth = np.arange(2) == label[:, None]
    scores = np.where(truth, 0.5, -0.5)
    found = calibrate(scores, truth, is_exclusive=True)
    assert probabilities(found.apply(scores), is_exclusive=True).max() < 0.97
