"""Sums over all windows, the choice of the sample, and columns of manifests; compared with NumPy over all at once."""

from collections import Counter
from datetime import datetime, timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from embedding.listing.manifest_columns import ManifestColumns
from embedding.listing.start_times import recorded_at
from embedding.output.store import Store, embeddings_schema
from embedding.overview import shard_sums
from embedding.overview.plotly_figures import hours_figure
from embedding.overview.point_colours import HUES, ColourScheme, PointDetails, common_folder
from embedding.overview.sample_choice import hash_windows, largest_sampled_hash
from embedding.overview.shard_sums import ShardSums, sum_shard
from embedding.overview.weighted_values import (
    USUAL_DEVIATIONS,
    UsualRange,
    WeightedValues,
    round_norms,
    seconds_by_hour,
)

DIM = 3
NORMS = npst.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 1e6, width=32))


def write_shards(root: str, windows: list[tuple[int, int]], n_shards: int) -> None:
    """Write windows (recording, index) in their order to ``n_shards`` shards."""
    for number, part in enumerate(np.array_split(np.array(windows), n_shards)):
        ids, index = part[:, 0], part[:, 1]
        vectors = np.array([vector_of(recording, window) for recording, window in part.tolist()], np.float32)
        columns: dict[str, Any] = {
            "file": [file_of(recording) for recording in ids.tolist()],
            "file_id": ids,
            "window_index": index,
            "n_windows": np.full(len(ids), 99),
            "start_time": index * 5.0,
            "end_time": index * 5.0 + 5,
            "sample_rate": np.full(len(ids), 48_000),
            "channels": np.full(len(ids), 1),
            "duration": ids * 1000.0,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
        }
        Store(root, "{}").write_shard(pa.table(columns).cast(embeddings_schema(DIM)), f"s{number}")


def file_of(recording: int) -> str:
    """Return the name of a recording; every second name has a start time."""
    if recording % 2:
        return f"/a/202505{recording % 28 + 1:02d}_2330{recording % 60:02d}.wav"
    return f"/a/{recording}.wav"


def vector_of(recording: int, window: int) -> list[float]:
    if (recording, window) == (2, 1):
        return [np.nan, 0, 0]
    return [recording, window / 7, 1.5] if recording != 3 else [0, 0, 0]


WINDOWS = [(recording, window) for recording in range(1, 12) for window in range(9)]


def sum_output(root: Path, sample_size: int) -> ShardSums:
    inventory = Store(str(root), "").read()
    largest_hash = largest_sampled_hash(inventory.window_ranges, sample_size)
    return reduce(ShardSums.plus, [sum_shard(uri, largest_hash, recorded_at) for uri in inventory.shards])


def sampled_keys(sums: ShardSums) -> set[tuple[int, int]]:
    return {(row["file_id"], row["window_index"]) for row in sums.sample.to_pylist()}


