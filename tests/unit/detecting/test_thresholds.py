"""Thresholds: chosen by precision, or read from a file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.detecting.thresholds import LEFT_OUT, choose_thresholds, read_thresholds, thresholds_of
from embedding.errors import RequestError

SCORE = st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9])


@given(st.lists(st.tuples(SCORE, st.booleans()), min_size=1, max_size=25), st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_the_lowest_threshold_with_the_precision_is_chosen(rows: list[tuple[float, bool]], least: float) -> None:
    score, truth = (np.array(column) for column in zip(*rows, strict=True))
    chosen = choose_thresholds(score[:, None], truth[:, None], least)
    good = [cut for cut in np.unique(score) if truth[score >= cut].mean() >= least and truth[score >= cut].any()]
    if not good:
        assert chosen.threshold[0] == LEFT_OUT
        assert np.isnan(chosen.precision[0])
        return
    reaches = score >= min(good)
    assert max(score[~reaches], default=0) < chosen.threshold[0] < min(good)
    assert chosen.precision[0] == truth[reaches].mean() >= least
    assert chosen.recall[0] == truth[reaches].sum() / truth.sum()


def test_thresholds_of_a_file_are_those_of_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.csv"
    path.write_bytes("\ufefflabel,threshold\r\nwren,0.25\r\nGrün,1\r\n".encode())
    chosen = read_thresholds(str(path))
    assert thresholds_of(["Grün", "chiffchaff", "wren"], chosen, 0.5).tolist() == [1, 0.5, 0.25]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label,score\nwren,1", "lacks 'threshold'"),
        ("", "lacks 'label'"),
        ("label,threshold\nwren,1.5", "line 2"),
        ("label,threshold\nwren,high", "line 2"),
        ("label,threshold\nwren,\n", "line 2"),
        ("label,threshold\nwren,nan\n", "line 2"),
        ("label,threshold\n,0.5\n", "line 2"),
        ("label,threshold\nwren,0.5\nwren,0.6\n", "line 3"),
        ("label,threshold\nwren", "line 2"),
        ("label,threshold\n" + "x" * 200_000 + ",0.5", "field larger than"),
    ],
)
def test_a_file_that_is_none_of_thresholds_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "thresholds.csv"
    path.write_text(content)
    with pytest.raises(RequestError, match="--threshold-file: ") as error:
        read_thresholds(str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_threshold_of_no_class_names_the_nearest_class() -> None:
    with pytest.raises(RequestError, match="did you mean 'wren'"):
        thresholds_of(["wren", "robin"], {"wrenn": 0.5}, 0.5)
