"""Decoding and resampling: what formats, header and damage make of a recording. No Ray, no models."""

import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedding import audio, headers
from embedding.audio import AudioFault, open_recording, resampled_length
from tests.conftest import tone, write_audio

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
            blocks.extend(recording.blocks(rate_hz))
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


# --- recordings whose header does not say how long they are -----------------------------------------------------------


@pytest.mark.parametrize("length", UNSTATED)
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_of_unstated_length_is_read_to_its_end(tmp_path: Path, length: int, subtype: str) -> None:
    wav = encode(SECONDS_8, subtype=subtype)
    path = tmp_path / "a.wav"
    path.write_bytes(with_data_length(wav, length))
    decoded = both_ways(path)
    assert decoded.fault is None
    np.testing.assert_array_equal(decoded.samples, decode(wav).samples)
    assert decoded.n_promised == len(SECONDS_8)


def test_a_compressed_wav_of_unstated_length_is_read_to_its_end() -> None:
    wav = encode(SECONDS_8, subtype="MS_ADPCM")
    decoded = decode(with_data_length(wav, 0))
    assert decoded.fault is None
    np.testing.assert_array_equal(decoded.samples, decode(wav).samples)


def test_chunks_after_the_audio_are_not_audio() -> None:
    wav = encode(SECONDS_8)
    more = b"LIST" + struct.pack("<I", 4) + b"INFO"
    np.testing.assert_array_equal(decode(wav + more).samples, decode(wav).samples)


def test_a_wav_without_audio_but_with_chunks_after_it_is_empty() -> None:
    wav = encode(SECONDS_8[:0])
    with pytest.raises(AudioFault, match="no audio") as error:
        decode(wav + b"LIST" + struct.pack("<I", 4) + b"INFO")
    assert error.value.kind == "empty"


@pytest.mark.parametrize("more", [b"", b"LIST" + struct.pack("<I", 4) + b"INFO"])
@pytest.mark.parametrize("gib", [4, 8.5, 13])
def test_a_wav_past_4_gib_whose_length_wrapped_around_loses_nothing(tmp_path: Path, gib: float, more: bytes) -> None:
    n_bytes = int(gib * 2**30) + 1_000_000
    header = with_data_length(encode(SECONDS_8[:0], 48_000), n_bytes % 2**32)
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + n_bytes)  # a hole: it takes no room
        file.seek(0, os.SEEK_END)
        file.write(more)
    with open_recording(str(path)) as recording:
        assert recording.n_frames == n_bytes // 2
        assert next(recording.blocks(48_000)).any() == np.False_


@pytest.mark.parametrize("length", UNSTATED)
def test_a_wav_past_4_gib_of_unstated_length_loses_nothing(tmp_path: Path, length: int) -> None:
    header = with_data_length(encode(SECONDS_8[:0], 48_000), length)
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 5 * 2**30)
    with open_recording(str(path)) as recording:
        assert recording.n_frames == 5 * 2**30 // 2


def test_the_audio_behind_a_restated_header_is_the_same(tmp_path: Path) -> None:
    """Past 4 GiB it is too much to decode here: the first samples, and the last."""
    n_bytes = 2**32 + 64_000
    header = with_data_length(encode(SECONDS_8[:0]), 64_000)
    pcm = (SECONDS_8[:RATE_HZ] * 2**15).astype("<i2").tobytes()
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(header + pcm)
        file.truncate(len(header) + n_bytes - len(pcm))
        file.seek(0, os.SEEK_END)
        file.write(pcm)
    with path.open("rb") as stream:
        view = headers.as_measured_wav(headers.ByteView(stream))
        assert view is not None
        with sf.SoundFile(cast(BinaryIO, view)) as sound:
            first = sound.read(RATE_HZ)
            sound.seek(-RATE_HZ, os.SEEK_END)
            np.testing.assert_array_equal(sound.read(), first)
    np.testing.assert_allclose(first, SECONDS_8[:RATE_HZ], atol=2**-15)


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    flac = minute("FLAC")
    path = tmp_path / "a.flac"
    path.write_bytes(with_total_samples(flac, 0))
    decoded = both_ways(path)
    assert decoded.fault is None
    assert decoded.n_promised == len(MINUTE)
    np.testing.assert_array_equal(decoded.samples, decode(flac).samples)


