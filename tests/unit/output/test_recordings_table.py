"""The table of recordings: its sources, their order, their contradictions, and what happens to it between runs."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.errors import RequestError
from embedding.listing.manifest_columns import ManifestColumns
from embedding.output.recordings_table import (
    NAME,
    RECORDINGS_TABLE,
    WHEN_AND_WHERE,
    RecordingsById,
    read_recordings,
    read_stored,
    update_recordings,
    write_recordings,
)
from embedding.output.store import Store
from embedding.schema.recording_facts import RecordingFacts, encode_facts
from tests.support.shards import shard

NAMES = "/a/{}_20250503_031300.wav"
NAMED = datetime(2025, 5, 3, 3, 13)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), '{"model": "m"}')


def write(store: Store, name: str, facts: dict[int, list[RecordingFacts]], names: str = NAMES) -> str:
    """Write a shard with one window of each recording."""
    table = shard(*((file_id, 0, 1) for file_id in facts), names=names)
    column = pa.array([encode_facts(each) for each in facts.values()], pa.string())
    return store.write_shard(table.append_column("recorder_facts", column), name)


def manifest(*rows: dict[str, Any]) -> ManifestColumns:
    return ManifestColumns.of([pa.Table.from_pylist([{"file": NAMES.format(row.pop("id"))} | row for row in rows])])


def table_of(store: Store, manifests: ManifestColumns | None = None) -> dict[int, dict[str, Any]]:
    """Bring the stored table up to date; return its rows by ``file_id``, without nulls."""
    table = update_recordings(store.read(), read_stored(store), manifests).rows
    write_recordings(store, table)
    return {
        row["file_id"]: {name: value for name, value in row.items() if value is not None} for row in table.to_pylist()
    }


def test_the_file_comes_before_the_name(store: Store) -> None:
    guano = RecordingFacts("guano", datetime(2025, 5, 3, 3, 13, 5), 60, 47.0, 8.0, "SM4", "12 dB", 11.5, 6.1)
    write(store, "s", {1: [guano], 2: []})
    rows = table_of(store)
    stated = {name: value for name, value in guano.stated().items() if name != "source"}
    assert rows[1] == stated | {"file": NAMES.format(1), "file_id": 1, "recorded_at_from": "guano"}
    assert rows[2] == {"file": NAMES.format(2), "file_id": 2, "recorded_at": NAMED, "recorded_at_from": "name"}


def test_each_value_comes_from_the_first_source_that_states_it(store: Store) -> None:
    sources = [
        RecordingFacts("guano", latitude=47.0, longitude=8.0),
        RecordingFacts("audiomoth", NAMED, 120, battery_v=4.1, recorder="AudioMoth 1"),
        RecordingFacts("bext", NAMED, recorder="other"),
    ]
    write(store, "s", {1: sources})
    row = table_of(store)[1]
    assert (row["recorded_at"], row["utc_offset_min"], row["recorded_at_from"]) == (NAMED, 120, "audiomoth")
    assert (row["latitude"], row["battery_v"], row["recorder"]) == (47.0, 4.1, "AudioMoth 1")


def test_the_offset_belongs_to_the_time_of_the_same_source(store: Store) -> None:
    write(store, "s", {1: [RecordingFacts("guano", NAMED), RecordingFacts("audiomoth", NAMED, 120)]})
    assert "utc_offset_min" not in table_of(store)[1]


@pytest.mark.parametrize(
    ("facts", "contradiction"),
    [
        (RecordingFacts("guano", datetime(2025, 5, 3, 3, 13, 40)), None),  # some seconds
        (RecordingFacts("guano", datetime(2025, 5, 3, 5, 13), 120), None),  # the name is in UTC
        (RecordingFacts("guano", NAMED, 120), None),  # the name is in local time
        (
            RecordingFacts("guano", datetime(2025, 5, 3, 4, 13)),
            "guano says 2025-05-03 04:13:00, name says 2025-05-03 03:13:00",
        ),
        (
            RecordingFacts("guano", datetime(2025, 5, 4, 3, 13), -330),
            "guano says 2025-05-04 03:13:00 -05:30, name says 2025-05-03 03:13:00",
        ),
    ],
)
def test_a_header_that_contradicts_the_name_is_told(
    store: Store, facts: RecordingFacts, contradiction: str | None
) -> None:
    write(store, "s", {1: [facts]})
    table = update_recordings(store.read(), None, None)
    assert table.rows["contradiction"].to_pylist() == [contradiction]
    assert table.new_contradictions == ([(NAMES.format(1), contradiction)] if contradiction else [])
    again = update_recordings(store.read(), table.rows, None)
    assert again.new_contradictions == []  # told once
    assert again.rows.equals(table.rows)


def test_positions_that_contradict_each_other_are_told(store: Store) -> None:
    write(store, "s", {1: [RecordingFacts("guano", latitude=47.0, longitude=8.0)]}, "/a/{}_REC [47.5 8.0].wav")
    assert table_of(store)[1]["contradiction"] == "guano says 47 8, name says 47.5 8"


def test_a_manifest_comes_before_all_and_adds_its_columns(store: Store) -> None:
    write(store, "s", {1: [RecordingFacts("guano", NAMED, 60, 47.0, 8.0)], 2: [], 3: []})
    given = manifest(
        {"id": 1, "recorded_at": "2025-05-03T02:13:00", "site": "A", "latitude": "47.001", "longitude": "8.0"}
        | {"height": "3", "n": "01"},
        {"id": 2, "recorded_at": "2025-05-03T03:13:00+02:00", "site": "B", "height": "2.5", "n": "2"},
    )
    rows = table_of(store, given)
    assert (rows[1]["recorded_at"], rows[1]["recorded_at_from"]) == (datetime(2025, 5, 3, 2, 13), "manifest")
    assert "utc_offset_min" not in rows[1]
    # 02:13 is 03:13 +01:00 in UTC, as GUANO says, but the name may be by any clock.
    assert rows[1]["contradiction"] == "manifest says 2025-05-03 02:13:00, name says 2025-05-03 03:13:00"
    assert (rows[1]["site"], rows[1]["latitude"], rows[1]["height"], rows[1]["n"]) == ("A", 47.001, 3.0, "01")
    assert (rows[2]["utc_offset_min"], rows[2]["site"], rows[2]["height"], rows[2]["n"]) == (120, "B", 2.5, "2")
    assert "site" not in rows[3]


def test_columns_of_a_manifest_outlive_runs_without_it(store: Store) -> None:
    write(store, "s", {1: [], 2: []})
    table_of(store, manifest({"id": 1, "site": "A", "height": "3"}))
    write(store, "t", {3: []})
    rows = table_of(store, manifest({"id": 3, "site": "C", "height": "high"}))
    assert [rows[i].get("site") for i in (1, 2, 3)] == ["A", None, "C"]
    assert [rows[i].get("height") for i in (1, 2, 3)] == ["3", None, "high"]  # no longer numbers alone
    assert rows == table_of(store)


def test_a_corrected_manifest_corrects_its_values_and_its_contradiction(store: Store) -> None:
    write(store, "s", {1: [RecordingFacts("audiomoth", NAMED, None, 47.0, 8.0)], 2: []})
    wrong = manifest({"id": 1, "recorded_at": "2024-05-03T03:13:00", "latitude": "10", "longitude": "8"})
    row = table_of(store, wrong)[1]
    assert row["contradiction"] == "manifest says 2024-05-03 03:13:00, audiomoth says 2025-05-03 03:13:00"
    right = manifest({"id": 1, "recorded_at": "2025-05-03T03:13:00", "latitude": "+47.0 ", "longitude": " 8e0"})
    row = table_of(store, right)[1]
    assert (row["recorded_at"], row["latitude"], row["longitude"]) == (NAMED, 47.0, 8.0)
    assert "contradiction" not in row


def test_a_time_of_a_manifest_stays_when_another_manifest_says_nothing_of_it(store: Store) -> None:
    write(store, "s", {1: []})
    table_of(store, manifest({"id": 1, "recorded_at": "2025-05-03T04:00:00"}))
    row = table_of(store, manifest({"id": 1, "site": "A"}))[1]
    assert (row["recorded_at"], row["recorded_at_from"], row["site"]) == (datetime(2025, 5, 3, 4), "manifest", "A")


def test_contradictions_of_a_later_manifest_are_told_once(store: Store) -> None:
    write(store, "s", {1: []})
    table_of(store)
    other = manifest({"id": 1, "recorded_at": "2025-05-03T09:00:00"})
    first = update_recordings(store.read(), read_stored(store), other)
    assert [file for file, _ in first.new_contradictions] == [NAMES.format(1)]
    assert update_recordings(store.read(), first.rows, other).new_contradictions == []


def test_long_numbers_of_a_manifest_stay_as_they_are(store: Store) -> None:
    write(store, "s", {1: [], 2: []})
    table_of(store, manifest({"id": 1, "serial": "123456789012345"}))
    assert table_of(store)[1]["serial"] == 123456789012345
    rows = table_of(store, manifest({"id": 2, "serial": "12"}))
    assert (rows[1]["serial"], rows[2]["serial"]) == (123456789012345, 12)
    rows = table_of(store, manifest({"id": 2, "serial": "x"}))
    assert (rows[1]["serial"], rows[2]["serial"]) == ("123456789012345", "x")


def test_values_that_are_no_times_are_unknown_and_named(store: Store) -> None:
    write(store, "s", {1: [], 2: []}, "/a/{}.wav")
    rows = [("/a/1.wav", "2025-05-03T03:13:00"), ("/a/2.wav", "unknown")]
    given = ManifestColumns.of([pa.Table.from_pylist([{"file": f, "recorded_at": t} for f, t in rows])])
    assert given.unreadable_times == ["unknown"]
    found = table_of(store, given)
    assert (found[1]["recorded_at"], "recorded_at" in found[2]) == (NAMED, False)
    far = pa.table({"file": ["/a/1.wav"], "time": pa.array([2**60], pa.timestamp("us"))})
    assert ManifestColumns.of([far]).starts == {}


def test_recordings_that_are_no_longer_stored_have_no_row(store: Store) -> None:
    uri = write(store, "s", {1: [], 2: []})
    write(store, "t", {3: []})
    table_of(store)
    Path(uri).unlink()
    assert list(table_of(store)) == [3]


def test_shards_whose_recordings_are_known_are_not_read_again(store: Store) -> None:
    write(store, "s", {1: [], 2: []})
    table_of(store)
    write(store, "t", {3: []})
    read: list[tuple[Any, ...]] = []

    def noted(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        read.extend(calls)
        return [function(*call) for call in calls]

    update_recordings(store.read(), read_stored(store), None, noted)
    assert [uri.rpartition("/")[2] for (uri,) in read] == ["t.parquet"]


def test_impossible_facts_in_a_shard_are_left_out(store: Store) -> None:
    table = shard((1, 0, 1), names="/a/{}.wav")
    stated = '[{"source":"guano","latitude":1e300,"longitude":8.0,"battery_v":4.0,"recorded_at":"1970-01-01T00:00:00"}]'
    store.write_shard(table.append_column("recorder_facts", pa.array([stated])), "s")
    assert table_of(store)[1] == {"file": "/a/1.wav", "file_id": 1, "battery_v": 4.0}


@pytest.mark.parametrize("stated", ["x", "{}", "[1]", '[{"source":"a","latitude":"1"}]', '[{"latitude":1.0}]'])
def test_facts_that_are_none_are_one_line(store: Store, stated: str) -> None:
    store.write_shard(shard((1, 0, 1)).append_column("recorder_facts", pa.array([stated])), "s")
    with pytest.raises(RequestError, match="the facts of its recorder") as caught:
        table_of(store)
    assert "\n" not in str(caught.value)


def test_a_damaged_table_is_one_line_that_says_what_to_do(store: Store) -> None:
    write(store, "s", {1: []})
    table_of(store)
    uri = Path(store.root) / NAME
    good = uri.read_bytes()
    wrong_type = pq.read_table(uri).set_column(2, "recorded_at", pa.array(["now"]))
    nested = pq.read_table(uri).append_column("x", pa.array([[1]]))
    for content in (good[:-20], b"", b"PAR1", wrong_type, nested, pq.read_table(uri).drop_columns("site")):
        if isinstance(content, bytes):
            uri.write_bytes(content)
        else:
            pq.write_table(content, uri)
        with pytest.raises(RequestError, match=r"is damaged .*: delete it and run jobs.embed again") as caught:
            read_stored(store)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("state", ["complete", "incomplete", "running", "stopped", "failed"])
def test_after_a_run_that_did_not_end_the_table_is_made_from_the_shards(store: Store, state: str) -> None:
    write(store, "s", {1: []})
    table_of(store, manifest({"id": 1, "site": "A"}))
    write(store, "t", {2: []})
    (Path(store.root) / "report.json").write_text(json.dumps({"state": state}))
    table = read_recordings(store)
    expected = [1] if state in ("complete", "incomplete") else [1, 2]
    assert table["file_id"].to_pylist() == expected
    assert table["site"].to_pylist()[0] == "A"


def test_an_output_of_an_earlier_version_has_the_times_of_its_names(store: Store) -> None:
    store.write_shard(shard((1, 0, 1), names=NAMES), "s")
    table = read_recordings(store)
    assert table.schema.equals(RECORDINGS_TABLE)
    assert table["recorded_at"].to_pylist() == [NAMED]
    assert not (Path(store.root) / NAME).exists()


def test_facts_are_found_by_identity(store: Store) -> None:
    write(store, "s", {5: [RecordingFacts("guano", latitude=5.0, longitude=1.0)], -3: []})
    table = update_recordings(store.read(), None, None).rows
    found = RecordingsById(table).when_and_where(np.array([7, -3, 5, 5]))
    assert found.column_names == WHEN_AND_WHERE
    assert found["latitude"].to_pylist() == [None, None, 5.0, 5.0]
    assert found["recorded_at"].to_pylist() == [None, NAMED, NAMED, NAMED]
    nothing = RecordingsById(RECORDINGS_TABLE.empty_table()).when_and_where(np.array([7]))
    assert nothing["site"].to_pylist() == [None]
