"""Call density: bins of scores, and estimates whose intervals hold the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from embedding.detecting.density import (
    EDGES,
    LEAST_WINDOWS,
    MOST_BINS,
    N_FINE,
    bins_of,
    estimate,
    fine_bin,
    merge_unjudged,
)


def test_a_score_lies_in_the_fine_bin_between_its_edges() -> None:
    logits = np.array([-1e9, EDGES[0], -0.1, 0.0, EDGES[-1], 1e9])
    bins = fine_bin(logits)
    assert bins[[0, -1]].tolist() == [0, N_FINE - 1]
    for logit, number in zip(logits[1:-1], bins[1:-1], strict=True):
        assert EDGES[number - 1] <= logit
        assert number == len(EDGES) or logit < EDGES[number]


@given(st.lists(st.integers(0, 10_000), min_size=N_FINE, max_size=N_FINE))
def test_each_bin_holds_about_half_of_the_windows_above_the_bin_below(counts: list[int]) -> None:
    bins = bins_of(np.array(counts))
    assert bins[0] == 0
    assert set(np.diff(bins)) <= {0, 1}
    assert bins[-1] < MOST_BINS
    in_bins = np.bincount(bins, counts)
    for number in range(1, len(in_bins)):
        above = in_bins[number:].sum()
        assert above <= sum(counts) / 2**number
        assert above >= LEAST_WINDOWS / 2


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ([1, 1, 1], [0, 1, 2]),
        ([0, 1, 1], [0, 0, 1]),
        ([1, 0, 1], [0, 0, 1]),
        ([0, 0, 1], [0, 0, 0]),
        ([1, 0, 0], [0, 0, 0]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_bins_without_a_judged_window_join_their_neighbour(judged: list[int], expected: list[int]) -> None:
    assert merge_unjudged(np.array([0, 1, 2]), np.array(judged)).tolist() == expected


def test_the_estimate_is_the_weighted_share_of_calls() -> None:
    judged_bin = np.array([0] * 10 + [1] * 10)
    is_call = np.array([False] * 10 + [True] * 8 + [False] * 2)
    value, low, high = estimate(judged_bin, is_call, np.array([[0.9, 0.1], [0.0, 1.0], [1.0, 0.0]]))
    assert value == pytest.approx([0.08, 0.8, 0.0])
    assert (low <= value).all()
    assert (value <= high).all()
    assert low[1] < 0.7
    assert high[1] > 0.9
    assert high[2] > 0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Windows whose scores overlap, ten judged in each bin, over 300 archives."""
    n_held, rng = 0, np.random.default_rng(1)
    for _ in range(300):
        is_call = rng.random(20_000) < 0.05
        logits = rng.normal(np.where(is_call, 1.5, -3.0), 1.5)
        fine = fine_bin(logits)
        bins = bins_of(np.bincount(fine, minlength=N_FINE))
        own = bins[fine]
        judged = np.concatenate([rng.choice(np.flatnonzero(own == b), 10) for b in range(bins[-1] + 1)])
        shares = np.bincount(own, minlength=bins[-1] + 1)[None] / len(own)
        _, low, high = estimate(own[judged], is_call[judged], shares)
        n_held += low[0] <= is_call.mean() <= high[0]
    assert 0.88 <= n_held / 300 <= 1.0


def test_probabilities_of_the_probe_are_not_needed() -> None:
    """A probe that is far too sure changes the scores, and not the estimate."""
    rng = np.random.default_rng(0)
    is_call = rng.random(20_000) < 0.1
    logits = rng.normal(np.where(is_call, 1, -1), 1)
    for scale, offset in ((1.0, 0.0), (3.0, 5.0)):
        changed = logits * scale + offset
        assert expit(changed).mean() != pytest.approx(is_call.mean(), abs=0.02)
        fine = fine_bin(changed)
        bins = bins_of(np.bincount(fine, minlength=N_FINE))
        own = bins[fine]
        judged = rng.choice(len(own), 3_000)
        merged = merge_unjudged(bins, np.bincount(own[judged], minlength=bins[-1] + 1))
        shares = np.bincount(merged[fine], minlength=merged[-1] + 1)[None] / len(own)
        value, *_ = estimate(merged[fine][judged], is_call[judged], shares)
        assert value[0] == pytest.approx(is_call.mean(), abs=0.02)
