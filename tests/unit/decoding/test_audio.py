"""Decoding and resampling of all formats, and failures of the storage during decoding."""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given
from hypothesis import strategies as st

from embedding.decoding import audio
from embedding.decoding.audio import open_recording, resampled_length
from tests.support.audio import tone, write_audio
from tests.support.encoded_audio import (
    EIGHT_SECONDS,
    MINUTE,
    RATE_HZ,
    Samples,
    decode_audio,
    decode_from_disk_and_stream,
    decode_or_fault,
    encode_audio,
    encoded_minute,
    with_data_length,
    with_total_samples,
    without_length_frame,
)

# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "step"),
    [
        ("a.wav", {"subtype": "PCM_U8"}, 2**-7),
        ("a.wav", {"subtype": "PCM_16"}, 2**-15),
        ("a.WAV", {"subtype": "PCM_24"}, 2**-23),
        ("a.wav", {"subtype": "PCM_32"}, 2**-23),
        ("a.wav", {"subtype": "FLOAT"}, 0),
        ("a.wav", {"subtype": "DOUBLE"}, 0),
        ("a.wav", {"format": "WAVEX", "subtype": "PCM_24"}, 2**-23),
        ("a.rf64", {"subtype": "PCM_16"}, 2**-15),
        ("a.w64", {"subtype": "PCM_16"}, 2**-15),
        ("a.flac", {"subtype": "PCM_16"}, 2**-15),
        ("a.flac", {"subtype": "PCM_24"}, 2**-23),
        ("a.aiff", {"subtype": "PCM_16"}, 2**-15),
        ("a.aif", {"format": "AIFF", "subtype": "PCM_24"}, 2**-23),
        ("a.au", {"subtype": "PCM_16"}, 2**-15),
        ("a.caf", {"subtype": "PCM_16"}, 2**-15),
    ],
)
def test_a_lossless_recording_is_decoded_exactly(
    tmp_path: Path, name: str, kwargs: dict[str, str], step: float
) -> None:
    decoded = decode_from_disk_and_stream(write_audio(tmp_path / name, EIGHT_SECONDS, RATE_HZ, **kwargs))
    np.testing.assert_allclose(decoded.samples, EIGHT_SECONDS, atol=step, rtol=0)
    assert (decoded.sample_rate, decoded.channels, decoded.kind) == (RATE_HZ, 1, None)
    assert decoded.n_stated == decoded.n_frames == len(EIGHT_SECONDS)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("a.mp3", {}), ("a.ogg", {"subtype": "VORBIS"}), ("a.opus", {"format": "OGG", "subtype": "OPUS"})],
)
def test_a_lossy_recording_is_decoded_completely_and_without_delay(
    tmp_path: Path, name: str, kwargs: dict[str, str]
) -> None:
    decoded = decode_from_disk_and_stream(write_audio(tmp_path / name, MINUTE, RATE_HZ, **kwargs))
    assert (len(decoded.samples), decoded.kind) == (len(MINUTE), None)
    # The encoder removes the noise. The tone has a period of 36 samples, so a delay would reduce the correlation.
    assert np.corrcoef(decoded.samples, MINUTE)[0, 1] > 0.97


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    samples = tone(3, RATE_HZ, channels=channels)
    decoded = decode_from_disk_and_stream(write_audio(tmp_path / "a.wav", samples, RATE_HZ, subtype="FLOAT"))
    np.testing.assert_allclose(decoded.samples, samples.mean(axis=1, dtype=np.float64), atol=1e-7)
    assert decoded.channels == channels


def test_a_recording_of_384_khz_is_resampled(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "bat.wav", tone(2, 384_000, 1_000.0), 384_000, subtype="PCM_16")
    decoded = decode_audio(path)
    assert (decoded.sample_rate, len(decoded.samples)) == (384_000, 2 * RATE_HZ)
    power = np.abs(np.fft.rfft(decoded.samples))
    assert power.argmax() == 2_000  # 1 kHz, two periods per bin


# --- resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_hz", [8_000, 22_050, 24_000, 44_100, 48_000, 250_000])
@pytest.mark.parametrize("rate_hz", [16_000, 32_000])
def test_resampling_in_blocks_equals_resampling_at_once(
    monkeypatch: pytest.MonkeyPatch, source_hz: int, rate_hz: int
) -> None:
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 1_000)
    samples = tone(1.2345, source_hz)
    decoded = decode_audio(encode_audio(samples, source_hz, subtype="FLOAT"), rate_hz)
    at_once = soxr.resample(samples, source_hz, rate_hz, quality="HQ")
    n = min(len(at_once), len(decoded.samples))
    assert abs(len(at_once) - len(decoded.samples)) <= 1
    np.testing.assert_allclose(decoded.samples[:n], at_once[:n], atol=1e-6)


