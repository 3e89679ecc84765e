"""Start times in names of recordings: every time in a name is found, and other numbers are not times."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from embedding.listing.start_times import HEX_YEARS, YEARS, recorded_at

TIMES = st.datetimes(datetime(YEARS[0], 1, 1), datetime(YEARS[-1], 12, 31)).map(
    lambda time: time.replace(microsecond=0)
)
HEX_TIMES = st.datetimes(datetime(HEX_YEARS[0], 1, 2), datetime(HEX_YEARS[-1], 12, 30), timezones=st.just(UTC))
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
        "S20240815T110516_E20240815T120511.wav",  # start and end
        "٢٠٢٥٠٥٠٣_٠٣١٣٠٠.wav",
        "",
        "/",
    ],
)
def test_ambiguous_names_have_no_time(name: str) -> None:
    assert recorded_at(name) is None
