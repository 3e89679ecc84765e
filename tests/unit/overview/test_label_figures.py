"""Pictures of detections and probes, and the files from which they are drawn."""

import json
from pathlib import Path
from typing import Any

import pytest

from embedding.overview.label_figures import (
    MOST_CLASSES,
    activity_by_date_figure,
    activity_by_hour_figure,
    confusions_figure,
    density_figure,
    most_frequent,
    precision_over_recall_figure,
)
from embedding.overview.stored_results import DensityRecord, DetectedClass, ProbeFigures, StoredResults

DENSITY = {
    "judged": 80,
    "density": 0.2,
    "density_low": 0.1,
    "density_high": 0.3,
    "windows_with_call": 20,
    "windows_with_call_low": 10,
    "windows_with_call_high": 30,
}


def detected(label: str, hours: dict[int, int], **more: Any) -> DetectedClass:
    by_hour = [hours.get(hour, 0) for hour in range(24)]
    return DetectedClass(label=label, detections=sum(by_hour), by_hour=by_hour, **more)


def test_each_class_has_a_row_that_goes_to_its_own_maximum() -> None:
    figure: Any = activity_by_hour_figure([detected("rare", {3: 1}), detected("common <b>", {5: 80, 6: 40})])
    (heat,) = figure.data
    assert list(heat.y) == ["common &lt;b&gt;", "rare"]
    assert heat.z[0][[5, 6]].tolist() == [1.0, 0.5]
    assert heat.z[1][3] == 1
    assert heat.customdata[0][5] == 80


def test_without_times_dates_or_judgements_there_is_no_picture() -> None:
    untimed = [DetectedClass(label="owl", detections=3)]
    assert activity_by_hour_figure(untimed) is None
    assert activity_by_date_figure(untimed) is None
    assert activity_by_date_figure([detected("owl", {1: 2}, by_date={"2025-05-03": 2, "no date": 1})]) is None
    assert density_figure(untimed) is None
    assert precision_over_recall_figure(ProbeFigures(classes=["a"])) is None
    assert precision_over_recall_figure(ProbeFigures(classes=["a"], curves={"a": []})) is None
    assert confusions_figure(ProbeFigures(classes=["a", "b"], confusions=[[1, 2]])) is None


def test_the_most_frequent_classes_are_shown() -> None:
    classes = [DetectedClass(label=f"{n}", detections=n) for n in range(MOST_CLASSES + 5)]
    shown = [each.detections for each in most_frequent(classes)]
    assert shown == list(range(MOST_CLASSES + 4, 4, -1))


def test_dates_are_in_order_and_days_without_detections_are_empty() -> None:
    classes = [
        detected("owl", {1: 3}, by_date={"2025-05-04": 1, "2025-05-03": 2}),
        detected("wren", {1: 1}, by_date={"2025-05-05": 1}),
    ]
    figure: Any = activity_by_date_figure(classes)
    (heat,) = figure.data
    assert list(heat.x)[:3] == ["2025-05-03", "2025-05-04", "2025-05-05"]
    assert heat.customdata.tolist() == [[2, 1, 0], [0, 0, 1]]


def test_densities_have_their_intervals() -> None:
    figure: Any = density_figure([detected("owl", {}, density=DensityRecord(**DENSITY))])
    (points,) = figure.data
    assert (points.x[0], points.error_x.array[0], points.error_x.arrayminus[0]) == (20, 10, 10)


def test_curves_and_confusions_of_a_probe() -> None:
    probe = ProbeFigures(classes=["a", "b"], curves={"a": [(0.0, 1.0), (1.0, 0.5)]}, confusions=[[3, 1], [0, 0]])
    curve: Any = precision_over_recall_figure(probe)
    table: Any = confusions_figure(probe)
    assert list(curve.data[0].y) == [1.0, 0.5]
    assert table.data[0].z[0].tolist() == [0.75, 0.25]
    assert table.data[0].text.tolist() == [["3", "1"], ["", ""]]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"classes": [{"label": 1}]}', b'{"classes": [{"label": "a", "by_hour": [1]}]}', b"\xff"],
)
def test_a_damaged_file_is_a_warning_and_the_others_are_shown(tmp_path: Path, content: bytes) -> None:
    for name, text in (
        ("good", json.dumps({"classes": [{"label": "owl", "detections": 2}]}).encode()),
        ("bad", content),
    ):
        (tmp_path / "detections" / name).mkdir(parents=True)
        (tmp_path / "detections" / name / "summary.json").write_bytes(text)
    (tmp_path / "detections" / "being written").mkdir()
    (tmp_path / "probes" / "p").mkdir(parents=True)
    (tmp_path / "probes" / "p" / "probe.json").write_text('{"classes": ["a"], "of": "an earlier version"}')
    results = StoredResults.read(str(tmp_path))
    assert list(results.detections) == ["good"]
    assert list(results.probes) == ["p"]
    (warning,) = results.warnings
    assert "bad/summary.json cannot be read" in warning
    assert "\n" not in warning


def test_an_output_without_results_has_none(tmp_path: Path) -> None:
    assert StoredResults.read(str(tmp_path)) == StoredResults({}, {}, [])
