"""Sums over all windows and the choice of the sample, against NumPy over everything at once."""

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

from embedding.listing.start_times import recorded_at
from embedding.output.store import Store, embeddings_schema
from embedding.overview import shard_sums as summing
from embedding.overview.manifest_columns import Columns
from embedding.overview.plotly_figures import hours
from embedding.overview.point_colours import HUES, Colouring, Points, common_folder
from embedding.overview.sample_choice import last_number, numbers
from embedding.overview.shard_sums import Sums, sums_of
from embedding.overview.weighted_values import OUTLIER_SPREADS, Fence, Weighted, rounded, seconds_by_hour

DIM = 3
NORMS = npst.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 1e6, width=32))


def write(root: str, windows: list[tuple[int, int]], n_shards: int) -> None:
    """Rows (recording, window) as they come, over so many shards; every second name has a time."""
    for at, part in enumerate(np.array_split(np.array(windows), n_shards)):
        ids, index = part[:, 0], part[:, 1]
        vectors = np.array([vector(i, w) for i, w in part.tolist()], np.float32)
        columns: dict[str, Any] = {
            "file": [name(i) for i in ids.tolist()],
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
        Store(root, "{}").write_shard(pa.table(columns).cast(embeddings_schema(DIM)), f"s{at}")


def name(i: int) -> str:
    return f"/a/202505{i % 28 + 1:02d}_2330{i % 60:02d}.wav" if i % 2 else f"/a/{i}.wav"


def vector(recording: int, window: int) -> list[float]:
    if (recording, window) == (2, 1):
        return [np.nan, 0, 0]
    return [recording, window / 7, 1.5] if recording != 3 else [0, 0, 0]


WINDOWS = [(recording, window) for recording in range(1, 12) for window in range(9)]


def summed(root: Path, n: int) -> Sums:
    stored = Store(str(root), "").read()
    last = last_number(stored.window_ranges, n)
    return reduce(Sums.plus, [sums_of(uri, last, recorded_at) for uri in stored.shards])


def drawn(sums: Sums) -> set[tuple[int, int]]:
    return {(row["file_id"], row["window_index"]) for row in sums.drawn.to_pylist()}


def test_sums_do_not_depend_on_how_windows_lie_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "BATCH_ROWS", 7)
    monkeypatch.setattr(summing, "N_EXTREMES", 4)
    shuffled = [WINDOWS[at] for at in np.random.default_rng(0).permutation(len(WINDOWS))]
    write(str(tmp_path / "one"), WINDOWS, 1)
    write(str(tmp_path / "several"), shuffled, 6)
    one, several = (summed(tmp_path / folder, 30) for folder in ("one", "several"))
    vectors = np.array([vector(*window) for window in WINDOWS], np.float32)
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
        for row in sums.drawn.to_pylist():
            assert np.array_equal(
                row["embedding"], np.array(vector(row["file_id"], row["window_index"]), np.float32), equal_nan=True
            )
    assert drawn(one) == drawn(several)
    assert len(drawn(one)) == len(one.drawn) == 30
    assert one.extremes.select(["file", "window_index"]) == several.extremes.select(["file", "window_index"])


def test_as_many_windows_are_drawn_as_are_asked_for_or_all(tmp_path: Path) -> None:
    write(str(tmp_path), WINDOWS + WINDOWS[:40], 4)  # some rows twice: a run that died
    for n in (1, 17, len(WINDOWS), 1000):
        assert len(drawn(summed(tmp_path, n))) == min(n, len(WINDOWS))


def test_a_larger_sample_holds_the_smaller(tmp_path: Path) -> None:
    write(str(tmp_path), WINDOWS, 3)
    assert drawn(summed(tmp_path, 10)) < drawn(summed(tmp_path, 40))


def test_every_window_is_drawn_as_often() -> None:
    """Each of 2,000 windows in recordings of very different length is drawn some 20 times with 400 seeds."""
    ids = np.repeat(np.arange(4), [1000, 900, 90, 10])
    index = np.concatenate([np.arange(n) for n in (1000, 900, 90, 10)])
    counts = np.zeros(len(ids))
    for seed in range(400):
        number = numbers(ids, index, seed)
        counts += number <= np.sort(number)[99]
    assert counts.sum() == 400 * 100
    # Binomial with n = 400 and p = 1/20: a variance of 19. Of recordings together: what belongs to their lengths.
    assert counts.var() == pytest.approx(19, rel=0.2)
    for recording, share in enumerate((0.5, 0.45, 0.045, 0.005)):
        assert counts[ids == recording].sum() == pytest.approx(40_000 * share, rel=0.1)


