"""Decoding and resampling: what formats, header and damage make of a recording. No Ray, no models."""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedding.decoding import audio
from embedding.decoding.audio import AudioFault, open_recording, resampled_length
from tests.support.audio import tone, write_audio

Samples = NDArray[np.float32]
RATE_HZ = 16_000
MINUTE = tone(60, RATE_HZ)
SECONDS_8 = MINUTE[: 8 * RATE_HZ]
# As an MP3 with a variable bit rate, of which the first frames say nothing about the size of the others.
QUIET_THEN_LOUD = np.concatenate([(SECONDS_8 / 1_000).astype(np.float32), SECONDS_8])

SIGNALLING_NAN = np.array([0x7FA0_0000], np.uint32).view(np.float32)[0]

# How programs that do not know the length of a recording fill it in: ffmpeg, sox, arecord, a recorder without power.
UNSTATED = [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, 0x8000_0000, 0]


@dataclass
class Decoded:
    samples: Samples
    sample_rate: int
    channels: int
    n_promised: int
    n_frames: int
    fault: AudioFault | None

    @property
    def kind(self) -> str | None:
        return self.fault and self.fault.kind


def decode(source: str | Path | bytes | BinaryIO, rate_hz: int = RATE_HZ) -> Decoded:
    """All of a recording, and how it ended."""
    if isinstance(source, bytes):
        source = BytesIO(source)
    with open_recording(str(source) if isinstance(source, Path) else source) as recording:
        n_promised = recording.n_frames
        blocks, fault = [], None
        try:
            blocks.extend(block for (block,) in recording.blocks(rate_hz))
        except AudioFault as error:
            fault = error
        samples = np.concatenate([np.empty(0, np.float32), *blocks])
        assert len(samples) == recording.n_samples(rate_hz)
        return Decoded(samples, recording.sample_rate, recording.channels, n_promised, recording.n_frames, fault)


def outcome(source: Path | bytes) -> Decoded | AudioFault:
    try:
        return decode(source)
    except AudioFault as fault:
        return fault


def both_ways(path: Path, rate_hz: int = RATE_HZ) -> Decoded:
    """Decoded from the disk and from a stream, as from S3: the outcome has to be the same."""
    from_disk, from_stream = decode(path, rate_hz), decode(path.read_bytes(), rate_hz)
    np.testing.assert_array_equal(from_disk.samples, from_stream.samples)
    assert str(from_disk.fault) == str(from_stream.fault)
    return from_disk


def encode(
    samples: Samples,
    rate_hz: int = RATE_HZ,
    container: str = "WAV",
    subtype: str | None = None,
    bitrate_mode: str | None = None,
) -> bytes:
    file = BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with sf.SoundFile(
        file, "w", rate_hz, channels, format=container, subtype=subtype, bitrate_mode=bitrate_mode
    ) as sound:
        for start in range(0, len(samples), 1 << 14):
            sound.write(samples[start : start + (1 << 14)])
    return file.getvalue()


@cache
def minute(container: str, subtype: str | None = None) -> bytes:
    """MINUTE, encoded once for all tests."""
    return encode(MINUTE, RATE_HZ, container, subtype)


def with_data_length(wav: bytes, length: int) -> bytes:
    """The WAV with another length in the header of its data chunk."""
    at = wav.index(b"data") + 4
    return wav[:at] + struct.pack("<I", length) + wav[at + 4 :]


def with_total_samples(flac: bytes, n: int) -> bytes:
    """The FLAC with another number of samples in its STREAMINFO: the low 36 bits of bytes 18 to 25."""
    word = int.from_bytes(flac[18:26]) >> 36 << 36 | n
    return flac[:18] + word.to_bytes(8) + flac[26:]


def without_xing(mp3: bytes) -> bytes:
    """The MP3 without the frame that says how long it is."""
    tag = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    assert tag > 0
    return mp3[mp3.index(mp3[:2], tag) :]


# --- formats ------------------------------------------------------------------------------------------------------


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
def test_a_lossless_recording_comes_out_as_it_was(
    tmp_path: Path, name: str, kwargs: dict[str, str], step: float
) -> None:
    decoded = both_ways(write_audio(tmp_path / name, SECONDS_8, RATE_HZ, **kwargs))
    np.testing.assert_allclose(decoded.samples, SECONDS_8, atol=step, rtol=0)
    assert (decoded.sample_rate, decoded.channels, decoded.kind) == (RATE_HZ, 1, None)
    assert decoded.n_promised == decoded.n_frames == len(SECONDS_8)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("a.mp3", {}), ("a.ogg", {"subtype": "VORBIS"}), ("a.opus", {"format": "OGG", "subtype": "OPUS"})],
)
def test_a_lossy_recording_comes_out_whole_and_in_time(tmp_path: Path, name: str, kwargs: dict[str, str]) -> None:
    decoded = both_ways(write_audio(tmp_path / name, MINUTE, RATE_HZ, **kwargs))
    assert (len(decoded.samples), decoded.kind) == (len(MINUTE), None)
    # The noise is lost on the encoder; the tone is a period of 36 samples, so a shift would show.
    assert np.corrcoef(decoded.samples, MINUTE)[0, 1] > 0.97


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    samples = tone(3, RATE_HZ, channels=channels)
    decoded = both_ways(write_audio(tmp_path / "a.wav", samples, RATE_HZ, subtype="FLOAT"))
    np.testing.assert_allclose(decoded.samples, samples.mean(axis=1, dtype=np.float64), atol=1e-7)
    assert decoded.channels == channels


