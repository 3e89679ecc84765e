"""One recording to mono float32 at the model's rate, as a stream of blocks, in bounded memory.

libsndfile (through soundfile) decodes, channels are averaged, soxr resamples. Nothing here knows of windows, models
or Ray.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from embedding.storage import service_errors

# Samples per block after resampling (16 s at 16 kHz, 1 MB). Large enough that per-block overhead vanishes, small
# enough that a worker's memory is set by its imports: see docs/decisions.md, "Decoding".
BLOCK_SAMPLES = 1 << 18
# Samples of all channels per block before resampling (16 MB): what bounds 384 kHz, or a header that says 1,024 channels.
BLOCK_VALUES = 1 << 22

# Recorders write 100 Hz (infrasound) to a few MHz (ultrasound); a damaged header says anything, and one that says
# 1 Hz would make soxr produce hours of audio from a second.
PLAUSIBLE_RATE_HZ = (50, 10_000_000)

# A byte of FLAC holds at most about 5,000 frames (of digital silence). A header that promises more is damaged, or says
# that it does not know (libsndfile declares 2⁶³ − 1 then).
PLAUSIBLE_FRAMES_PER_BYTE = 10_000

# A chunk's declared and real length, as libsndfile's parser logs it: "data : 320000 (should be 159978)".
_DECLARED_LENGTH = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)

# A quiet NaN no recorder writes: marks what a failed read did not reach.
_UNREACHED = np.uint32(0x7FC0_DEAD)

# libsndfile's error codes: the operating system's, and that of soundfile's bookkeeping seek at the end of a recording
# of unknown length.
_SYSTEM_ERROR = 2
_SEEK_FAILED = 39


class AudioFault(Exception):
    """What is wrong with a recording: ``kind`` for counting, the message for a person.

    Kinds: ``empty`` (no audio in it), ``corrupt`` (not decodable from the start), ``truncated`` (less audio than its
    header promises, or undecodable from some point on), ``nonfinite`` (NaN or infinite samples), ``io`` (the storage
    did not deliver it).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def resampled_length(n_frames: int, source_rate_hz: int, rate_hz: int) -> int:
    """Samples at ``rate_hz`` of ``n_frames`` at ``source_rate_hz``: the quotient rounded up.

    As torchaudio.functional.resample and librosa.resample define it, in integers: a sample's time then lies inside
    the audio exactly when its index is below this length.
    """
    return -(-n_frames * rate_hz // source_rate_hz)


@dataclass
class Recording:
    """An open recording. ``n_frames`` is what the header promises and, once ``blocks`` has ended, what was decoded."""

    sample_rate: int  # Hz, of the source
    channels: int
    n_frames: int
    _file: sf.SoundFile
    _stream: "_WatchedStream | None"
    _length_known: bool = True

    @property
    def duration_s(self) -> float:
        return self.n_frames / self.sample_rate

    def n_samples(self, rate_hz: int) -> int:
        """Length at ``rate_hz``."""
        return resampled_length(self.n_frames, self.sample_rate, rate_hz)

    def blocks(self, rate_hz: int) -> Iterator[NDArray[np.float32]]:
        """Mono blocks of shape ``[n]`` at ``rate_hz``; together ``resampled_length`` samples of what was decoded.

        Raises:
            AudioFault: after everything decodable before the fault has been yielded.
        """
        resampler = None
        if self.sample_rate != rate_hz:
            resampler = soxr.ResampleStream(self.sample_rate, rate_hz, 1, dtype="float32", quality="HQ")
        fault: AudioFault | None = None
        n_decoded = n_out = 0
        mono_blocks = self._mono_blocks(max(1024, BLOCK_SAMPLES * self.sample_rate // rate_hz))
        while True:
            try:
                mono = next(mono_blocks, None)
            except AudioFault as error:
                fault, mono = error, None
            if mono is None:
                break
            n_decoded += len(mono)
            block = resampler.resample_chunk(mono) if resampler else mono
            n_out += len(block)
            if len(block):
                yield block
        # soxr rounds the length to the nearest sample where resampled_length rounds up: at most one sample differs.
        tail = resampler.resample_chunk(np.empty(0, np.float32), last=True) if resampler else np.empty(0, np.float32)
        missing = resampled_length(n_decoded, self.sample_rate, rate_hz) - n_out
        tail = np.pad(tail[:missing], (0, max(0, missing - len(tail))))
        if len(tail):
            yield tail
        promised, self.n_frames = self.n_frames, n_decoded
        if fault is None and self._length_known:
            fault = self._shortfall(promised)
        if fault is not None:
            raise fault

    def _mono_blocks(self, block_frames: int) -> Iterator[NDArray[np.float32]]:
        """Decoded audio, channels averaged, up to the first fault (which is raised)."""
        buffer = np.empty((block_frames, self.channels), dtype=np.float32)
        bits = buffer.view(np.uint32)
        position = 0
        while True:
            # When a read fails half-way, libsndfile has filled the buffer up to the damage but does not say how far:
            # what still carries the mark was not reached (measured on bit-flipped and cut FLAC and MP3).
            bits[:] = _UNREACHED
            damage: sf.LibsndfileError | None = None
            try:
                n_frames = len(self._file.read(out=buffer))
            except sf.LibsndfileError as error:
                _refuse_system_error(error)
                if self._length_known or error.code != _SEEK_FAILED:
                    damage = error
                unreached = bits[:, -1] == _UNREACHED
                n_frames = int(unreached.argmax()) if unreached.any() else block_frames
            if self._stream is not None:
                self._stream.raise_error()
            mono = buffer[:n_frames].mean(axis=1) if self.channels > 1 else buffer[:n_frames, 0].copy()
            finite = np.isfinite(mono)
            n_good = n_frames if finite.all() else int(finite.argmin())
            if n_good:
                yield mono[:n_good]
            at_s = (position + n_good) / self.sample_rate
            if n_good < n_frames:
                raise AudioFault(
                    "nonfinite", f"a sample is NaN or infinite at {at_s:.3f} s; the audio before it is kept"
                )
            if damage is not None:
                raise _undecodable(at_s, damage)
            if n_frames == 0:
                return
            if n_frames < block_frames and not self._length_known:
                return
            position += n_frames

    def _shortfall(self, promised: int) -> AudioFault | None:
        """The fault of a recording that was read to its end without an error, or None if nothing is missing."""
        for declared, real in _DECLARED_LENGTH.findall(self._file.extra_info):
            if int(real) < int(declared) < _UNKNOWN_LENGTH_BYTES:
                share = int(real) / int(declared)
                return _truncated(
                    self.duration_s, f"its header promises {declared} bytes, {real} are there ({share:.0%})"
                )
        if self.n_frames < promised:
            return _truncated(self.duration_s, f"its header promises {promised / self.sample_rate:.3f} s")
        return None


@contextmanager
def open_recording(source: str | BinaryIO) -> Iterator[Recording]:
    """Open a local path or a seekable binary stream.

    Raises:
        AudioFault: ``empty`` or ``corrupt``.
        OSError: the storage failed, here or while reading; nothing is known of the audio.
    """
    # A local file is opened by Python first: libsndfile reports a missing or forbidden one as "System error".
    with nullcontext(source) if not isinstance(source, str) else Path(source).open("rb") as stream:
        first = stream.read(1)
        stream.seek(0)
        if not first:
            raise AudioFault("empty", "no bytes in it")
    with _opened(source) as recording:
        if recording.n_frames == 0:
            raise AudioFault("empty", "a header, but no audio")
        if recording.n_frames != _FRAMES_UNKNOWN:
            yield recording
            return
        # A stream that was written into a pipe and does not say how long it is: decode it once to know.
        recording._length_known = False
        n_frames = sum(len(block) for block in recording._mono_blocks(BLOCK_SAMPLES))
    if n_frames == 0:
        raise AudioFault("empty", "a header, but no audio")
    with _opened(source) as recording:
        recording._length_known = False
        recording.n_frames = n_frames
        yield recording


@contextmanager
def _opened(source: str | BinaryIO) -> Iterator[Recording]:
    watched = None if isinstance(source, str) else _WatchedStream(source)
    if watched:
        watched.seek(0)
    try:
        sound = sf.SoundFile(watched or source)
    except sf.LibsndfileError as error:
        _refuse_system_error(error)
        if watched:
            watched.raise_error()
        raise AudioFault("corrupt", f"not readable as audio: {_reason(error)}") from error
    with sound:
        low_hz, high_hz = PLAUSIBLE_RATE_HZ
        if not low_hz <= sound.samplerate <= high_hz:
            raise AudioFault("corrupt", f"its header says {sound.samplerate} Hz, which no recorder writes")
        yield Recording(sound.samplerate, sound.channels, sound.frames, sound, watched)


class _WatchedStream:
    """A stream that remembers its failure.

    soundfile hands libsndfile callbacks; an exception in one is printed and read as the end of the file, so that a
    lost connection would look like a truncated recording.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._error: Exception | None = None

    def read(self, n: int = -1) -> bytes:
        try:
            return self._stream.read(n)
        except Exception as error:  # noqa: BLE001 — kept, and raised by raise_error outside the callback
            self._error = error
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def raise_error(self) -> None:
        if self._error is not None:
            raise as_os_error(self._error)


def _refuse_system_error(error: sf.LibsndfileError) -> None:
    """libsndfile's code 2: the operating system failed a read, which says nothing about the audio."""
    if error.code == 2:
        raise OSError("the operating system could not read it") from error


def _reason(error: sf.LibsndfileError) -> str:
    """libsndfile's sentence, or its error code where it has none ("Error number 158" for damaged FLAC)."""
    return error.error_string.strip().rstrip(".") or f"libsndfile error {error.code}"


def _undecodable(at_s: float, error: sf.LibsndfileError) -> AudioFault:
    if at_s == 0:
        return AudioFault("corrupt", f"nothing in it can be decoded: {_reason(error)}")
    return _truncated(at_s, f"what follows cannot be decoded ({_reason(error)})")


def _truncated(kept_s: float | None, why: str) -> AudioFault:
    return AudioFault("truncated", f"only {kept_s or 0:.3f} s could be read, and are kept: {why}")