@given(NORMS, NORMS)
def test_medians_and_counts_of_parts_are_those_of_all(first: np.ndarray, second: np.ndarray) -> None:
    both = Weighted.of(first).plus(Weighted.of(second))
    together = np.concatenate([first, second])
    assert both.total == len(together)
    assert both.median() == np.sort(together)[(len(together) - 1) // 2]
    assert both.between(1.0, 100.0) == ((together >= 1) & (together <= 100)).sum()
    edges = np.linspace(0, 1e6, 9)
    assert np.array_equal(both.binned(edges), np.histogram(together, edges)[0])


@given(NORMS)
def test_rounding_changes_no_norm_by_more_than_it_says(norms: np.ndarray) -> None:
    down = rounded(norms)
    normal = norms > np.finfo(np.float32).tiny
    assert (down <= norms).all()
    assert (norms[normal] - down[normal] <= norms[normal] / 2**12).all()


def test_what_is_far_from_the_median_is_outside_the_fence() -> None:
    rng = np.random.default_rng(0)
    usual = rng.normal(10, 1, 10_000).astype(np.float32)
    fence = Fence.of(Weighted.of(rounded(np.concatenate([usual, np.array([0, 0, 40], np.float32)]))))
    assert fence.median == pytest.approx(10, abs=0.05)
    assert fence.spread == pytest.approx(1, abs=0.05)
    assert fence.high - fence.median == pytest.approx(OUTLIER_SPREADS * fence.spread)
    assert fence.low < usual.min() < usual.max() < fence.high < 40


def test_vectors_of_one_length_have_a_fence_all_the_same() -> None:
    fence = Fence.of(Weighted.of(rounded(np.array([1.0] * 50 + [1.0001] * 50 + [0.0, 2.0], np.float32))))
    assert 0.9 < fence.low < 1 < fence.high < 1.1
    assert Fence.of(Weighted.of(np.zeros(9, np.float32))) == Fence(0.0, 0.0)


@given(
    st.lists(
        st.tuples(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)), st.floats(0, 100_000)),
        min_size=1,
        max_size=8,
    )
)
def test_hours_of_recordings_are_those_of_the_clock(recordings: list[tuple[datetime, float]]) -> None:
    start_s = np.array([time for time, _ in recordings], "datetime64[s]").astype(np.float64)
    found = seconds_by_hour(start_s, np.array([duration_s for _, duration_s in recordings]))
    assert found.total == pytest.approx(sum(duration_s for _, duration_s in recordings), abs=1e-3)
    expected: Counter[int] = Counter()
    for time, duration_s in recordings:
        hour = time.replace(minute=0, second=0, microsecond=0)
        begin, end = time.replace(microsecond=0), time.replace(microsecond=0) + timedelta(seconds=duration_s)
        while hour == begin or hour < end:
            overlap = min(end, hour + timedelta(hours=1)) - max(begin, hour)
            expected[round((hour - datetime(1970, 1, 1)).total_seconds()) // 3600] += max(0, overlap.total_seconds())  # type: ignore[assignment]
            hour += timedelta(hours=1)
    for hour_number, seconds in zip(found.values.tolist(), found.weights.tolist(), strict=True):
        assert seconds == pytest.approx(expected[hour_number], abs=1e-3)


def manifest(**columns: list[Any]) -> pa.Table:
    return pa.table(columns)


def test_columns_of_manifests_are_joined_by_file() -> None:
    labelled = manifest(
        file=["/a", "/b", "/a", "/a"], label=["robin", "wren", "owl", "robin"], note=[None, "", None, "x"]
    )
    sites = manifest(file=["/a", "/c"], site=[1, 2])
    columns = Columns.of([labelled, sites]).values(["/b", "/a", "/d", "/a"])
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
        (["2025-05-03T03:13:00+10:00", None], datetime(2025, 5, 3, 3, 13)),  # as the recorder's clock showed it
        ([datetime(2025, 5, 3, 3, 13), None], datetime(2025, 5, 3, 3, 13)),
        (["1970-01-01T00:00:00", "2025-01-01T00:00:00"], None),  # a clock that was not set
        (["2025-05-03", None], None),  # no time of day
        (["2025-05-03T03:13:00", "dawn"], None),  # a column of something else
        (["03:13", "04:00"], None),
        ([3.5, 7.25], None),
    ],
)
@pytest.mark.parametrize("column", ["recorded_at", "Time", "TIMESTAMP", "datetime"])
def test_a_column_of_times_says_when_recordings_began(
    values: list[Any], expected: datetime | None, column: str
) -> None:
    columns = Columns.of([manifest(file=["/a.wav", "/b.wav"], **{column: values})])
    assert columns.recorded_at("/a.wav") == expected


