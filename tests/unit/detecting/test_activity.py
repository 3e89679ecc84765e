"""Counts of detections by label, hour, date and site."""

from datetime import datetime
from typing import Any

import pyarrow as pa

from embedding.detecting.activity import Activity, add_activity

COLUMNS = pa.schema(
    [
        ("file_id", pa.int64()),
        ("start_time", pa.float64()),
        ("label", pa.string()),
        ("recorded_at", pa.timestamp("us")),
        ("site", pa.string()),
    ]
)


def rows_of(*rows: tuple[tuple[int, datetime | None, str | None], float, str]) -> pa.Table:
    """Return detections, given as (recording, seconds from its start, label)."""
    names = COLUMNS.names
    listed: list[dict[str, Any]] = [
        dict(zip(names, (file_id, start_s, label, began, site), strict=True))
        for (file_id, began, site), start_s, label in rows
    ]
    return pa.Table.from_pylist(listed, COLUMNS)


def test_detections_count_in_the_hour_on_the_date_and_at_the_site_in_which_they_begin() -> None:
    activity: dict[str, Activity] = {}
    night, noon = (1, datetime(2025, 5, 31, 23, 30), "wood"), (2, datetime(2025, 6, 1, 12), "pond")
    untimed, nowhere = (3, None, "wood"), (4, None, None)
    add_activity(rows_of((night, 0.0, "owl"), (night, 1799.9, "owl"), (night, 1800.0, "owl")), activity)
    add_activity(
        rows_of((noon, 30.0, "wren"), (noon, 60.0, "owl"), (untimed, 0.0, "owl"), (nowhere, 0.0, "owl")), activity
    )
    owl = activity["owl"].describe()
    assert (owl["detections"], owl["recordings"]) == (6, 4)
    assert {hour: n for hour, n in enumerate(owl["by_hour"]) if n} == {23: 2, 0: 1, 12: 1}
    assert owl["by_date"] == {"2025-05-31": 2, "2025-06-01": 2}
    by_site = {site: counts["detections"] for site, counts in owl["by_site"].items()}
    assert by_site == {"pond": 1, "wood": 4}
    assert {hour: n for hour, n in enumerate(owl["by_site"]["wood"]["by_hour"]) if n} == {23: 2, 0: 1}
    assert activity["wren"].detections == activity["wren"].recordings == activity["wren"].by_hour[12] == 1


def test_no_detections_are_no_labels() -> None:
    activity: dict[str, Activity] = {}
    add_activity(rows_of(), activity)
    assert activity == {}