@given(
    n_frames=st.integers(1, 30_000),
    source_hz=st.sampled_from([50, 8_000, 11_025, 16_000, 22_050, 44_100, 47_999, 48_000, 192_000, 384_000]),
    rate_hz=st.sampled_from([16_000, 32_000]),
)
def test_the_length_after_resampling_is_the_quotient_rounded_up(n_frames: int, source_hz: int, rate_hz: int) -> None:
    n_frames = max(1, n_frames // 50) if source_hz == 50 else n_frames
    decoded = decode_audio(encode_audio(np.full(n_frames, 0.5, np.float32), source_hz), rate_hz)
    assert len(decoded.samples) == resampled_length(n_frames, source_hz, rate_hz) == -(-n_frames * rate_hz // source_hz)


def test_blocks_are_small_for_any_rate_and_number_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original_read = sf.SoundFile.read

    def recorded_read(self: sf.SoundFile, out: Samples) -> object:
        sizes.append(out.size)
        return original_read(self, out=out)

    monkeypatch.setattr(sf.SoundFile, "read", recorded_read)
    wav = encode_audio(np.zeros((2_000, 64), np.float32), 384_000)
    # The changed header states 10 MHz: a block for 16 s of output would have 10 GB.
    decoded = decode_audio(wav[:24] + struct.pack("<I", 10_000_000) + wav[28:])
    assert decoded.n_frames == 2_000
    assert max(sizes) <= audio.BLOCK_VALUES


@pytest.mark.parametrize("subtype", ["DWVW_16", "DWVW_24"])
def test_no_silence_is_added_for_a_codec_that_cannot_seek(subtype: str) -> None:
    samples = EIGHT_SECONDS[:RATE_HZ]
    decoded = decode_audio(encode_audio(samples, RATE_HZ, "AIFF", subtype))
    assert decoded.fault is None
    np.testing.assert_allclose(decoded.samples, samples, atol=2**-15)


# --- failures of the storage ------------------------------------------------------------------------------------------


class FailingStream(BytesIO):
    """A stream that fails after ``n_good`` bytes."""

    def __init__(self, content: bytes, n_good: int, error: Exception) -> None:
        super().__init__(content)
        self.n_good, self.error = n_good, error
        self.n_failed = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.n_good -= len(content)
        if self.n_good < 0:
            self.n_failed += 1
            raise self.error
        return content


@pytest.mark.parametrize(
    "make_content",
    [
        pytest.param(lambda: encoded_minute("WAV"), id="wav"),
        pytest.param(lambda: with_data_length(encoded_minute("WAV"), 0), id="wav of unstated length"),
        pytest.param(lambda: encoded_minute("FLAC"), id="flac"),
        pytest.param(lambda: with_total_samples(encoded_minute("FLAC"), 0), id="flac of unknown length"),
        pytest.param(lambda: encoded_minute("MP3"), id="mp3"),
        pytest.param(lambda: without_length_frame(encoded_minute("MP3")), id="mp3 of unknown length"),
        pytest.param(lambda: encoded_minute("OGG", "VORBIS"), id="vorbis"),
        pytest.param(lambda: encoded_minute("OGG", "OPUS"), id="opus"),
    ],
)
def test_a_lost_connection_is_never_a_truncated_recording(
    make_content: Callable[[], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    content = make_content()
    error = ConnectionResetError("connection reset by peer")
    for share in (0, 0.001, 0.1, 0.5, 0.9):
        stream = FailingStream(content, int(share * len(content)), error)
        with pytest.raises(ConnectionResetError) as raised:
            decode_audio(stream)
        assert raised.value is error
        assert stream.n_failed == 1, "a failed read is not repeated, because each try may take minutes"
    assert "cffi callback" not in capfd.readouterr().err


def test_a_bug_in_a_stream_is_not_a_failure_of_the_storage() -> None:
    with pytest.raises(ZeroDivisionError):
        decode_audio(FailingStream(encoded_minute("WAV"), 100_000, ZeroDivisionError()))


def test_a_damaged_header_is_not_an_error_of_the_operating_system(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Damaged lengths lead to seeks before the start of the file."""
    for container in ("CAF", "AIFF", "W64", "WAV"):
        content = encode_audio(EIGHT_SECONDS[:1_000], RATE_HZ, container)
        for position in range(4, 120, 4):
            path = tmp_path / "a.wav"
            path.write_bytes(content[:position] + b"\xff" * 4 + content[position + 4 :])
            from_disk, from_stream = decode_or_fault(path), decode_or_fault(path.read_bytes())
            assert from_disk.kind == from_stream.kind
    assert "cffi callback" not in capfd.readouterr().err


def test_a_missing_file_is_an_error_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_recording(str(tmp_path / "gone.wav")):
        pass


def test_a_directory_is_an_error_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), open_recording(str(tmp_path)):
        pass


def test_a_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with (
        pytest.raises(OSError, match="a pipe, a socket or a device, not a file"),
        open_recording(str(tmp_path / "a.wav")),
    ):
        pass


@contextmanager
def without_root() -> Iterator[None]:
    """Drop the privileges of root, which may read every file."""
    user_id = os.geteuid()
    if user_id == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user_id)


def test_a_forbidden_file_is_an_error_of_the_storage(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", EIGHT_SECONDS, RATE_HZ)
    path.chmod(0)
    with without_root(), pytest.raises(PermissionError), open_recording(str(path)):
        pass


@pytest.mark.parametrize("method", ["__init__", "read"])
def test_a_read_error_of_the_disk_within_libsndfile_is_an_error_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    path = write_audio(tmp_path / "a.wav", EIGHT_SECONDS, RATE_HZ)

    def fail(*args: object, **kwargs: object) -> None:
        raise sf.LibsndfileError(2)  # the message is only "System error"

    monkeypatch.setattr(sf.SoundFile, method, fail)
    with pytest.raises(OSError, match="the operating system could not read the file"):
        decode_audio(path)