def test_a_recorder_of_384_khz_is_resampled(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "bat.wav", tone(2, 384_000, 1_000.0), 384_000, subtype="PCM_16")
    decoded = decode(path)
    assert (decoded.sample_rate, len(decoded.samples)) == (384_000, 2 * RATE_HZ)
    power = np.abs(np.fft.rfft(decoded.samples))
    assert power.argmax() == 2_000  # 1 kHz, two periods per bin


# --- resampling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_hz", [8_000, 22_050, 24_000, 44_100, 48_000, 250_000])
@pytest.mark.parametrize("rate_hz", [16_000, 32_000])
def test_resampling_block_by_block_equals_resampling_at_once(
    monkeypatch: pytest.MonkeyPatch, source_hz: int, rate_hz: int
) -> None:
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 1_000)
    samples = tone(1.2345, source_hz)
    decoded = decode(encode(samples, source_hz, subtype="FLOAT"), rate_hz)
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
    decoded = decode(encode(np.full(n_frames, 0.5, np.float32), source_hz), rate_hz)
    assert len(decoded.samples) == resampled_length(n_frames, source_hz, rate_hz) == -(-n_frames * rate_hz // source_hz)


def test_a_block_stays_small_whatever_the_rate_and_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    whole_read = sf.SoundFile.read

    def spy(self: sf.SoundFile, out: Samples) -> object:
        read.append(out.size)
        return whole_read(self, out=out)

    monkeypatch.setattr(sf.SoundFile, "read", spy)
    wav = encode(np.zeros((2_000, 64), np.float32), 384_000)
    # The header now says 10 MHz: a block of 16 s of output would be 10 GB.
    decoded = decode(wav[:24] + struct.pack("<I", 10_000_000) + wav[28:])
    assert decoded.n_frames == 2_000
    assert max(read) <= audio.BLOCK_VALUES


@pytest.mark.parametrize("subtype", ["DWVW_16", "DWVW_24"])
def test_a_codec_that_cannot_seek_is_not_filled_up_with_silence(subtype: str) -> None:
    samples = SECONDS_8[:RATE_HZ]
    decoded = decode(encode(samples, RATE_HZ, "AIFF", subtype))
    assert decoded.fault is None
    np.testing.assert_allclose(decoded.samples, samples, atol=2**-15)


# --- the storage fails ------------------------------------------------------------------------------------------------


class Failing(BytesIO):
    """A stream whose connection is lost once ``n_good`` bytes have been read."""

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
    "make",
    [
        pytest.param(lambda: minute("WAV"), id="wav"),
        pytest.param(lambda: with_data_length(minute("WAV"), 0), id="wav of unstated length"),
        pytest.param(lambda: minute("FLAC"), id="flac"),
        pytest.param(lambda: with_total_samples(minute("FLAC"), 0), id="flac of unknown length"),
        pytest.param(lambda: minute("MP3"), id="mp3"),
        pytest.param(lambda: without_xing(minute("MP3")), id="mp3 of unknown length"),
        pytest.param(lambda: minute("OGG", "VORBIS"), id="vorbis"),
        pytest.param(lambda: minute("OGG", "OPUS"), id="opus"),
    ],
)
def test_a_lost_connection_is_never_taken_for_a_short_recording(
    make: Callable[[], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    content = make()
    error = ConnectionResetError("connection reset by peer")
    for share in (0, 0.001, 0.1, 0.5, 0.9):
        stream = Failing(content, int(share * len(content)), error)
        with pytest.raises(ConnectionResetError) as raised:
            decode(stream)
        assert raised.value is error
        assert stream.n_failed == 1, "a lost connection is not tried again: each try may take minutes"
    assert "cffi callback" not in capfd.readouterr().err


def test_a_bug_in_a_stream_is_not_taken_for_a_failure_of_the_storage() -> None:
    with pytest.raises(ZeroDivisionError):
        decode(Failing(minute("WAV"), 100_000, ZeroDivisionError()))


def test_a_damaged_header_is_no_error_of_the_operating_system(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Seeks before the start of the file, which lengths like these lead to."""
    for container in ("CAF", "AIFF", "W64", "WAV"):
        content = encode(SECONDS_8[:1_000], RATE_HZ, container)
        for at in range(4, 120, 4):
            path = tmp_path / "a.wav"
            path.write_bytes(content[:at] + b"\xff" * 4 + content[at + 4 :])
            from_disk, from_stream = outcome(path), outcome(path.read_bytes())
            assert from_disk.kind == from_stream.kind
    assert "cffi callback" not in capfd.readouterr().err


def test_a_missing_file_is_an_error_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_recording(str(tmp_path / "gone.wav")):
        pass


def test_a_directory_is_an_error_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), open_recording(str(tmp_path)):
        pass


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with (
        pytest.raises(OSError, match="a pipe, a socket or a device, not a file"),
        open_recording(str(tmp_path / "a.wav")),
    ):
        pass


@contextmanager
def no_longer_root() -> Iterator[None]:
    """Root reads whatever it wants."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(was)


def test_a_forbidden_file_is_an_error_of_the_storage(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", SECONDS_8, RATE_HZ)
    path.chmod(0)
    with no_longer_root(), pytest.raises(PermissionError), open_recording(str(path)):
        pass


@pytest.mark.parametrize("method", ["__init__", "read"])
def test_a_disk_that_fails_under_libsndfile_is_an_error_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    path = write_audio(tmp_path / "a.wav", SECONDS_8, RATE_HZ)

    def fail(*args: object, **kwargs: object) -> None:
        raise sf.LibsndfileError(2)  # "System error", which is all it says

    monkeypatch.setattr(sf.SoundFile, method, fail)
    with pytest.raises(OSError, match="the operating system could not read the file"):
        decode(path)