def test_timestamps_of_a_zone_are_what_its_clock_shows() -> None:
    times = pa.array([datetime(2025, 5, 3, 3, 13)], pa.timestamp("ns", "Australia/Brisbane"))
    columns = Columns.of([pa.table({"file": ["/a.wav"], "time": times})])
    assert columns.recorded_at("/a.wav") == datetime(2025, 5, 3, 13, 13)
    assert columns.values(["/a.wav"]) == {}


def test_a_manifests_time_goes_before_the_names_where_it_says_one() -> None:
    files = [f"/{day}.wav" for day in ("20240101_000000", "20240102_000000", "20240103_000000", "20240103_000000")]
    columns = Columns.of([manifest(file=files, time=["2025-06-01T12:00", "", "2025-06-01T01:00", "2025-06-01T02:00"])])
    assert columns.recorded_at(files[0]) == datetime(2025, 6, 1, 12)
    assert columns.recorded_at(files[1]) == datetime(2024, 1, 2)
    assert columns.recorded_at(files[2]) == datetime(2024, 1, 3)  # of something in it, not of its beginning
    assert columns.recorded_at("/elsewhere.wav") is None


def test_the_most_frequent_values_have_hues_and_the_rest_are_others() -> None:
    values = [letter for at, letter in enumerate("abcdefghijkl") for _ in range(20 - at)] + [None] * 3
    colouring = Colouring.of("label", values)
    named = {name: (colour, n) for name, colour, n in colouring.groups}
    assert list(named)[: len(HUES)] == list("abcdefgh")
    assert len({colour for colour, _ in named.values()}) == len(HUES) + 2
    assert named["4 others"][1] == sum(20 - at for at in (8, 9, 10, 11))
    assert named["not known"][1] == 3
    for value, group in zip(values, colouring.group, strict=True):
        name = colouring.groups[group][0]
        assert name == (value if value in named else "not known" if value is None else "4 others")


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
def test_names_are_shortened_by_the_folder_they_share(files: list[str], folder: str) -> None:
    assert common_folder(files) == folder


def test_columns_that_tell_points_apart_can_colour_them() -> None:
    n = 120
    values = {
        "label": ["robin", *[None] * (n - 1)],
        "site": [str(at % 50) for at in range(n)],
        "id": [str(at % 51) for at in range(n)],
        "year": ["2025"] * n,
        "nothing": [None] * n,
        "folder": [str(at % 3) for at in range(n)],
    }
    files = [f"/a/b/{at}.wav" for at in range(n)]
    zero = np.zeros(n)
    windows = pa.table({"file": files, "start_time": zero, "end_time": zero + 5})
    points = Points.of(windows, Columns.of([manifest(file=files, **values)]), "/a/")
    named = [colouring.name for colouring in points.colourings(np.repeat([0, -1], n // 2))]
    assert named == ["label", "site", "folder (manifest)", "cluster"]
    assert [colouring.name for colouring in points.colourings(np.full(n, -1))] == named[:-1]


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
    """From New Year's Eve of 2024, a Tuesday, on; each hour of audio in its own cell."""
    day = np.datetime64("2024-12-31").astype(int) + np.array(sorted({0, n_days // 2, n_days - 1}))
    hour = 24 * day + np.arange(len(day)) * 7
    heat = hours(Weighted(hour, np.full(len(hour), 3600.0))).data[0]
    assert len(heat.x) == columns + 1  # type: ignore[attr-defined]
    assert heat.x[0] == first  # type: ignore[attr-defined]
    cells = np.argwhere(~np.isnan(heat.z))  # type: ignore[attr-defined]
    assert cells[:, 0].tolist() == [7 * at for at in range(len(day))]
    edges = np.array(heat.x, "datetime64[D]").astype(int)  # type: ignore[attr-defined]
    assert (edges[cells[:, 1]] <= day).all()
    assert (day < edges[cells[:, 1] + 1]).all()