def test_a_truncated_flac_of_unknown_length_keeps_what_was_decoded() -> None:
    flac = minute("FLAC")
    decoded = decode(with_total_samples(flac, 0)[: len(flac) // 2])
    assert decoded.kind == "truncated"
    assert 29 * RATE_HZ < len(decoded.samples) < 31 * RATE_HZ
    np.testing.assert_array_equal(decoded.samples, decode(flac).samples[: len(decoded.samples)])


def test_a_flac_that_promises_years_is_as_long_as_its_audio() -> None:
    flac = encode(SECONDS_8, RATE_HZ, "FLAC")
    assert decode(with_total_samples(flac, 2**36 - 1)).n_promised == len(SECONDS_8)


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("tag", [b"", b"ID3\3\0\0\0\0\7\x76" + bytes(1014)])
def test_an_mp3_that_does_not_say_how_long_it_is_is_read_to_its_end(
    tmp_path: Path, mode: str, rate_hz: int, tag: bytes
) -> None:
    samples = tone(20, rate_hz)
    samples[: 10 * rate_hz] *= 0.001  # so that the first frames say nothing about the size of the others
    mp3 = encode(samples, rate_hz, "MP3", bitrate_mode=mode)
    told = decode(mp3, rate_hz).samples
    path = tmp_path / "a.mp3"
    path.write_bytes(tag + without_xing(mp3))
    decoded = both_ways(path, rate_hz)
    assert decoded.fault is None
    assert decoded.n_promised == decoded.n_frames
    # LAME's tag has the delay of encoder and decoder cut off: 576 + 529 samples, and the end of the last frame.
    np.testing.assert_allclose(decoded.samples[1_105:][: len(told)], told, atol=1e-6)
    assert 0 <= len(decoded.samples) - 1_105 - len(told) < 2 * 1_152


@pytest.mark.parametrize("before", [b"\xff" * 7, minute("MP3")[1_001:9_009]], ids=["junk", "half a frame"])
def test_an_mp3_that_does_not_begin_with_a_frame_is_read_to_its_end(tmp_path: Path, before: bytes) -> None:
    """A captured stream begins anywhere; its length would be guessed."""
    mp3 = encode(QUIET_THEN_LOUD, RATE_HZ, "MP3", bitrate_mode="VARIABLE")
    path = tmp_path / "a.mp3"
    path.write_bytes(before + without_xing(mp3))
    decoded = decode(path)
    assert decoded.fault is None
    assert 16 * RATE_HZ <= len(decoded.samples) < 20 * RATE_HZ


def test_an_mp3_whose_stated_length_is_damaged_is_read_to_its_end(tmp_path: Path) -> None:
    mp3 = bytearray(encode(QUIET_THEN_LOUD, RATE_HZ, "MP3", bitrate_mode="VARIABLE"))
    mp3[mp3.index(b"Xing") + 7] &= 0xFE  # the tag no longer has a number of frames
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3)
    assert len(both_ways(path).samples) >= 16 * RATE_HZ


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_an_mp3_of_unknown_length_that_the_decoder_leaves_is_truncated(share: float) -> None:
    mp3 = bytearray(without_xing(minute("MP3")))
    at = int(share * len(mp3))
    mp3[at : at + 8_000] = bytes(8_000)
    decoded = decode(bytes(mp3))
    assert decoded.kind == "truncated"
    assert len(decoded.samples) == pytest.approx(share * len(MINUTE), abs=RATE_HZ)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_truncated_recording_of_plain_samples_keeps_those_that_are_there(container: str, subtype: str) -> None:
    content = encode(SECONDS_8, RATE_HZ, container, subtype)
    cut = content[: len(content) // 2 - 1]
    decoded = decode(cut)
    assert decoded.kind == "truncated"
    assert re.fullmatch(
        r"only [34]\.\d{3} s could be read, and are kept: its header promises \d+ bytes, \d+ are there \(50%\)",
        str(decoded.fault),
    )
    assert 3.99 * RATE_HZ < len(decoded.samples) <= 4 * RATE_HZ
    np.testing.assert_array_equal(decoded.samples, decode(content).samples[: len(decoded.samples)])


def test_a_wav_that_promises_3_gb_is_truncated_not_unstated() -> None:
    decoded = decode(with_data_length(encode(SECONDS_8), 3_000_000_000))
    assert decoded.kind == "truncated"
    assert len(decoded.samples) == len(SECONDS_8)


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("MAT4", "PCM_16"), ("SDS", "PCM_16"), ("SVX", "PCM_16"), ("VOC", "PCM_16"), ("VOC", "ULAW")],
)
def test_a_truncated_recording_of_an_old_format_says_so(container: str, subtype: str) -> None:
    content = encode(SECONDS_8, RATE_HZ, container, subtype)
    assert decode(content).fault is None
    decoded = decode(content[: len(content) // 2])
    assert decoded.kind == "truncated"
    n_kept = len(SECONDS_8) // 2 - 100
    np.testing.assert_array_equal(decoded.samples[:n_kept], decode(content).samples[:n_kept])


@pytest.mark.parametrize("length", [1 << 62, (1 << 63) + 1, (1 << 64) - 1])
@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "PCM_16"])
def test_a_w64_that_promises_years_does_not_take_years(subtype: str, length: int) -> None:
    content = encode(SECONDS_8, RATE_HZ, "W64", subtype)
    at = content.index(b"data") + 16
    decoded = outcome(content[:at] + struct.pack("<Q", length) + content[at + 8 :])
    if isinstance(decoded, AudioFault):
        assert decoded.kind == "corrupt"
    else:
        assert len(decoded.samples) < len(SECONDS_8) + 1_000


