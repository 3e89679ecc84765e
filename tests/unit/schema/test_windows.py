"""Window arithmetic, compared with a naive loop over audio in blocks of any length."""

import re
from collections.abc import Iterator
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedding.decoding.audio import resampled_length
from embedding.decoding.cut import cut
from embedding.errors import RequestError
from embedding.schema.windows import WindowSpec

TAILS = st.sampled_from(["pad", "drop"])
RATES_HZ = st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 250_000, 384_000])
WEEK_S = 7 * 24 * 3600
MODEL_RATES_HZ = st.sampled_from([16_000, 32_000])


def naive_windows(audio: NDArray[np.float32], spec: WindowSpec) -> NDArray[np.float32]:
    """Cut one window at a time, as the reference loop does; return ``[n_windows, spec.length]``."""
    windows = []
    start = 0
    while start < len(audio):
        window = audio[start : start + spec.length]
        if len(window) == spec.length:
            windows.append(window)
        elif spec.tail == "pad":
            windows.append(np.concatenate([window, np.zeros(spec.length - len(window), np.float32)]))
        start += spec.hop
    return np.stack(windows) if windows else np.empty((0, spec.length), np.float32)


def cut_whole(blocks: list[NDArray[np.float32]], spec: WindowSpec) -> NDArray[np.float32]:
    return np.concatenate([np.empty((0, spec.length), np.float32), *cut(blocks, spec)])


