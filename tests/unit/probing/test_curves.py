"""Curves and confusions of a probe's test."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from embedding.probing.curves import MOST_POINTS, confusions, precision_over_recall


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=200))
def test_points_lie_on_the_curve_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    score, truth = (np.array(each) for each in zip(*rows, strict=True))
    points = precision_over_recall(score.astype(float), truth)
    if not truth.any():
        assert points == []
        return
    precision, recall, _ = precision_recall_curve(truth, score)
    known = {(round(r, 4), round(p, 4)) for r, p in zip(recall, precision, strict=True)}
    assert set(points) <= known
    assert points[-1][0] == 1
    assert [recall for recall, _ in points] == sorted(recall for recall, _ in points)
    assert len(points) <= MOST_POINTS


def test_a_window_counts_for_each_of_its_classes() -> None:
    scores = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 4.0], [1.0, 0.0]])
    truth = np.array([[True, False], [True, True], [False, False], [False, True]])
    assert confusions(scores, truth).tolist() == [[1, 1], [1, 1]]
    assert confusions(scores, np.zeros((4, 2), bool)).tolist() == [[0, 0], [0, 0]]