def test_a_truncated_flac_keeps_every_sample_before_the_damage(tmp_path: Path) -> None:
    flac = minute("FLAC")
    path = tmp_path / "a.flac"
    for share in (0.3, 0.5, 0.9):
        path.write_bytes(flac[: int(len(flac) * share)])
        decoded = both_ways(path)
        assert decoded.kind == "truncated"
        assert str(decoded.fault).endswith("are kept: the decoder stopped (flac decoder lost sync)")
        assert len(decoded.samples) == pytest.approx(share * len(MINUTE), abs=2 * 4_096)  # FLAC's frames
        np.testing.assert_array_equal(decoded.samples, decode(flac).samples[: len(decoded.samples)])


def test_a_flipped_bit_in_a_flac_keeps_every_sample_before_it() -> None:
    flac = bytearray(minute("FLAC"))
    whole = decode(bytes(flac)).samples
    for share in (0.3, 0.5, 0.9):
        at = int(len(flac) * share)
        flac[at] ^= 0x10
        decoded = decode(bytes(flac))
        flac[at] ^= 0x10
        assert decoded.kind == "truncated"
        assert len(decoded.samples) == pytest.approx(share * len(MINUTE), abs=2 * 4_096)
        np.testing.assert_array_equal(decoded.samples, whole[: len(decoded.samples)])