def test_sums_do_not_depend_on_the_division_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_sums, "BATCH_ROWS", 7)
    monkeypatch.setattr(shard_sums, "N_EXTREMES", 4)
    shuffled = [WINDOWS[position] for position in np.random.default_rng(0).permutation(len(WINDOWS))]
    write_shards(str(tmp_path / "one"), WINDOWS, 1)
    write_shards(str(tmp_path / "several"), shuffled, 6)
    one, several = (sum_output(tmp_path / folder, 30) for folder in ("one", "several"))
    vectors = np.array([vector_of(*window) for window in WINDOWS], np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    finite = norms[np.isfinite(norms)]
    for sums in (one, several):
        assert sums.n_nonfinite == 1
        assert sums.norms.total == len(finite)
        assert sums.norms.median() == pytest.approx(np.sort(finite)[(len(finite) - 1) // 2], rel=1e-3)
        extremes = np.concatenate([np.sort(finite)[:4], np.sort(finite)[-4:]])
        assert np.allclose(sums.extremes["norm"].to_numpy(), extremes)
        assert (sums.n_timed, sums.n_untimed) == (6, 5)
        assert sums.by_hour.total == sum(1000.0 * i for i in range(1, 12, 2))
        for row in sums.sample.to_pylist():
            expected = np.array(vector_of(row["file_id"], row["window_index"]), np.float32)
            assert np.array_equal(row["embedding"], expected, equal_nan=True)
    assert sampled_keys(one) == sampled_keys(several)
    assert len(sampled_keys(one)) == len(one.sample) == 30
    assert one.extremes.select(["file", "window_index"]) == several.extremes.select(["file", "window_index"])


def test_a_sample_has_the_requested_size_or_all_windows(tmp_path: Path) -> None:
    write_shards(str(tmp_path), WINDOWS + WINDOWS[:40], 4)  # some rows are stored twice, as by a run that died
    for n in (1, 17, len(WINDOWS), 1000):
        assert len(sampled_keys(sum_output(tmp_path, n))) == min(n, len(WINDOWS))


def test_a_larger_sample_contains_a_smaller_one(tmp_path: Path) -> None:
    write_shards(str(tmp_path), WINDOWS, 3)
    assert sampled_keys(sum_output(tmp_path, 10)) < sampled_keys(sum_output(tmp_path, 40))


def test_every_window_has_the_same_chance() -> None:
    """A sample has 100 of 2,000 windows, so with 400 seeds a window is in some 20 samples.

    The recordings have very different lengths.
    """
    ids = np.repeat(np.arange(4), [1000, 900, 90, 10])
    index = np.concatenate([np.arange(n) for n in (1000, 900, 90, 10)])
    counts = np.zeros(len(ids))
    for seed in range(400):
        hashes = hash_windows(ids, index, seed)
        counts += hashes <= np.sort(hashes)[99]
    assert counts.sum() == 400 * 100
    # Binomial with n = 400 and p = 1/20: a variance of 19. The share of a recording is that of its length.
    assert counts.var() == pytest.approx(19, rel=0.2)
    for recording, share in enumerate((0.5, 0.45, 0.045, 0.005)):
        assert counts[ids == recording].sum() == pytest.approx(40_000 * share, rel=0.1)


@given(NORMS, NORMS)
def test_added_values_have_the_median_and_counts_of_all_values(first: np.ndarray, second: np.ndarray) -> None:
    both = WeightedValues.of(first).plus(WeightedValues.of(second))
    together = np.concatenate([first, second])
    assert both.total == len(together)
    assert both.median() == np.sort(together)[(len(together) - 1) // 2]
    assert both.between(1.0, 100.0) == ((together >= 1) & (together <= 100)).sum()
    edges = np.linspace(0, 1e6, 9)
    assert np.array_equal(both.binned(edges), np.histogram(together, edges)[0])


@given(NORMS)
def test_rounding_changes_a_norm_by_less_than_its_bound(norms: np.ndarray) -> None:
    down = round_norms(norms)
    normal = norms > np.finfo(np.float32).tiny
    assert (down <= norms).all()
    assert (norms[normal] - down[normal] <= norms[normal] / 2**12).all()


def test_norms_far_from_the_median_are_outside_the_usual_range() -> None:
    rng = np.random.default_rng(0)
    norms = rng.normal(10, 1, 10_000).astype(np.float32)
    usual = UsualRange.of(WeightedValues.of(round_norms(np.concatenate([norms, np.array([0, 0, 40], np.float32)]))))
    assert usual.median == pytest.approx(10, abs=0.05)
    assert usual.deviation == pytest.approx(1, abs=0.05)
    assert usual.high - usual.median == pytest.approx(USUAL_DEVIATIONS * usual.deviation)
    assert usual.low < norms.min() < norms.max() < usual.high < 40


def test_vectors_of_one_length_have_a_usual_range_too() -> None:
    usual = UsualRange.of(WeightedValues.of(round_norms(np.array([1.0] * 50 + [1.0001] * 50 + [0.0, 2.0], np.float32))))
    assert 0.9 < usual.low < 1 < usual.high < 1.1
    assert UsualRange.of(WeightedValues.of(np.zeros(9, np.float32))) == UsualRange(0.0, 0.0)


@given(
    st.lists(
        st.tuples(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)), st.floats(0, 100_000)),
        min_size=1,
        max_size=8,
    )
)
def test_seconds_of_recordings_are_counted_in_hours_of_the_clock(recordings: list[tuple[datetime, float]]) -> None:
    start_s = np.array([time for time, _ in recordings], "datetime64[s]").astype(np.float64)
    by_hour = seconds_by_hour(start_s, np.array([duration_s for _, duration_s in recordings]))
    assert by_hour.total == pytest.approx(sum(duration_s for _, duration_s in recordings), abs=1e-3)
    expected: Counter[int] = Counter()
    for time, duration_s in recordings:
        hour = time.replace(minute=0, second=0, microsecond=0)
        begin, end = time.replace(microsecond=0), time.replace(microsecond=0) + timedelta(seconds=duration_s)
        while hour == begin or hour < end:
            overlap = min(end, hour + timedelta(hours=1)) - max(begin, hour)
            expected[round((hour - datetime(1970, 1, 1)).total_seconds()) // 3600] += max(0, overlap.total_seconds())  # type: ignore[assignment]
            hour += timedelta(hours=1)
    for hour_number, seconds in zip(by_hour.values.tolist(), by_hour.weights.tolist(), strict=True):
        assert seconds == pytest.approx(expected[hour_number], abs=1e-3)


def manifest(**columns: list[Any]) -> pa.Table:
    return pa.table(columns)


def test_columns_of_manifests_are_joined_by_file() -> None:
    labelled = manifest(
        file=["/a", "/b", "/a", "/a"], label=["robin", "wren", "owl", "robin"], note=[None, "", None, "x"]
    )
    sites = manifest(file=["/a", "/c"], site=[1, 2])
    columns = ManifestColumns.of([labelled, sites]).values(["/b", "/a", "/d", "/a"])
    assert columns == {
        "label": ["wren", "robin; owl", None, "robin; owl"],
        "note": [None, "x", None, "x"],
        "site": [None, "1", None, "1"],
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["2025-05-03T03:13:00", ""], datetime(2025, 5, 3, 3, 13)),
        (["2025-05-03 03:13", None], datetime(2025, 5, 3, 3, 13)),
        (["2025-05-03T03:13:00Z", None], datetime(2025, 5, 3, 3, 13)),
        (["2025-05-03T03:13:00+10:00", None], datetime(2025, 5, 3, 3, 13)),  # the local time of the recorder is kept
        ([datetime(2025, 5, 3, 3, 13), None], datetime(2025, 5, 3, 3, 13)),
        (["1970-01-01T00:00:00", "2025-01-01T00:00:00"], None),  # a clock that was not set
        (["2025-05-03", None], None),  # no time of day
        (["2025-05-03T03:13:00", "dawn"], None),  # not a column of times, except where its name says so
        (["03:13", "04:00"], None),
        ([3.5, 7.25], None),
    ],
)
@pytest.mark.parametrize("column", ["recorded_at", "Time", "TIMESTAMP", "datetime"])
def test_start_times_are_read_from_a_column_of_times(values: list[Any], expected: datetime | None, column: str) -> None:
    columns = ManifestColumns.of([manifest(file=["/a.wav", "/b.wav"], **{column: values})])
    if column == "recorded_at" and "dawn" in values:
        assert columns.unreadable_times == ["dawn"]
        expected = datetime(2025, 5, 3, 3, 13)
    assert columns.recorded_at("/a.wav") == expected


def test_timestamps_with_a_zone_become_local_times() -> None:
    times = pa.array([datetime(2025, 5, 3, 3, 13)], pa.timestamp("ns", "Australia/Brisbane"))
    columns = ManifestColumns.of([pa.table({"file": ["/a.wav"], "time": times})])
    assert columns.recorded_at("/a.wav") == datetime(2025, 5, 3, 13, 13)
    assert columns.values(["/a.wav"]) == {}


def test_a_time_in_a_manifest_comes_before_a_time_in_the_name() -> None:
    files = [f"/{day}.wav" for day in ("20240101_000000", "20240102_000000", "20240103_000000", "20240103_000000")]
    columns = ManifestColumns.of(
        [manifest(file=files, time=["2025-06-01T12:00", "", "2025-06-01T01:00", "2025-06-01T02:00"])]
    )
    assert columns.recorded_at(files[0]) == datetime(2025, 6, 1, 12)
    assert columns.recorded_at(files[1]) == datetime(2024, 1, 2)
    assert columns.recorded_at(files[2]) == datetime(
        2024, 1, 3
    )  # two times: the manifest has times of events, not of the start
    assert columns.recorded_at("/elsewhere.wav") is None


def test_the_most_frequent_values_have_hues_and_all_other_values_are_one_group() -> None:
    values = [letter for rank, letter in enumerate("abcdefghijkl") for _ in range(20 - rank)] + [None] * 3
    scheme = ColourScheme.of("label", values)
    groups = {name: (colour, n) for name, colour, n in scheme.groups}
    assert list(groups)[: len(HUES)] == list("abcdefgh")
    assert len({colour for colour, _ in groups.values()}) == len(HUES) + 2
    assert groups["4 others"][1] == sum(20 - rank for rank in (8, 9, 10, 11))
    assert groups["not known"][1] == 3
    for value, group in zip(values, scheme.group, strict=True):
        name = scheme.groups[group][0]
        assert name == (value if value in groups else "not known" if value is None else "4 others")


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        (["/data/a/1.wav", "/data/b/2.wav"], "/data/"),
        (["/data/a/1.wav", "/data/ab/2.wav"], "/data/"),
        (["/data/a/1.wav", "/data/2.wav"], "/data/"),
        (["/data/a/1.wav"], "/data/a/"),
        (["s3://one/a.wav", "s3://one/b/c.wav"], "s3://one/"),
        (["/a.wav", "s3://b/c.wav"], ""),
        ([], ""),
    ],
)
def test_the_common_folder_of_names_is_found(files: list[str], folder: str) -> None:
    assert common_folder(files) == folder


