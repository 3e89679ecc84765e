"""One recording to mono float32 at the model's rate, as a stream of blocks, in bounded memory.

libsndfile (through soundfile) decodes, channels are averaged, soxr resamples. Nothing here knows of windows, models
or Ray.
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
from embedding.decoding.headers import ByteView, as_endless_mp3, as_measured_wav, is_unstated, n_unread, piped

# Samples per block after resampling (16 s at 16 kHz, 1 MB). Large enough that per-block overhead vanishes, small
# enough that a worker's memory is set by its imports: see docs/decisions.md, "Decoding".
BLOCK_SAMPLES = 1 << 18
# Samples of all channels per block before resampling (16 MB): bounds what 384 kHz takes, or 1,024 channels.
BLOCK_VALUES = 1 << 22

# Recorders write 100 Hz (infrasound) to a few MHz (ultrasound); a damaged header says anything, and one that says
# 1 Hz would make soxr produce hours of audio from a second.
PLAUSIBLE_RATE_HZ = (50, 10_000_000)

# Full scale is 1, or 2³¹ where floats were written like integers. The power spectrum of more is infinite in float32.
LOUDEST = 1e12

# A byte of FLAC holds at most about 5,000 frames (of digital silence). A header that promises more is damaged, or says
# that it does not know (libsndfile declares 2⁶³ − 1 then).
PLAUSIBLE_FRAMES_PER_BYTE = 10_000

# Formats that may not know their length, and whose decoders find the end by themselves. GSM 6.10 in a W64 whose header
# promises years goes on for years, past the last byte (libsndfile 1.2.2).
ENDS_BY_ITSELF = {"FLAC", "MP3", "OGG"}

# A chunk's declared and real length, as libsndfile's parser logs it: "data : 320000 (should be 159978)".
_DECLARED_LENGTH = re.compile(r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.M)

# What it logs of something missing without saying how much: in MAT4, PAF, VOC the first phrases; of SDS that a block
# (127 bytes) was asked for past the last byte, which comes out as audio.
_MISSING = {
    r"[Ff]ile seems to be truncated|Seems to be a truncated file": "the file ends before its audio does",
    r"short read \(0 != 127\)": "the file ends before its audio does",
    r"libogg reports a hole": "a damaged part was passed over; times near it may be off by a second",
    r"Last page lacks an end-of-stream bit": "the mark that ends an Ogg stream is not there",
}

# Behind the last frame of an MP3 there may be titles (ID3v1, APE), which mpg123 leaves. Of audio it is half a second.
MP3_TAG_BYTES = 1 << 13

# A quiet NaN no recorder writes: marks what a failed read did not reach.
_UNREACHED = np.uint32(0x7FC0_DEAD)

# libsndfile's error codes. Its seek fails where soundfile keeps the books at the end of a recording of unknown length.
_SYSTEM_ERROR = 2
_NO_SUCH_FILE = 7
_SEEK_FAILED = 39


class AudioFault(Exception):  # noqa: N818 — of a recording, which is no error of the program
    """A fault of a recording: ``kind`` for counting, the message for the user.

    Kinds: ``empty`` (no audio in it), ``corrupt`` (not decodable from the start), ``truncated`` (less audio than was
    recorded: than its header promises, up to some damage only, or with a hole), ``nonfinite`` (NaN or infinite
    samples), ``short`` (less than one window, with ``--tail drop``).
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
    """An open recording.

    ``n_frames`` is what the header promises and, once ``blocks`` has ended, what was decoded. ``audio_hashes`` has then
    by sample rate a hash of all samples that ``blocks`` yielded, and nothing until then and after a fault: recordings
    with equal hashes have equal windows, whatever their names, times and tags.
    """

    sample_rate: int  # Hz, of the source
    channels: int
    n_frames: int
    _file: sf.SoundFile
    _bytes: ByteView
    _length_known: bool
    _pipe: int | None  # descriptor, if _file reads from one
    audio_hashes: dict[int, int] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.n_frames / self.sample_rate

    def n_samples(self, rate_hz: int) -> int:
        """Return the number of samples at ``rate_hz``."""
        return resampled_length(self.n_frames, self.sample_rate, rate_hz)

    def blocks(self, *rates_hz: int) -> Iterator[tuple[NDArray[np.float32], ...]]:
        """Mono blocks of shape ``[n]``, of each of ``rates_hz`` one, which may be empty.

        Those of a rate are together ``resampled_length`` samples of what was decoded.

        Raises:
            AudioFault: after everything decodable before the fault has been yielded.
            OSError: the storage failed meanwhile.
        """
        outlets = [_Outlet(self, rate_hz) for rate_hz in rates_hz]
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
            blocks = tuple(outlet.pass_on(mono) for outlet in outlets)
            if any(len(block) for block in blocks):
                yield blocks
        tails = tuple(outlet.end(n_decoded) for outlet in outlets)
        if any(len(tail) for tail in tails):
            yield tails
        promised, self.n_frames = self.n_frames, n_decoded
        fault = fault or self._shortfall(promised)
        if fault is not None:
            raise fault
        self.audio_hashes = {outlet.rate_hz: outlet.audio_hash for outlet in outlets}

    def _mono_blocks(self, block_frames: int) -> Iterator[NDArray[np.float32]]:
        """Decoded audio, channels averaged, up to the first fault (which is raised)."""
        block_frames = max(1024, min(block_frames, BLOCK_VALUES // self.channels))
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
                unreached = bits[:, -1] == _UNREACHED
                n_frames = int(unreached.argmax()) if unreached.any() else block_frames
                if self._length_known:
                    # Past the promised end libsndfile has filled it with zeros: 15 s of silence after 1 s of DWVW,
                    # where soundfile's seek after each read fails.
                    n_frames = min(n_frames, self.n_frames - position)
                if self._length_known or error.code != _SEEK_FAILED:
                    damage = error
            self._bytes.raise_error()
            mono = _average(buffer[:n_frames])
            good = np.abs(mono) < LOUDEST  # which NaN is not
            n_good = n_frames if good.all() else int(good.argmin())
            if n_good:
                yield mono[:n_good]
            position += n_good
            if n_good < n_frames:
                raise _nonfinite(position / self.sample_rate)
            # Beyond the promised end there is no audio to lose (tags of some MP3 writers).
            if damage is not None and not (self._length_known and position >= self.n_frames):
                raise _truncated(position / self.sample_rate, f"the decoder stopped ({_reason(damage)})")
            if damage is not None or n_frames == 0:
                return

    def _shortfall(self, promised: int) -> AudioFault | None:
        """The fault of a recording that was read to its end without an error, or None if nothing is missing."""
        log = self._file.extra_info
        for declared, real in _DECLARED_LENGTH.findall(log):
            if int(real) < int(declared) and not is_unstated(int(declared)):
                share = int(real) / int(declared)
                return _truncated(
                    self.duration_s, f"its header promises {declared} bytes, {real} are there ({share:.0%})"
                )
        if self._pipe is not None and (n_bytes := n_unread(self._pipe, self._bytes)) > MP3_TAG_BYTES:
            return _truncated(self.duration_s, f"the decoder stopped at least {n_bytes} bytes before its end")
        if self._length_known and self.n_frames < promised:
            return _truncated(self.duration_s, f"its header promises {promised / self.sample_rate:.3f} s")
        for sign, why in _MISSING.items():
            if re.search(sign, log):
                return _truncated(self.duration_s, why)
        return None

    def _count_frames(self) -> int:
        """Frames up to the end or the first fault, which ``blocks`` will meet again.

        Raises:
            AudioFault: nothing can be decoded.
        """
        n_frames = 0
        try:
            for block in self._mono_blocks(BLOCK_SAMPLES):
                n_frames += len(block)
        except AudioFault:
            if not n_frames:
                raise
        if not n_frames:
            raise _empty()
        return n_frames


class _Outlet:
    """A recording on its way out at one sample rate."""

    def __init__(self, recording: Recording, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._source_hz = recording.sample_rate
        self._resampler = None
        if self._source_hz != rate_hz:
            self._resampler = soxr.ResampleStream(self._source_hz, rate_hz, 1, dtype="float32", quality="HQ")
        # Rate and channels of the source are columns of the output.
        self._digest = xxhash.xxh3_64(f"{self._source_hz}/{recording.channels}".encode())
        self._n_out = 0

    def pass_on(self, mono: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._out(self._resampler.resample_chunk(mono) if self._resampler else mono)

    def end(self, n_decoded: int) -> NDArray[np.float32]:
        """Return the number of frames that follow after ``n_decoded`` frames."""
        nothing = np.empty(0, np.float32)
        tail = self._resampler.resample_chunk(nothing, last=True) if self._resampler else nothing
        # soxr rounds the length to the nearest sample where resampled_length rounds up: at most one sample differs.
        missing = resampled_length(n_decoded, self._source_hz, self.rate_hz) - self._n_out
        return self._out(np.pad(tail[:missing], (0, max(0, missing - len(tail)))))

    def _out(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        self._n_out += len(block)
        self._digest.update(block.data)
        return block

    @property
    def audio_hash(self) -> int:
        """Return the hash of all samples, in the range of int64."""
        return self._digest.intdigest() - (1 << 63)


def _average(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of the channels, ``[n, channels]`` → ``[n]``.

    Channel by channel: for two of them 25 × faster than ``mean(axis=1)``, which took longer than decoding and
    resampling together (measured 2026-11-20).
    """
    n_channels = frames.shape[1]
    mono = frames[:, 0].copy()
    if n_channels > 1:
        with np.errstate(invalid="ignore", over="ignore"):  # the caller looks for what comes of it
            for channel in range(1, n_channels):
                mono += frames[:, channel]
            mono /= np.float32(n_channels)
    return mono


@contextmanager
def open_recording(source: str | BinaryIO) -> Iterator[Recording]:
    """Open a local path or a seekable binary stream.

    Raises:
        AudioFault: ``empty`` or ``corrupt``.
        OSError: the storage failed, here or while reading; nothing is known of the audio.
    """
    # A local file is opened by Python first: libsndfile reports a missing or forbidden one as "System error".
    with storage.open_stream(source) if isinstance(source, str) else nullcontext(source) as stream:
        path = source if isinstance(source, str) else None
        with _opened(path, stream) as recording:
            if recording._length_known:
                yield recording
                return
            # It does not say how long it is: decode it once to know.
            n_frames = recording._count_frames()
        with _opened(path, stream) as recording:
            recording.n_frames = n_frames
            yield recording


@contextmanager
def _opened(path: str | None, stream: BinaryIO) -> Iterator[Recording]:
    view = ByteView(stream)
    if not view.n_bytes:
        raise AudioFault("empty", "no bytes in it")
    with ExitStack() as stack:
        # libsndfile reads a local file faster by itself than through callbacks (WAV by a quarter, measured 2026-11-20).
        # Not so a .raw: soundfile would ask us for its rate.
        source = path if path and not path.lower().endswith(".raw") else view
        pipe = None
        if wav := as_measured_wav(view):
            source = view = wav
        else:
            view.seek(0)
        sound = stack.enter_context(_sound(source, view))
        if sound.format == "MP3" and (mp3 := as_endless_mp3(view, sound.frames)):
            view, pipe = mp3, stack.enter_context(piped(mp3))
            sound = stack.enter_context(_sound(pipe, view))
        low_hz, high_hz = PLAUSIBLE_RATE_HZ
        if sound.format == "RAW":  # guessed from a suffix such as .au
            raise AudioFault("corrupt", "not readable as audio: Format not recognised")
        if not low_hz <= sound.samplerate <= high_hz:
            raise AudioFault("corrupt", f"its header says {sound.samplerate} Hz, which no recorder writes")
        if sound.frames == 0:
            raise _empty()
        length_known = sound.frames <= PLAUSIBLE_FRAMES_PER_BYTE * view.n_bytes
        if not length_known and sound.format not in ENDS_BY_ITSELF:
            raise AudioFault("corrupt", f"its header promises {sound.frames} samples in {view.n_bytes} bytes")
        yield Recording(sound.samplerate, sound.channels, sound.frames, sound, view, length_known, pipe)


def _sound(source: str | int | ByteView, view: ByteView) -> sf.SoundFile:
    """Open ``source``: a path, a descriptor or ``view`` itself, whose failure of the storage is raised."""
    try:
        sound = sf.SoundFile(cast(BinaryIO, source), closefd=False)
    except sf.LibsndfileError as error:
        _refuse_system_error(error)
        view.raise_error()
        raise AudioFault("corrupt", f"not readable as audio: {_reason(error)}") from error
    view.raise_error()
    return sound


def _refuse_system_error(error: sf.LibsndfileError) -> None:
    """The operating system failed a read, which says nothing about the audio."""
    if error.code == _SYSTEM_ERROR:
        raise OSError("the operating system could not read it") from error


def _reason(error: sf.LibsndfileError) -> str:
    """Libsndfile's sentence, or its error code where it has none."""
    if error.code == _NO_SUCH_FILE:
        return "Format not recognised"  # its answer to a text named .mp3, which is there
    return error.error_string.removeprefix("Error : ").strip().rstrip(".") or f"libsndfile error {error.code}"


def _empty() -> AudioFault:
    return AudioFault("empty", "a header, but no audio")


def _nonfinite(at_s: float) -> AudioFault:
    kept = "; the audio before it is kept" if at_s else ""
    return AudioFault("nonfinite", f"a sample is NaN, infinite or above {LOUDEST:g} at {at_s:.3f} s{kept}")


def _truncated(kept_s: float, why: str) -> AudioFault:
    if not kept_s:
        return AudioFault("corrupt", f"nothing in it could be read: {why}")
    return AudioFault("truncated", f"only {kept_s:.3f} s could be read, and are kept: {why}")
