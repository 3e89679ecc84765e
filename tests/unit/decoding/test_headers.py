"""Recordings whose header does not state their length, or states a wrong length."""

import os
import struct
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
import soundfile as sf

from embedding.decoding import headers
from embedding.decoding.audio import open_recording
from embedding.decoding.audio_faults import AudioFault
from tests.support.audio import tone
from tests.support.encoded_audio import (
    EIGHT_SECONDS,
    MINUTE,
    QUIET_THEN_LOUD,
    RATE_HZ,
    UNSTATED_LENGTHS,
    decode_audio,
    decode_from_disk_and_stream,
    encode_audio,
    encoded_minute,
    with_data_length,
    with_total_samples,
    without_length_frame,
)


@pytest.mark.parametrize("length", UNSTATED_LENGTHS)
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_of_unstated_length_is_read_to_its_end(tmp_path: Path, length: int, subtype: str) -> None:
    wav = encode_audio(EIGHT_SECONDS, subtype=subtype)
    path = tmp_path / "a.wav"
    path.write_bytes(with_data_length(wav, length))
    decoded = decode_from_disk_and_stream(path)
    assert decoded.fault is None
    np.testing.assert_array_equal(decoded.samples, decode_audio(wav).samples)
    assert decoded.n_stated == len(EIGHT_SECONDS)


def test_a_compressed_wav_of_unstated_length_is_read_to_its_end() -> None:
    wav = encode_audio(EIGHT_SECONDS, subtype="MS_ADPCM")
    decoded = decode_audio(with_data_length(wav, 0))
    assert decoded.fault is None
    np.testing.assert_array_equal(decoded.samples, decode_audio(wav).samples)


def test_chunks_after_the_audio_are_not_decoded() -> None:
    wav = encode_audio(EIGHT_SECONDS)
    more = b"LIST" + struct.pack("<I", 4) + b"INFO"
    np.testing.assert_array_equal(decode_audio(wav + more).samples, decode_audio(wav).samples)


def test_a_wav_without_audio_but_with_chunks_after_it_is_empty() -> None:
    wav = encode_audio(EIGHT_SECONDS[:0])
    with pytest.raises(AudioFault, match="no audio") as error:
        decode_audio(wav + b"LIST" + struct.pack("<I", 4) + b"INFO")
    assert error.value.kind == "empty"


@pytest.mark.parametrize("more", [b"", b"LIST" + struct.pack("<I", 4) + b"INFO"])
@pytest.mark.parametrize("gib", [4, 8.5, 13])
def test_a_wav_above_4_gib_whose_length_wrapped_around_is_complete(tmp_path: Path, gib: float, more: bytes) -> None:
    n_bytes = int(gib * 2**30) + 1_000_000
    header = with_data_length(encode_audio(EIGHT_SECONDS[:0], 48_000), n_bytes % 2**32)
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + n_bytes)  # a sparse file, which takes no space
        file.seek(0, os.SEEK_END)
        file.write(more)
    with open_recording(str(path)) as recording:
        assert recording.n_frames == n_bytes // 2
        assert next(recording.blocks(48_000))[0].any() == np.False_


@pytest.mark.parametrize("length", UNSTATED_LENGTHS)
def test_a_wav_above_4_gib_of_unstated_length_is_complete(tmp_path: Path, length: int) -> None:
    header = with_data_length(encode_audio(EIGHT_SECONDS[:0], 48_000), length)
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 5 * 2**30)
    with open_recording(str(path)) as recording:
        assert recording.n_frames == 5 * 2**30 // 2


def test_a_corrected_header_does_not_change_the_audio(tmp_path: Path) -> None:
    """Only the first and the last samples are compared, because decoding more than 4 GiB takes too long."""
    n_bytes = 2**32 + 64_000
    header = with_data_length(encode_audio(EIGHT_SECONDS[:0]), 64_000)
    pcm = (EIGHT_SECONDS[:RATE_HZ] * 2**15).astype("<i2").tobytes()
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(header + pcm)
        file.truncate(len(header) + n_bytes - len(pcm))
        file.seek(0, os.SEEK_END)
        file.write(pcm)
    with path.open("rb") as stream:
        view = headers.wav_with_true_length(headers.ByteView(stream))
        assert view is not None
        with sf.SoundFile(cast(BinaryIO, view)) as sound:
            first = sound.read(RATE_HZ)
            sound.seek(-RATE_HZ, os.SEEK_END)
            np.testing.assert_array_equal(sound.read(), first)
    np.testing.assert_allclose(first, EIGHT_SECONDS[:RATE_HZ], atol=2**-15)


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    flac = encoded_minute("FLAC")
    path = tmp_path / "a.flac"
    path.write_bytes(with_total_samples(flac, 0))
    decoded = decode_from_disk_and_stream(path)
    assert decoded.fault is None
    assert decoded.n_stated == len(MINUTE)
    np.testing.assert_array_equal(decoded.samples, decode_audio(flac).samples)