@pytest.mark.parametrize(("container", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_a_truncated_lossy_recording_says_so_and_keeps_what_was_decoded(container: str, subtype: str | None) -> None:
    content = minute(container, subtype)
    decoded = decode(content[: len(content) // 2])
    assert decoded.kind == "truncated"
    assert 27 * RATE_HZ < len(decoded.samples) < 31 * RATE_HZ
    whole = decode(content).samples
    np.testing.assert_array_equal(decoded.samples, whole[: len(decoded.samples)])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_hole_in_an_ogg_recording_is_told(subtype: str) -> None:
    content = bytearray(minute("OGG", subtype))
    content[len(content) // 2] ^= 0x10  # its page is dropped
    decoded = decode(bytes(content))
    assert decoded.kind == "truncated"
    assert "a damaged part was passed over" in str(decoded.fault)
    assert len(decoded.samples) == pytest.approx(len(MINUTE), abs=2 * RATE_HZ)


@pytest.mark.parametrize("container", ["MP3", "FLAC", "WAV", "AIFF"])
def test_junk_after_the_promised_end_is_no_damage(container: str) -> None:
    content = minute(container)
    junk = np.random.default_rng(0).bytes(100_000)
    decoded = decode(content + junk)
    assert decoded.fault is None
    np.testing.assert_array_equal(decoded.samples, decode(content).samples)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.au", "a.snd", "a.raw", "a"])
def test_a_text_with_the_name_of_a_recording_is_corrupt(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("this is not audio, whatever its name\n" * 5_000)
    for source in (str(path), BytesIO(path.read_bytes())):
        with (
            pytest.raises(AudioFault, match=r"^not readable as audio: Format not recognised$") as error,
            open_recording(source),
        ):
            pass
        assert error.value.kind == "corrupt"


def test_a_flac_damaged_from_the_start_is_corrupt() -> None:
    flac = bytearray(encode(SECONDS_8, RATE_HZ, "FLAC"))
    flac[200:] = bytes(len(flac) - 200)
    decoded = decode(bytes(flac))
    assert decoded.kind == "corrupt"
    assert len(decoded.samples) == 0
    assert str(decoded.fault).startswith("nothing in it could be read: the decoder stopped (")


def test_no_bytes_are_empty(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    for source in (str(tmp_path / "a.wav"), BytesIO()):
        with pytest.raises(AudioFault, match="no bytes") as error, open_recording(source):
            pass
        assert error.value.kind == "empty"


@pytest.mark.parametrize("container", ["WAV", "AIFF", "RF64", "OGG"])
def test_a_header_without_audio_is_empty(container: str) -> None:
    with pytest.raises(AudioFault, match="a header, but no audio") as error:
        decode(encode(SECONDS_8[:0], RATE_HZ, container))
    assert error.value.kind == "empty"


def test_a_flac_of_unknown_length_without_audio_is_empty() -> None:
    flac = with_total_samples(encode(SECONDS_8, RATE_HZ, "FLAC"), 0)
    header = flac[: flac.index(b"\xff\xf8", 42)]  # up to the first frame
    with pytest.raises(AudioFault, match="a header, but no audio") as error:
        decode(header)
    assert error.value.kind == "empty"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_the_audio_before_a_sample_that_is_no_number_is_kept(value: float, subtype: str) -> None:
    samples = np.stack([SECONDS_8, SECONDS_8], axis=1)
    samples[3 * RATE_HZ, 1] = value
    decoded = decode(encode(samples, subtype=subtype))
    assert decoded.kind == "nonfinite"
    assert str(decoded.fault) == "a sample is NaN, infinite or above 1e+12 at 3.000 s; the audio before it is kept"
    np.testing.assert_array_equal(decoded.samples, SECONDS_8[: 3 * RATE_HZ])


@pytest.mark.parametrize("frame", [[np.inf, -np.inf], [3e38, 3e38], [SIGNALLING_NAN], [0.5, SIGNALLING_NAN]])
def test_whatever_is_no_number_makes_no_warning(frame: list[float]) -> None:
    samples = np.tile(np.array(frame, np.float32), (100, 1))
    decoded = decode(encode(samples, subtype="FLOAT"))
    assert (decoded.kind, len(decoded.samples)) == ("nonfinite", 0)
    assert str(decoded.fault) == "a sample is NaN, infinite or above 1e+12 at 0.000 s"


def test_floats_written_like_integers_are_audio() -> None:
    samples = np.array([-(2**31), 2**31, 0, 1], np.float32)
    np.testing.assert_array_equal(decode(encode(samples, subtype="FLOAT")).samples, samples)


@pytest.mark.parametrize("rate_hz", [1, 49, 10_000_001, 2**31 - 1])
def test_a_rate_that_no_recorder_writes_is_corrupt(rate_hz: int) -> None:
    wav = encode(SECONDS_8)
    with pytest.raises(AudioFault, match=f"its header says {rate_hz} Hz, which no recorder writes") as error:
        decode(wav[:24] + struct.pack("<I", rate_hz) + wav[28:])
    assert error.value.kind == "corrupt"


FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("MP3", None),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("AIFF", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
]
SHARES = st.one_of(st.floats(0, 1), st.floats(0, 0.02))  # the header is where most can go wrong


@settings(derandomize=True)  # what libsndfile makes of damage is not ours to find at random
@given(
    form=st.sampled_from(FORMATS),
    wounds=st.lists(st.tuples(SHARES, st.binary(max_size=8), st.integers(0, 16)), max_size=3),
    end=st.floats(0, 1.5),
)
def test_no_damage_ends_in_anything_but_audio_and_a_fault(
    form: tuple[str, str | None], wounds: list[tuple[float, bytes, int]], end: float
) -> None:
    content = encode(SECONDS_8[:8_000], RATE_HZ, *form)
    for share, put, n_removed in wounds:
        at = int(share * len(content))
        content = content[:at] + put + content[at + n_removed :]
    decoded = outcome(content[: int(end * len(content))])
    if isinstance(decoded, AudioFault):
        assert decoded.kind in {"empty", "corrupt"}
    else:
        assert np.isfinite(decoded.samples).all()
        assert decoded.kind in {None, "truncated", "corrupt", "nonfinite"}


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
    with pytest.raises(OSError, match="a pipe, not a file"), open_recording(str(tmp_path / "a.wav")):
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
    with pytest.raises(OSError, match="the operating system could not read it"):
        decode(path)
