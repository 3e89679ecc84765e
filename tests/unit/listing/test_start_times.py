"""Start times in names of recordings: every time in a name is found, and other numbers are not times."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from embedding.listing.start_times import UNIX_YEARS, YEARS, facts_of_name, recorded_at
from embedding.schema.recording_facts import RecordingFacts

TIMES = st.datetimes(datetime(YEARS[0], 1, 1), datetime(YEARS[-1], 12, 31)).map(
    lambda time: time.replace(microsecond=0)
)
HEX_TIMES = st.datetimes(datetime(UNIX_YEARS[0], 1, 2), datetime(UNIX_YEARS[-1], 12, 30), timezones=st.just(UTC))
FORMATS = [
    "%Y%m%d_%H%M%S",
    "%Y%m%d$%H%M%S",
    "%Y%m%dT%H%M%S",
    "%Y%m%d-%H%M%S",
    "%Y%m%d_%H%M%ST",
    "%Y%m%dT%H%M%SZ",
    "%Y%m%dT%H%M%S+1000",
    "%Y-%m-%dT%H-%M-%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H%M%S",
]


SURROUNDINGS = st.sampled_from(
    [
        f"{folder}{before}{{}}{after}{suffix}"
        for folder in ("", "/a/b/", "s3://bucket/20200101_000000/")
        for before in ("", "SITE_", "242A2604603691DD_", "CHE_02_", "a b ")
        for after in ("", "_001", " dawn", "_0+1")
        for suffix in (".WAV", ".flac", "")
    ]
)


@given(TIMES, st.sampled_from(FORMATS), SURROUNDINGS)
def test_a_time_is_found_among_other_text(time: datetime, time_format: str, around: str) -> None:
    assert recorded_at(around.format(f"{time:{time_format}}")) == time


@given(HEX_TIMES, st.sampled_from(["", "/a/"]))
def test_eight_hex_digits_are_seconds_of_an_early_audiomoth(time: datetime, folder: str) -> None:
    stem = f"{int(time.timestamp()):08X}"
    assume(not stem.isdigit())
    assert recorded_at(f"{folder}{stem}.WAV") == time.replace(tzinfo=None, microsecond=0)
    assert recorded_at(f"{folder}{stem.lower()}.WAV") is None
    for longer in (f"{stem}0.WAV", f"0{stem}.WAV", f"a_{stem}.WAV", f"{stem} (1).WAV"):
        assert recorded_at(longer) is None


@given(st.text("0123456789_-T:.", max_size=24), st.sampled_from(["", "a", "F"]))
def test_a_time_consists_of_digits_of_the_name(stem: str, before: str) -> None:
    assume(not re.fullmatch(r"\d{10}", before + stem))  # a number of seconds
    time = recorded_at(f"{before}{stem}.wav")
    if time is not None:
        digits = "".join(re.findall(r"\d", before + stem))
        assert f"{time:%Y%m%d%H%M%S}" in digits
        assert YEARS[0] <= time.year <= YEARS[-1]


@given(TIMES, st.sampled_from(["0", "a", "Z", "x"]), st.booleans())
def test_digits_within_a_longer_word_are_not_a_time(time: datetime, more: str, first: bool) -> None:
    stamp = f"{time:%Y%m%d_%H%M%S}"
    assume(first or more != "Z")
    assert recorded_at(f"{more}{stamp}.wav" if first else f"{stamp}{more}.wav") is None


@given(TIMES, st.integers(1, 10**6))
def test_a_name_with_several_times_has_no_time(time: datetime, later_s: int) -> None:
    assume(time.year < YEARS[-1])
    stamp, later = (f"{moment:%Y%m%d_%H%M%S}" for moment in (time, time + timedelta(seconds=later_s)))
    assert recorded_at(f"{stamp}_{later}.wav") is None
    assert recorded_at(f"{stamp}_{stamp}.wav") == time


@pytest.mark.parametrize(
    "name",
    [
        "20251303_031300.WAV",  # month 13
        "20250230_031300.WAV",
        "20250503_246000.WAV",
        "20250503_236160.WAV",
        "19891231_235959.WAV",
        "21010101_000000.WAV",
        "20250503.WAV",
        "20250503031300.WAV",  # may be a number
        "2025-05-03.wav",
        "50123456.WAV",  # may be the number of a collection
        "DEADBEEF.WAV",  # 2088
        "0A6B7C8D.WAV",  # 1975
        "20250503_031300/aru_1.wav",
        "٢٠٢٥٠٥٠٣_٠٣١٣٠٠.wav",
        "",
        "/",
    ],
)
def test_ambiguous_names_have_no_time(name: str) -> None:
    assert recorded_at(name) is None


@pytest.mark.parametrize(
    ("name", "time", "utc_offset_min", "position"),
    [
        ("20210621T205706-0700_REC.flac", datetime(2021, 6, 21, 20, 57, 6), -420, (None, None)),
        ("20200905T000000+1000_REC [-27.3852 152.1412].flac", datetime(2020, 9, 5), 600, (-27.3852, 152.1412)),
        (
            "S20240101T000000.123+1000_E20240101T005959.9+1000_-12.34+78.98.wav",
            datetime(2024, 1, 1),
            600,
            (-12.34, 78.98),
        ),
        ("S20240815T110516_E20240815T120511.wav", datetime(2024, 8, 15, 11, 5, 16), None, (None, None)),
        ("SWIFT01_20190801_130000.wav", datetime(2019, 8, 1, 13), None, (None, None)),
        ("20190801_130000-0100.wav", datetime(2019, 8, 1, 13), None, (None, None)),  # may be a counter
        ("20250503T031300Z.wav", datetime(2025, 5, 3, 3, 13), 0, (None, None)),
        ("20250503_031300T.WAV", datetime(2025, 5, 3, 3, 13), None, (None, None)),  # a triggered recording
        ("1620000000.wav", datetime(2021, 5, 3), 0, (None, None)),
        ("5B1A2C3D.WAV", datetime(2018, 6, 8, 7, 11, 57), 0, (None, None)),
        ("20250503_031300.WAV", datetime(2025, 5, 3, 3, 13), None, (None, None)),
    ],
)
def test_a_name_gives_zone_and_position_where_recorders_write_them(
    name: str, time: datetime, utc_offset_min: int | None, position: tuple[float | None, float | None]
) -> None:
    expected = RecordingFacts("name", time, utc_offset_min, *position)
    assert facts_of_name(f"/a/{name}") == expected


@pytest.mark.parametrize("name", ["0123456789.wav", "9999999999.wav", "a_1620000000.wav", "16200000001.wav"])
def test_other_numbers_are_no_seconds_since_1970(name: str) -> None:
    assert facts_of_name(name) is None
