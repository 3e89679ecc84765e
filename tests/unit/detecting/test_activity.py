"""Counts of detections by label, hour and date."""

import pyarrow as pa

from embedding.detecting.activity import Activity, add_activity


def test_detections_count_in_the_hour_and_on_the_date_in_which_they_begin() -> None:
    activity: dict[str, Activity] = {}
    night, noon, other = "/a/20250531_233000.wav", "/b/20250601_120000.WAV", "/b/notes.wav"
    rows = [
        (night, 0.0, "owl"),
        (night, 1799.9, "owl"),
        (night, 1800.0, "owl"),
        (noon, 30.0, "wren"),
        (noon, 60.0, "owl"),
        (other, 0.0, "owl"),
    ]
    for part in (rows[:3], rows[3:]):
        file, start_s, label = zip(*part, strict=True)
        add_activity(pa.table({"file": file, "start_time": start_s, "label": label}), activity)
    owl = activity["owl"].describe()
    assert (owl["detections"], owl["recordings"]) == (5, 3)
    assert {hour: n for hour, n in enumerate(owl["by_hour"]) if n} == {23: 2, 0: 1, 12: 1}
    assert owl["by_date"] == {"2025-05-31": 2, "2025-06-01": 2}
    assert activity["wren"].detections == activity["wren"].recordings == activity["wren"].by_hour[12] == 1


def test_no_detections_are_no_labels() -> None:
    activity: dict[str, Activity] = {}
    empty = {
        "file": pa.array([], pa.string()),
        "start_time": pa.array([], pa.float64()),
        "label": pa.array([], pa.string()),
    }
    add_activity(pa.table(empty), activity)
    assert activity == {}
