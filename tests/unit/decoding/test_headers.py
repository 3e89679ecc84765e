"""Recordings whose header does not say how long they are, or says something else."""

import os
import struct
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from embedding.decoding import headers
from embedding.decoding.audio import AudioFault, open_recording
from tests.support.audio import tone
from tests.unit.decoding.test_audio import (
    MINUTE,
    QUIET_THEN_LOUD,
    RATE_HZ,
    SECONDS_8,
    UNSTATED,
    both_ways,
    decode,
    encode,
    minute,
    with_data_length,
    with_total_samples,
    without_xing,
)

Samples = NDArray[np.float32]


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
        assert next(recording.blocks(48_000))[0].any() == np.False_


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
        view = headers.wav_with_true_length(headers.ByteView(stream))
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
