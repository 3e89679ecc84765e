"""Decoding of one recording to mono float32 at given sample rates, as a stream of blocks, in bounded memory.

libsndfile (through soundfile) decodes, or PyAV what libsndfile does not read; channels are averaged, soxr resamples.
This module does not depend on windows, models or Ray.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import numpy as np
import soundfile as sf
import soxr
import xxhash
from numpy.typing import NDArray

from embedding import storage
from embedding.decoding.audio_faults import MAX_AMPLITUDE, AudioFault, empty, nonfinite, truncated
from embedding.decoding.headers import (
    ByteView,
    is_unstated,
    mp3_with_unstated_length,
    piped,
    unread_bytes,
    wav_with_true_length,
)
from embedding.decoding.pyav_sound import SLACK_S, PyAvFault, PyAvSound, is_pyav_format, missing_bytes, open_with_pyav

# Samples per block after resampling (16 s at 16 kHz, 1 MB). Large enough that the overhead per block is negligible,
# small enough that imports, not audio, determine the memory of a worker: see docs/decisions.md, "Decoding".
BLOCK_SAMPLES = 1 << 18
# Samples of all channels per block before resampling (16 MB): bounds the memory for 384 kHz, or for 1,024 channels.
BLOCK_VALUES = 1 << 22

# Recorders write 100 Hz (infrasound) to a few MHz (ultrasound). A damaged header may state any rate, and with 1 Hz soxr
# would produce hours of audio from a second.
PLAUSIBLE_RATE_HZ = (50, 10_000_000)

# A byte of FLAC holds at most about 5,000 frames (of digital silence). A header that states more is damaged, or the
# length is unknown (libsndfile then reports 2⁶³ − 1).
PLAUSIBLE_FRAMES_PER_BYTE = 10_000

# Formats that may have an unknown length, and whose decoders find the end without a length. The decoder of GSM 6.10 in
# a W64 whose header states years goes on for years, past the last byte (libsndfile 1.2.2).
SELF_TERMINATING_FORMATS = {"FLAC", "MP3", "OGG"}

# Stated and real length of a chunk in the log of libsndfile's parser: "data : 320000 (should be 159978)".
_STATED_LENGTH = re.compile(r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.M)

# Messages in the log of libsndfile about missing data of unknown amount. The first pattern is for MAT4, PAF and VOC.
# The second is for SDS: a block (127 bytes) was requested past the last byte, and is decoded as audio.
_MISSING = {
    r"[Ff]ile seems to be truncated|Seems to be a truncated file": "the file ends before its audio ends",
    r"short read \(0 != 127\)": "the file ends before its audio ends",
    r"libogg reports a hole": "a damaged part was skipped; times near the damage may be off by a second",
    r"^PyAV stopped: ": "the file is damaged there, or ends before its audio ends",
    r"Last page lacks an end-of-stream bit": "the end mark of the Ogg stream is missing",
}

# Tags after the last frame of an MP3 (ID3v1, APE), which mpg123 does not read. As audio, so many bytes are half a
# second.
MP3_TAG_BYTES = 1 << 13

# A quiet NaN that no recorder writes: it marks samples that a failed read did not reach.
_UNREACHED = np.uint32(0x7FC0_DEAD)

# Error codes of libsndfile. The third one: soundfile seeks after each read, which fails at the end of a recording of
# unknown length.
_SYSTEM_ERROR = 2
_NO_SUCH_FILE = 7
_SEEK_FAILED = 39


def resampled_length(n_frames: int, source_rate_hz: int, rate_hz: int) -> int:
    """Return the number of samples after resampling: the quotient, rounded up.

    This is the definition of torchaudio.functional.resample and librosa.resample, in integers: the time of a sample is
    inside the audio exactly if the index of the sample is below this length.
    """
    return -(-n_frames * rate_hz // source_rate_hz)


@dataclass
class Recording:
    """An open recording.

    Attributes:
        sample_rate: Hz, of the source.
        channels: Number of channels of the source.
        n_frames: Number of frames that the header states; after ``blocks`` has ended, number of decoded frames.
        audio_hashes: For each sample rate a hash of all samples that ``blocks`` yielded; empty before ``blocks`` has
            ended, and after a fault. Recordings with equal hashes have equal windows, whatever their names, times and
            tags.
        recorder_facts: What its recorder wrote into the file, from ``recording_facts.encode_facts``; set by the caller.
    """

    sample_rate: int
    channels: int
    n_frames: int
    _file: "sf.SoundFile | PyAvSound"
    _bytes: ByteView
    _length_known: bool
    _pipe: int | None  # file descriptor, if _file reads from a pipe
    audio_hashes: dict[int, int] = field(default_factory=dict)
    recorder_facts: str = ""
    _slack_frames: int = 0  # by which the stated length may be too long

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.n_frames / self.sample_rate

    @property
    def comment(self) -> str:
        """The comment among the tags of the file; empty where there is none."""
        return self._file.copy_metadata().get("comment", "")

    def n_samples(self, rate_hz: int) -> int:
        """Return the number of samples at ``rate_hz``."""
        return resampled_length(self.n_frames, self.sample_rate, rate_hz)

    def blocks(self, *rates_hz: int) -> Iterator[tuple[NDArray[np.float32], ...]]:
        """Yield mono blocks: for each sample rate an array ``[n]``, which may be empty.

        The blocks of a rate have ``resampled_length`` samples in total, for the number of decoded frames.

        Raises:
            AudioFault: A fault of the recording; the audio before the fault has been yielded.
            OSError: The storage failed.
        """
        outputs = [_RateOutput(self, rate_hz) for rate_hz in rates_hz]
        fault: AudioFault | None = None
        n_decoded = 0
        mono_blocks = self._mono_blocks(BLOCK_SAMPLES * self.sample_rate // max(rates_hz))
        while True:
            try:
                mono = next(mono_blocks, None)
            except AudioFault as error:
                fault, mono = error, None
            if mono is None:
                break
            n_decoded += len(mono)
            blocks = tuple(output.resample(mono) for output in outputs)
            if any(len(block) for block in blocks):
                yield blocks
        tails = tuple(output.finish(n_decoded) for output in outputs)
        if any(len(tail) for tail in tails):
            yield tails
        n_stated, self.n_frames = self.n_frames, n_decoded
        fault = fault or self._shortfall(n_stated)
        if fault is not None:
            raise fault
        self.audio_hashes = {output.rate_hz: output.audio_hash for output in outputs}

    def _mono_blocks(self, block_frames: int) -> Iterator[NDArray[np.float32]]:
        """Yield decoded audio, averaged over channels, up to the first fault, which is raised."""
        block_frames = max(1024, min(block_frames, BLOCK_VALUES // self.channels))
        buffer = np.empty((block_frames, self.channels), dtype=np.float32)
        bits = buffer.view(np.uint32)
        position = 0
        while True:
            # If a read fails, libsndfile has filled the buffer up to the damage but does not report how far. Samples
            # that still have the mark were not reached (measured on bit-flipped and cut FLAC and MP3).
            bits[:] = _UNREACHED
            damage: sf.LibsndfileError | None = None
            try:
                n_frames = len(self._file.read(out=buffer))
            except sf.LibsndfileError as error:
                _refuse_system_error(error)
                unreached = bits[:, -1] == _UNREACHED
                n_frames = int(unreached.argmax()) if unreached.any() else block_frames
                if self._length_known:
                    # Past the stated end libsndfile has filled the buffer with zeros: 15 s of silence after 1 s of
                    # DWVW, where soundfile's seek after each read fails.
                    n_frames = min(n_frames, self.n_frames - position)
                if self._length_known or error.code != _SEEK_FAILED:
                    damage = error
            self._bytes.raise_error()
            mono = _average(buffer[:n_frames])
            good = np.abs(mono) < MAX_AMPLITUDE  # false for NaN
            n_good = n_frames if good.all() else int(good.argmin())
            if n_good:
                yield mono[:n_good]
            position += n_good
            if n_good < n_frames:
                raise nonfinite(position / self.sample_rate)
            # Beyond the stated end there is no audio to lose (only tags of some MP3 writers).
            if damage is not None and not (self._length_known and position >= self.n_frames):
                raise truncated(position / self.sample_rate, f"the decoder stopped ({_reason(damage)})")
            if damage is not None or n_frames == 0:
                return

    def _shortfall(self, n_stated: int) -> AudioFault | None:
        """Return the fault of a recording that was read to its end without an error; None if no audio is missing."""
        log = self._file.extra_info
        for stated, real in _STATED_LENGTH.findall(log):
            if int(real) < int(stated) and not is_unstated(int(stated)):
                share = int(real) / int(stated)
                return truncated(
                    self.duration_s, f"the header states {stated} bytes, the file has {real} ({share:.0%})"
                )
        if self._pipe is not None and (n_bytes := unread_bytes(self._pipe, self._bytes)) > MP3_TAG_BYTES:
            return truncated(
                self.duration_s, f"the decoder stopped at least {n_bytes} bytes before the end of the file"
            )
        if self._length_known and self.n_frames < n_stated - self._slack_frames:
            return truncated(self.duration_s, f"the header states {n_stated / self.sample_rate:.3f} s")
        for pattern, why in _MISSING.items():
            if re.search(pattern, log):
                return truncated(self.duration_s, why)
        return None

    def _count_frames(self) -> int:
        """Return the number of frames before the end or the first fault; ``blocks`` will raise the same fault.

        Raises:
            AudioFault: Nothing can be decoded.
        """
        n_frames = 0
        try:
            for block in self._mono_blocks(BLOCK_SAMPLES):
                n_frames += len(block)
        except AudioFault:
            if not n_frames:
                raise
        if not n_frames:
            raise empty()
        return n_frames


class _RateOutput:
    """The audio of a recording at one sample rate.

    Attributes:
        rate_hz: The sample rate.
    """

    def __init__(self, recording: Recording, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._source_hz = recording.sample_rate
        self._resampler = None
        if self._source_hz != rate_hz:
            self._resampler = soxr.ResampleStream(self._source_hz, rate_hz, 1, dtype="float32", quality="HQ")
        # Part of the hash, because rate and channels of the source are columns of the output.
        self._digest = xxhash.xxh3_64(f"{self._source_hz}/{recording.channels}".encode())
        self._n_samples = 0

    def resample(self, mono: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the samples that are complete after the next block."""
        return self._counted(self._resampler.resample_chunk(mono) if self._resampler else mono)

    def finish(self, n_decoded: int) -> NDArray[np.float32]:
        """Return the last samples, after ``n_decoded`` frames of the source."""
        nothing = np.empty(0, np.float32)
        tail = self._resampler.resample_chunk(nothing, last=True) if self._resampler else nothing
        # soxr rounds the length to the nearest sample, and resampled_length rounds up: at most one sample differs.
        n_missing = resampled_length(n_decoded, self._source_hz, self.rate_hz) - self._n_samples
        return self._counted(np.pad(tail[:n_missing], (0, max(0, n_missing - len(tail)))))

    def _counted(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        self._n_samples += len(block)
        self._digest.update(block.data)
        return block

    @property
    def audio_hash(self) -> int:
        """Hash of all samples so far, in the range of int64."""
        return self._digest.intdigest() - (1 << 63)


def _average(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the channels, ``[n, channels]`` → ``[n]``.

    Adding channel by channel is 25 × faster for two channels than ``mean(axis=1)``, which took longer than decoding and
    resampling together (measured 2026-11-20).
    """
    n_channels = frames.shape[1]
    mono = frames[:, 0].copy()
    if n_channels > 1:
        with np.errstate(invalid="ignore", over="ignore"):  # the caller checks for NaN and infinity
            for channel in range(1, n_channels):
                mono += frames[:, channel]
            mono /= np.float32(n_channels)
    return mono


@contextmanager
def open_recording(source: str | BinaryIO) -> Iterator[Recording]:
    """Open a recording.

    Args:
        source: A local path or a seekable binary stream.

    Raises:
        AudioFault: ``empty`` or ``corrupt``.
        OSError: The storage failed, here or during reading; the audio may be intact.
    """
    # Python opens a local file first: libsndfile reports a missing or forbidden file as "System error".
    with storage.open_stream(source) if isinstance(source, str) else nullcontext(source) as stream:
        path = source if isinstance(source, str) else None
        with _opened(path, stream) as recording:
            if recording._length_known:
                yield recording
                return
            n_frames = recording._count_frames()
        with _opened(path, stream) as recording:
            recording.n_frames = n_frames
            yield recording


@contextmanager
def _opened(path: str | None, stream: BinaryIO) -> Iterator[Recording]:
    view = ByteView(stream)
    if not view.n_bytes:
        raise AudioFault("empty", "the file has no bytes")
    with ExitStack() as stack:
        # libsndfile reads a local file faster from its path than through callbacks (WAV by a quarter, measured
        # 2026-11-20). A .raw is an exception: for its path soundfile requires a rate from the caller.
        source = path if path and not path.lower().endswith(".raw") else view
        pipe = None
        if is_pyav_format(view):
            yield _recording_of_pyav(stack, source, view)
            return
        if wav := wav_with_true_length(view):
            source = view = wav
        else:
            view.seek(0)
        sound = stack.enter_context(_sound(source, view))
        if sound.format == "MP3" and (mp3 := mp3_with_unstated_length(view, sound.frames)):
            view, pipe = mp3, stack.enter_context(piped(mp3))
            sound = stack.enter_context(_sound(pipe, view))
        if sound.format == "RAW":  # libsndfile guesses this format from a suffix such as .au
            raise AudioFault("corrupt", "not readable as audio: Format not recognised")
        _refuse_implausible_rate(sound.samplerate)
        if sound.frames == 0:
            raise empty()
        length_known = sound.frames <= PLAUSIBLE_FRAMES_PER_BYTE * view.n_bytes
        if not length_known and sound.format not in SELF_TERMINATING_FORMATS:
            raise AudioFault("corrupt", f"the header states {sound.frames} samples in {view.n_bytes} bytes")
        yield Recording(sound.samplerate, sound.channels, sound.frames, sound, view, length_known, pipe)


def _recording_of_pyav(stack: ExitStack, source: str | ByteView, view: ByteView) -> Recording:
    """Return a recording in a format that libsndfile does not read."""
    n_missing = missing_bytes(view)  # before FFmpeg reads: the position of the view is then its own
    view.seek(0)
    try:
        sound = stack.enter_context(open_with_pyav(source))
    except PyAvFault as fault:
        view.raise_error()
        raise AudioFault(fault.kind, str(fault)) from fault
    view.raise_error()
    _refuse_implausible_rate(sound.samplerate)
    length_known = 0 < sound.frames <= PLAUSIBLE_FRAMES_PER_BYTE * view.n_bytes
    slack = round(SLACK_S * sound.samplerate)
    if n_missing:
        sound.damage = f"{n_missing} bytes are missing"
    return Recording(
        sound.samplerate, sound.channels, sound.frames, sound, view, length_known, None, _slack_frames=slack
    )


def _refuse_implausible_rate(rate_hz: int) -> None:
    low_hz, high_hz = PLAUSIBLE_RATE_HZ
    if not low_hz <= rate_hz <= high_hz:
        raise AudioFault("corrupt", f"the header states {rate_hz} Hz, which no recorder writes")


def _sound(source: str | int | ByteView, view: ByteView) -> sf.SoundFile:
    """Open ``source``, which is a path, a file descriptor or ``view`` itself; raise an error of the storage."""
    try:
        sound = sf.SoundFile(cast(BinaryIO, source), closefd=False)
    except sf.LibsndfileError as error:
        _refuse_system_error(error)
        view.raise_error()
        raise AudioFault("corrupt", f"not readable as audio: {_reason(error)}") from error
    view.raise_error()
    return sound


def _refuse_system_error(error: sf.LibsndfileError) -> None:
    """Raise OSError if the operating system failed a read: such an error says nothing about the audio."""
    if error.code == _SYSTEM_ERROR:
        raise OSError("the operating system could not read the file") from error


def _reason(error: sf.LibsndfileError) -> str:
    """Return the message of libsndfile, or its error code if there is no message."""
    if error.code == _NO_SUCH_FILE:
        return "Format not recognised"  # libsndfile reports a text file named .mp3 as missing
    return error.error_string.removeprefix("Error : ").strip().rstrip(".") or f"libsndfile error {error.code}"
