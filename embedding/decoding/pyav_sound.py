"""Formats that libsndfile does not read, by PyAV (FFmpeg): recordings of phones, and the sound of videos.

``PyAvSound`` has the part of ``soundfile.SoundFile`` that ``audio`` uses. Audio is decoded packet by packet, so memory
does not grow with the recording. The encoder's delay at the beginning is cut off by FFmpeg, as the file says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedding import extras
from embedding.decoding.headers import ByteView

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

EXTRA = "av"
# Suffixes that count as recordings where PyAV is installed.
_SOUNDS = (".3gp", ".aac", ".ac3", ".amr", ".m4a", ".m4b", ".mka", ".wma")
_VIDEOS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
SUFFIXES = frozenset([*_SOUNDS, *_VIDEOS])

# In packed containers a gap of timestamps means that nothing was recorded. A longer one is damage.
SHORTEST_GAP_S, LONGEST_GAP_S = 0.1, 60.0
# Containers state lengths to a packet of the encoder, or to a millisecond.
SLACK_S = 0.25

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_BEGINNINGS = (b"\x1aE\xdf\xa3", _ASF, b"#!AMR", b"FLV\x01", b"\0\0\x01\xba", b"\x0bw", b"\xff\xf1", b"\xff\xf9")


class PyAvFault(Exception):  # noqa: N818 — a fault of a recording, not an error of the program
    """A recording that PyAV cannot open, or that has no sound.

    Attributes:
        kind: ``corrupt`` or ``empty``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_pyav_format(view: ByteView) -> bool:
    """Return whether a file begins like a format that PyAV is to read; its position is kept."""
    position = view.tell()
    view.seek(0)
    head = view.read(16)
    view.seek(position)
    is_avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    return head[4:8] == b"ftyp" or head.startswith(_BEGINNINGS) or is_avi or _is_transport_stream(view)


def missing_bytes(view: ByteView) -> int:
    """Return how many bytes an AVI lacks that its header states; FFmpeg takes the length of what there is.

    Other formats have 0.
    """
    view.seek(0)
    head = view.read(16)
    if head[:4] != b"RIFF" or len(head) < 16:
        return 0
    return max(0, int.from_bytes(head[4:8], "little") + 8 - view.n_bytes)


def _is_transport_stream(view: ByteView) -> bool:
    position = view.tell()
    view.seek(0)
    packets = view.read(3 * 188)
    view.seek(position)
    return len(packets) == 3 * 188 and packets[::188] == b"GGG"


class PyAvSound:
    """The first sound of a file, as a stream of frames.

    Attributes:
        samplerate: Hz.
        channels: Number of channels.
        frames: Number of frames that the file states; 0 if it states none.
        format: Name of the format.
        damage: What ended the decoding before the end; empty so far.
    """

    def __init__(self, container: "InputContainer", stream: "AudioStream") -> None:
        import av

        self._container = container
        context = stream.codec_context
        self.samplerate, self.channels = int(context.sample_rate), int(context.channels)
        self.format, self.damage = f"PyAV {container.format.name}", ""
        length_s = 0.0
        if stream.duration is not None and stream.time_base is not None:
            length_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            length_s = container.duration / av.time_base
        self.frames = max(0, round(length_s * self.samplerate))
        self._blocks = self._decode(stream)
        self._rest = np.empty((0, self.channels), np.float32)

    @property
    def extra_info(self) -> str:
        """The damage, as libsndfile has it in its log."""
        return f"PyAV stopped: {self.damage}" if self.damage else ""

    def copy_metadata(self) -> dict[str, str]:
        """Return the tags of the file."""
        return {name.lower(): text for name, text in self._container.metadata.items()}

    def read(self, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill ``out``, ``[frames, channels]``; return the part that is filled, which is shorter at the end."""
        n = 0
        while n < len(out):
            if not len(self._rest):
                block = next(self._blocks, None)
                if block is None:
                    break
                self._rest = block
            taken = self._rest[: len(out) - n]
            out[n : n + len(taken)] = taken
            self._rest = self._rest[len(taken) :]
            n += len(taken)
        return out[:n]

    def _decode(self, stream: "AudioStream") -> Iterator[NDArray[np.float32]]:
        import av
        from av.error import FFmpegError

        resampler = av.AudioResampler("flt", stream.codec_context.layout, self.samplerate)
        position = 0  # frames so far
        first_s: float | None = None
        try:
            for packet in self._container.demux(stream):
                for frame in packet.decode():
                    if frame.time is not None:
                        first_s = frame.time if first_s is None else first_s
                        gap_s = frame.time - first_s - position / self.samplerate
                        if gap_s > LONGEST_GAP_S:
                            self.damage = f"{gap_s:.0f} s are missing"
                            return
                        if gap_s > SHORTEST_GAP_S:
                            silence = np.zeros((round(gap_s * self.samplerate), self.channels), np.float32)
                            position += len(silence)
                            yield silence
                    for converted in resampler.resample(frame):
                        block = self._samples(converted)
                        position += len(block)
                        yield block
            for converted in resampler.resample(None):
                yield self._samples(converted)
        except FFmpegError as error:
            self.damage = _reason(error)
        except ValueError:  # of the resampler
            self.damage = "rate or channels change"

    def _samples(self, frame: "AudioFrame") -> NDArray[np.float32]:
        """Return the samples of a packed frame, ``[frames, channels]``."""
        return frame.to_ndarray().reshape(-1, self.channels).astype(np.float32, copy=False)


@contextmanager
def open_with_pyav(source: str | ByteView) -> Iterator[PyAvSound]:
    """Open a recording.

    Args:
        source: A local path, or the bytes of the file.

    Raises:
        PyAvFault: The file cannot be opened, has no sound, or PyAV is not installed.
    """
    if find_spec("av") is None:
        raise PyAvFault(
            "corrupt", f"this format needs a package that is not installed: {extras.install_command(EXTRA)}"
        )
    import av
    import av.logging
    from av.error import FFmpegError

    av.logging.set_level(av.logging.PANIC)  # faults are in our own messages
    opened: Any = None
    try:
        opened = av.open(source, metadata_errors="ignore")  # type: ignore[call-overload] — a file with read and seek
        if not opened.streams.audio:
            raise PyAvFault("empty", "the file has no sound")
        stream = opened.streams.audio[0]
        context: Any = stream.codec_context  # None where there is no decoder
        if context is None or not context.sample_rate or not context.channels:
            raise PyAvFault("corrupt", "not readable as audio: there is no decoder, or the header states no rate")
        sound = PyAvSound(opened, stream)
    except (FFmpegError, ValueError) as error:  # ValueError: no decoder for the stream
        if opened is not None:
            opened.close()
        raise PyAvFault("corrupt", f"not readable as audio: {_reason(error)}") from error
    except PyAvFault:
        opened.close()
        raise
    try:
        yield sound
    finally:
        opened.close()


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
