"""Audio files in memory, variants of them with unusual headers, and the result of decoding them."""

import struct
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from embedding.decoding.audio import open_recording
from embedding.decoding.audio_faults import AudioFault
from tests.support.audio import tone

Samples = NDArray[np.float32]
RATE_HZ = 16_000
MINUTE = tone(60, RATE_HZ)
EIGHT_SECONDS = MINUTE[: 8 * RATE_HZ]
# For an MP3 with a variable bit rate, whose first frames say nothing about the size of the other frames.
QUIET_THEN_LOUD = np.concatenate([(EIGHT_SECONDS / 1_000).astype(np.float32), EIGHT_SECONDS])

# Lengths that ffmpeg, sox, arecord and a recorder without power write because they do not know the length.
UNSTATED_LENGTHS = [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, 0x8000_0000, 0]


@dataclass
class DecodedAudio:
    """The result of decoding a recording.

    Attributes:
        samples: All samples.
        sample_rate: Hz, of the source.
        channels: Number of channels of the source.
        n_stated: Number of frames before decoding, as the header states it.
        n_frames: Number of frames after decoding.
        fault: The fault that ended decoding, if any.
    """

    samples: Samples
    sample_rate: int
    channels: int
    n_stated: int
    n_frames: int
    fault: AudioFault | None

    @property
    def kind(self) -> str | None:
        """Kind of the fault."""
        return self.fault and self.fault.kind


def decode_audio(source: str | Path | bytes | BinaryIO, rate_hz: int = RATE_HZ) -> DecodedAudio:
    """Decode a whole recording from a path, from bytes or from a stream.

    Raises:
        AudioFault: The recording cannot be opened.
    """
    if isinstance(source, bytes):
        source = BytesIO(source)
    with open_recording(str(source) if isinstance(source, Path) else source) as recording:
        n_stated = recording.n_frames
        blocks, fault = [], None
        try:
            blocks.extend(block for (block,) in recording.blocks(rate_hz))
        except AudioFault as error:
            fault = error
        samples = np.concatenate([np.empty(0, np.float32), *blocks])
        assert len(samples) == recording.n_samples(rate_hz)
        return DecodedAudio(samples, recording.sample_rate, recording.channels, n_stated, recording.n_frames, fault)


def decode_or_fault(source: Path | bytes) -> DecodedAudio | AudioFault:
    """Decode a whole recording; return the fault if the recording cannot be opened."""
    try:
        return decode_audio(source)
    except AudioFault as fault:
        return fault


def decode_from_disk_and_stream(path: Path, rate_hz: int = RATE_HZ) -> DecodedAudio:
    """Decode a file from the disk and from a stream, as from S3, and check that both results are equal."""
    from_disk, from_stream = decode_audio(path, rate_hz), decode_audio(path.read_bytes(), rate_hz)
    np.testing.assert_array_equal(from_disk.samples, from_stream.samples)
    assert str(from_disk.fault) == str(from_stream.fault)
    return from_disk


def encode_audio(
    samples: Samples,
    rate_hz: int = RATE_HZ,
    container: str = "WAV",
    subtype: str | None = None,
    bitrate_mode: str | None = None,
) -> bytes:
    """Return an audio file with ``samples``, ``[n]`` or ``[n, channels]``."""
    file = BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with sf.SoundFile(
        file, "w", rate_hz, channels, format=container, subtype=subtype, bitrate_mode=bitrate_mode
    ) as sound:
        for start in range(0, len(samples), 1 << 14):
            sound.write(samples[start : start + (1 << 14)])
    return file.getvalue()


@cache
def encoded_minute(container: str, subtype: str | None = None) -> bytes:
    """Return an audio file with MINUTE, which is encoded once for all tests."""
    return encode_audio(MINUTE, RATE_HZ, container, subtype)


def with_data_length(wav: bytes, length: int) -> bytes:
    """Return a WAV with another length in the header of its data chunk."""
    position = wav.index(b"data") + 4
    return wav[:position] + struct.pack("<I", length) + wav[position + 4 :]


def with_total_samples(flac: bytes, n: int) -> bytes:
    """Return a FLAC with another number of samples in its STREAMINFO: the low 36 bits of bytes 18 to 25."""
    word = int.from_bytes(flac[18:26]) >> 36 << 36 | n
    return flac[:18] + word.to_bytes(8) + flac[26:]


def without_length_frame(mp3: bytes) -> bytes:
    """Return an MP3 without the Xing or Info frame, which states the length."""
    tag = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    assert tag > 0
    return mp3[mp3.index(mp3[:2], tag) :]