@st.composite
def split_audio(draw: st.DrawFn) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Draw audio in which no two samples are equal, and the same audio in blocks of any length, also empty ones."""
    audio = np.arange(1, draw(st.integers(0, 200)) + 1, dtype=np.float32)
    ends = sorted(draw(st.lists(st.integers(0, len(audio)), max_size=12)))
    return audio, np.split(audio, ends)


@given(split_audio(), st.integers(1, 40), st.integers(1, 90), TAILS)
def test_windows_equal_those_of_a_naive_loop_for_any_blocks(
    split: tuple[NDArray[np.float32], list[NDArray[np.float32]]], length: int, hop: int, tail: str
) -> None:
    audio, blocks = split
    spec = WindowSpec(16_000, length, hop, tail)
    np.testing.assert_array_equal(cut_whole(blocks, spec), naive_windows(audio, spec))


@given(split_audio(), st.integers(1, 40), st.integers(1, 90), TAILS)
def test_the_number_of_windows_follows_from_the_number_of_samples(
    split: tuple[NDArray[np.float32], list[NDArray[np.float32]]], length: int, hop: int, tail: str
) -> None:
    audio, blocks = split
    spec = WindowSpec(16_000, length, hop, tail)
    assert spec.count(len(audio)) == len(cut_whole(blocks, spec))


@pytest.mark.parametrize(
    ("n_samples", "length", "hop", "padded", "dropped"),
    [
        (0, 10, 10, 0, 0),
        (1, 10, 10, 1, 0),  # a single sample
        (9, 10, 10, 1, 0),  # shorter than a window
        (10, 10, 10, 1, 1),
        (11, 10, 10, 2, 1),
        (20, 10, 5, 4, 3),  # the start at 15 lies inside the audio, its window does not
        (21, 10, 5, 5, 3),
        (30, 10, 25, 2, 1),  # hop > window: the second window has five samples
        (25, 10, 25, 1, 1),  # hop > window: the start at 25 lies at the end, not inside
        (12, 10, 25, 1, 1),
    ],
)
def test_there_is_a_window_for_every_start_inside_the_audio(
    n_samples: int, length: int, hop: int, padded: int, dropped: int
) -> None:
    assert WindowSpec(16_000, length, hop, "pad").count(n_samples) == padded
    assert WindowSpec(16_000, length, hop, "drop").count(n_samples) == dropped


def test_the_last_window_is_padded_with_zeros() -> None:
    windows = cut_whole([np.ones(7, np.float32)], WindowSpec(16_000, 5, 5, "pad"))
    np.testing.assert_array_equal(windows, [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    assert windows.dtype == np.float32


def test_windows_are_yielded_as_soon_as_their_audio_is_there() -> None:
    n_blocks = 0

    def blocks() -> Iterator[NDArray[np.float32]]:
        nonlocal n_blocks
        for _ in range(10):
            n_blocks += 1
            yield np.zeros(100, np.float32)

    n_windows = 0
    for windows in cut(blocks(), WindowSpec(16_000, 10, 10, "pad")):
        n_windows += len(windows)
        assert n_windows == 10 * n_blocks


@st.composite
def specs(draw: st.DrawFn) -> WindowSpec:
    window_s, hop_s = draw(st.floats(0.01, 60)), draw(st.floats(0.01, 60))
    return WindowSpec.from_seconds(draw(MODEL_RATES_HZ), window_s, hop_s, draw(TAILS))


@given(st.integers(1, WEEK_S * 8_000), RATES_HZ, specs(), st.data())
def test_times_lie_inside_the_recording_and_on_whole_samples(
    n_frames: int, source_hz: int, spec: WindowSpec, data: st.DataObject
) -> None:
    rate_hz, duration_s = spec.rate_hz, n_frames / source_hz
    n_samples = resampled_length(n_frames, source_hz, rate_hz)
    n_windows = spec.count(n_samples)
    if not n_windows:
        return
    index = np.array(sorted({0, n_windows - 1, data.draw(st.integers(0, n_windows - 1))}))
    start_s, end_s = spec.times(index, duration_s)
    for i, start, end in zip(index, start_s, end_s, strict=True):
        assert start == int(i) * spec.hop / rate_hz  # the nearest float to the exact quotient
        assert start < end <= duration_s
        is_whole = int(i) * spec.hop + spec.length <= n_frames * rate_hz / source_hz
        assert end == (pytest.approx(start + spec.length / rate_hz, abs=1e-9) if is_whole else duration_s)
    # The times say how much of each window is audio; the encoder masks the padding with this number.
    audio = np.minimum(n_samples - index * spec.hop, spec.length)
    np.testing.assert_array_equal(spec.audio_samples(start_s, end_s), audio)


@given(st.integers(1, 10**7), RATES_HZ, MODEL_RATES_HZ, st.integers(1, 10**6))
def test_a_start_in_samples_lies_inside_the_audio_exactly_when_its_time_does(
    n_frames: int, source_hz: int, rate_hz: int, start: int
) -> None:
    """The reference compares seconds and this project compares samples; both have the same windows."""
    assert (start < resampled_length(n_frames, source_hz, rate_hz)) == (start * source_hz < n_frames * rate_hz)
    assert resampled_length(n_frames, source_hz, rate_hz) == ceil(n_frames * rate_hz / source_hz)


def test_seconds_become_the_nearest_whole_number_of_samples() -> None:
    assert WindowSpec.from_seconds(16_000, 0.3, 0.1, "pad") == WindowSpec(16_000, 4_800, 1_600, "pad")
    assert WindowSpec.from_seconds(32_000, 1 / 3, None, "drop") == WindowSpec(32_000, 10_667, 10_667, "drop")


@pytest.mark.parametrize(
    ("window_s", "hop_s", "message"),
    [
        (0.00001, 1.0, "--window-s: 1e-05 s is less than one sample at 16000 Hz"),
        (1.0, 0.00001, "--hop-s: 1e-05 s would make more than 1,000 windows of each second"),
    ],
)
def test_lengths_below_one_sample_are_refused(window_s: float, hop_s: float, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        WindowSpec.from_seconds(16_000, window_s, hop_s, "pad")


@pytest.mark.parametrize("hop_s", [0.5, 1.0, 3.0])
def test_windows_cover_a_recording_once_for_any_hop(hop_s: float) -> None:
    spec = WindowSpec.from_seconds(16_000, 1.0, hop_s, "pad")
    n_samples = 7 * 16_000 + 11
    start_s, _ = spec.times(np.arange(spec.count(n_samples)), n_samples / 16_000)
    assert spec.covered_s(start_s, np.full(len(start_s), n_samples / 16_000)) == pytest.approx(n_samples / 16_000)


def test_a_hop_below_a_millisecond_is_refused() -> None:
    with pytest.raises(
        RequestError, match=r"--hop-s: 6\.25e-05 s would make more than 1,000 windows .* at least 0\.001 s"
    ):
        WindowSpec.from_seconds(16_000, 10, 1 / 16_000, "pad")
    assert WindowSpec.from_seconds(16_000, 10, 0.001, "pad").hop == 16


def test_padded_windows_with_a_short_hop_share_their_memory() -> None:
    """Separate windows of ten seconds with a hop of a millisecond would take 6 GB."""
    spec = WindowSpec(16_000, 160_000, 16, "pad")
    (windows,) = cut([np.ones(159_999, np.float32)], spec)
    assert len(windows) == spec.count(159_999) == 10_000
    assert windows.strides == (64, 4)
    assert windows[-1].sum() == 15


@pytest.mark.parametrize(
    ("tail", "durations_s", "expected"),
    [
        ("pad", [3.0] * 12, [1] * 12),
        ("pad", [2.0, 10.0, 10.003, 10.9, 25.0, 0.0], [1, 1, 1, 2, 3, 0]),
        ("drop", [3.0, 9.99, 10.0, 19.7, 20.01], [0, 1, 1, 1, 2]),
    ],
)
def test_windows_of_estimated_durations_are_counted_per_recording(
    tail: str, durations_s: list[float], expected: list[int]
) -> None:
    spec = WindowSpec.from_seconds(16_000, 10.0, None, tail)
    assert spec.estimate_count(np.array(durations_s)).tolist() == expected