def test_a_truncated_flac_of_unknown_length_keeps_the_decoded_audio() -> None:
    flac = encoded_minute("FLAC")
    decoded = decode_audio(with_total_samples(flac, 0)[: len(flac) // 2])
    assert decoded.kind == "truncated"
    assert 29 * RATE_HZ < len(decoded.samples) < 31 * RATE_HZ
    np.testing.assert_array_equal(decoded.samples, decode_audio(flac).samples[: len(decoded.samples)])


def test_a_flac_whose_header_states_years_is_as_long_as_its_audio() -> None:
    flac = encode_audio(EIGHT_SECONDS, RATE_HZ, "FLAC")
    assert decode_audio(with_total_samples(flac, 2**36 - 1)).n_stated == len(EIGHT_SECONDS)


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("tag", [b"", b"ID3\3\0\0\0\0\7\x76" + bytes(1014)])
def test_an_mp3_of_unstated_length_is_read_to_its_end(tmp_path: Path, mode: str, rate_hz: int, tag: bytes) -> None:
    samples = tone(20, rate_hz)
    samples[: 10 * rate_hz] *= 0.001  # the first frames say nothing about the size of the other frames
    mp3 = encode_audio(samples, rate_hz, "MP3", bitrate_mode=mode)
    expected = decode_audio(mp3, rate_hz).samples
    path = tmp_path / "a.mp3"
    path.write_bytes(tag + without_length_frame(mp3))
    decoded = decode_from_disk_and_stream(path, rate_hz)
    assert decoded.fault is None
    assert decoded.n_stated == decoded.n_frames
    # LAME's tag removes the delay of encoder and decoder, 576 + 529 samples, and the end of the last frame.
    np.testing.assert_allclose(decoded.samples[1_105:][: len(expected)], expected, atol=1e-6)
    assert 0 <= len(decoded.samples) - 1_105 - len(expected) < 2 * 1_152


@pytest.mark.parametrize("before", [b"\xff" * 7, encoded_minute("MP3")[1_001:9_009]], ids=["junk", "half a frame"])
def test_an_mp3_that_does_not_begin_with_a_frame_is_read_to_its_end(tmp_path: Path, before: bytes) -> None:
    """A captured stream may begin at any byte; mpg123 would guess its length."""
    mp3 = encode_audio(QUIET_THEN_LOUD, RATE_HZ, "MP3", bitrate_mode="VARIABLE")
    path = tmp_path / "a.mp3"
    path.write_bytes(before + without_length_frame(mp3))
    decoded = decode_audio(path)
    assert decoded.fault is None
    assert 16 * RATE_HZ <= len(decoded.samples) < 20 * RATE_HZ


def test_an_mp3_whose_stated_length_is_damaged_is_read_to_its_end(tmp_path: Path) -> None:
    mp3 = bytearray(encode_audio(QUIET_THEN_LOUD, RATE_HZ, "MP3", bitrate_mode="VARIABLE"))
    mp3[mp3.index(b"Xing") + 7] &= 0xFE  # clears the flag: the tag has no number of frames
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3)
    assert len(decode_from_disk_and_stream(path).samples) >= 16 * RATE_HZ


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_an_mp3_of_unknown_length_is_truncated_if_the_decoder_stops_early(share: float) -> None:
    mp3 = bytearray(without_length_frame(encoded_minute("MP3")))
    position = int(share * len(mp3))
    mp3[position : position + 8_000] = bytes(8_000)
    decoded = decode_audio(bytes(mp3))
    assert decoded.kind == "truncated"
    assert len(decoded.samples) == pytest.approx(share * len(MINUTE), abs=RATE_HZ)