def test_columns_that_distinguish_points_have_colour_schemes() -> None:
    n = 120
    values = {
        "label": ["robin", *[None] * (n - 1)],
        "site": [str(number % 50) for number in range(n)],
        "id": [str(number % 51) for number in range(n)],
        "year": ["2025"] * n,
        "nothing": [None] * n,
        "folder": [str(number % 3) for number in range(n)],
    }
    files = [f"/a/b/{number}.wav" for number in range(n)]
    zero = np.zeros(n)
    windows = pa.table({"file": files, "start_time": zero, "end_time": zero + 5})
    details = PointDetails.of(windows, ManifestColumns.of([manifest(file=files, **values)]), "/a/")
    names = [scheme.name for scheme in details.colour_schemes(np.repeat([0, -1], n // 2))]
    assert names == ["label", "site", "folder (manifest)", "cluster"]
    assert [scheme.name for scheme in details.colour_schemes(np.full(n, -1))] == names[:-1]


@pytest.mark.parametrize(
    ("n_days", "columns", "first"),
    [
        (1, 1, "2024-12-31"),
        (200, 200, "2024-12-31"),
        (201, 29, "2024-12-30"),  # Mondays
        (1_399, 200, "2024-12-30"),  # to a Sunday
        (1_400, 47, "2024-12-01"),  # to October 2028
        (9_000, 26, "2024-01-01"),  # to 2049
    ],
)
def test_dates_are_drawn_in_days_weeks_months_or_years(n_days: int, columns: int, first: str) -> None:
    """Days from New Year's Eve of 2024, a Tuesday, on; each hour of audio is in its own cell."""
    day = np.datetime64("2024-12-31").astype(int) + np.array(sorted({0, n_days // 2, n_days - 1}))
    hour = 24 * day + np.arange(len(day)) * 7
    heat = hours_figure(WeightedValues(hour, np.full(len(hour), 3600.0))).data[0]
    assert len(heat.x) == columns + 1  # type: ignore[attr-defined]
    assert heat.x[0] == first  # type: ignore[attr-defined]
    cells = np.argwhere(~np.isnan(heat.z))  # type: ignore[attr-defined]
    assert cells[:, 0].tolist() == [7 * number for number in range(len(day))]
    edges = np.array(heat.x, "datetime64[D]").astype(int)  # type: ignore[attr-defined]
    assert (edges[cells[:, 1]] <= day).all()
    assert (day < edges[cells[:, 1] + 1]).all()
