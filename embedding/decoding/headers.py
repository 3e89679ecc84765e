"""The bytes that libsndfile reads, and headers that do not state the length of a recording.

libsndfile believes the length that a header states, or guesses a length, and silently omits the rest. Such a recording
is presented to libsndfile in another form; the file itself is not changed.
"""

import fcntl
import os
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END
from threading import Thread
from typing import BinaryIO

# Layer III at the bit rates 1 to 14 of a frame's header: of MPEG-1, and of MPEG-2 and 2.5.
MPEG_1_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG_2_KBPS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
# libsndfile (mpg123) skips bytes before the first frame, and searches about as far.
MP3_SEARCHED_BYTES = 1 << 16


class ByteView:
    """A stream of ``head`` and then a part of another stream. It remembers an error of that stream.

    soundfile passes callbacks to libsndfile. An exception in a callback is printed and treated as the end of the file,
    so a lost connection would look like a truncated recording.

    Args:
        stream: The other stream.
        head: Bytes before the part.
        start: First byte of the part in ``stream``.
        length: Bytes of the part; None: up to the end of ``stream``.

    Attributes:
        n_bytes: Bytes of ``head`` and the part.
        stream: The other stream.
    """

    def __init__(self, stream: BinaryIO, head: bytes = b"", start: int = 0, length: int | None = None) -> None:
        if length is None:
            length = stream.seek(0, SEEK_END) - start
        self.n_bytes = len(head) + length
        self.stream = stream
        self._head = head
        self._start = start
        self._position = 0
        self._error: Exception | None = None

    def read(self, n: int) -> bytes:
        """Read up to ``n`` bytes; after an error of the other stream, only bytes of the head."""
        head = self._head[self._position : self._position + n]
        n_body = min(n, self.n_bytes - self._position) - len(head)
        body = b""
        if n_body > 0 and self._error is None:
            try:
                self.stream.seek(self._start + max(0, self._position - len(self._head)))
                body = self.stream.read(n_body)
            except Exception as error:  # noqa: BLE001 — kept, and raised by raise_error outside the callback
                self._error = error
        self._position += len(head) + len(body)
        return head + body

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move like lseek: a position past the end is allowed; a position before the start changes nothing."""
        target = offset + (0, self._position, self.n_bytes)[whence]
        if target >= 0:
            self._position = target
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def raise_error(self) -> None:
        """Raise the error of the other stream, if there was one."""
        if self._error is not None:
            raise self._error


def is_unstated(length: int) -> bool:
    """Return whether the 32-bit length of a chunk is a value that programs write because they do not know the length.

    A recorder that lost power leaves 0. Into a pipe ffmpeg writes 2³² − 1, sox and arecord write a value near 2³¹.
    """
    return length == 0 or 0x7FFF_0000 <= length <= 0x8000_0000 or 0xFFFF_0000 <= length <= 0xFFFF_FFFF


def wav_with_true_length(view: ByteView) -> ByteView | None:
    """Return a WAV with a header that states the true length of its audio.

    Above 4 GiB the 32-bit length wraps around. It is unstated if a recorder lost power or a program wrote into a pipe.
    libsndfile (1.2.2, src/wav.c) then takes the audio after the stated length for an unknown chunk.

    Returns:
        None if the file is no WAV, or has no more audio than its header states.
    """
    view.seek(0)
    head = view.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    audio_format = b""
    while (chunk := _chunk(view)) and chunk[0] != b"data":
        name, length = chunk
        end = view.tell() + length + length % 2
        if name == b"fmt " and length <= 1024:  # it has 16 to 50 bytes; a damaged length must not read gigabytes
            audio_format = view.read(length)
        view.seek(end)
    if chunk is None or not audio_format:
        return None
    start, stated = view.tell(), chunk[1]
    beyond = view.n_bytes - start - stated
    view.seek(start + stated + stated % 2)
    if beyond > 0 and is_unstated(stated) and _chunk(view) is None:
        length = stated + beyond
    elif beyond >= 1 << 32:
        length = stated + (beyond >> 32 << 32)
    else:
        return None
    chunks = struct.pack("<4sI", b"fmt ", len(audio_format)) + audio_format
    chunks += struct.pack("<4sI", b"data", min(length, 0xFFFF_FFFF))
    n_bytes = 4 + len(chunks) + length
    if n_bytes < 1 << 32:
        head = struct.pack("<4sI4s", b"RIFF", n_bytes, b"WAVE")
    else:  # ds64 has the lengths of the file, of its audio, of a fact chunk and of a table of other chunks
        head = struct.pack("<4sI4s", b"RF64", 0xFFFF_FFFF, b"WAVE")
        head += struct.pack("<4sIQQQI", b"ds64", 28, n_bytes + 36, length, 0, 0)
    return ByteView(view.stream, head + chunks, start, length)


def _chunk(view: ByteView) -> tuple[bytes, int] | None:
    """Return name and length in bytes of the RIFF chunk at the position; None if there is no chunk."""
    header = view.read(8)
    if len(header) < 8:
        return None
    name, length = struct.unpack("<4sI", header)
    has_name = name.isascii() and name.decode().isprintable()
    return (name, length) if has_name and (name == b"data" or length <= view.n_bytes - view.tell()) else None


def mp3_with_unstated_length(view: ByteView, n_frames: int) -> ByteView | None:
    """Return an MP3 from its first frame on, if this frame does not state the length.

    mpg123 guesses the length of a file without a Xing or Info frame, or with a damaged one, from the size of the file
    and its first frames, and libsndfile stops there. With a variable bit rate a third of the audio was decoded; with a
    constant bit rate the guess is some frames too long (measured with libsndfile 1.2.2, 2026-11-20). A pipe has no size
    to guess from, so it is read to its end.

    Args:
        view: The file.
        n_frames: Number of frames that libsndfile reports.

    Returns:
        None if the first frame states ``n_frames``, or if there is no frame.
    """
    position, start = view.tell(), 0  # libsndfile goes on reading from its position
    view.seek(0)
    while len(tag := view.read(10)) == 10 and tag[:3] == b"ID3":
        start += 10 + sum((byte & 0x7F) << 7 * i for i, byte in enumerate(reversed(tag[6:])))
        view.seek(start)
    view.seek(start)
    begin = view.read(MP3_SEARCHED_BYTES)
    view.seek(position)
    first = _first_mp3_frame(begin)
    if first is None:
        return None
    frame = begin[first : first + 64].ljust(80)
    tag_at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if tag_at >= 0:
        if _states_mp3_length(frame, tag_at, n_frames):
            return None
        first += _mp3_frame_bytes(frame[:4])  # a damaged tag is also wrong about the silence that is cut at both ends
    return ByteView(view.stream, start=start + first)


def _first_mp3_frame(content: bytes) -> int | None:
    """Return the position of the first frame of layer III that another frame or the end follows."""
    position = content.find(0xFF)
    while position >= 0:
        n_bytes = _mp3_frame_bytes(content[position : position + 4])
        following = content[position + n_bytes : position + n_bytes + 4]
        if n_bytes and (_mp3_frame_bytes(following) or len(following) < 4):
            return position
        position = content.find(0xFF, position + 1)
    return None


def _mp3_frame_bytes(header: bytes) -> int:
    """Return the length of the frame of layer III that begins with four bytes; 0 for other bytes.

    Source: ISO/IEC 11172-3, 2.4.1.3.
    """
    word = int.from_bytes(header)
    version, bitrate, rate = word >> 19 & 3, word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or word >> 17 & 3 != 1 or version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    rate_hz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    kbps = (MPEG_1_KBPS if version == 3 else MPEG_2_KBPS)[bitrate - 1]
    return (144 if version == 3 else 72) * 1000 * kbps // rate_hz + (word >> 9 & 1)


def _states_mp3_length(frame: bytes, tag_at: int, n_frames: int) -> bool:
    """Return whether the Xing or Info tag at ``tag_at`` states a length that results in ``n_frames`` of audio."""
    flags, n_tag_frames = struct.unpack_from(">II", frame, tag_at + 4)
    n_stated = n_tag_frames * (1152 if frame[1] >> 3 & 3 == 3 else 576)
    # A tag of LAME removes the silence that encoders add at both ends: the length of each has twelve bits.
    return bool(flags & 1) and n_stated - 2 * 4096 <= n_frames <= n_stated


def unread_bytes(pipe: int, view: ByteView) -> int:
    """Return the minimum number of bytes of ``view`` that were not read from its pipe.

    The block that the writing thread holds is not counted.

    Args:
        pipe: File descriptor from ``piped``.
        view: The view that fills the pipe.
    """
    in_pipe = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(in_pipe, sys.byteorder) + view.n_bytes - view.tell()


@contextmanager
def piped(view: ByteView) -> Iterator[int]:
    """Yield a file descriptor from which all of ``view`` can be read once."""
    read_end, write_end = os.pipe()

    def write() -> None:
        try:
            with open(write_end, "wb") as pipe:  # noqa: PTH123 — a file descriptor has no path
                while block := view.read(1 << 16):
                    pipe.write(block)
        except BrokenPipeError:
            pass  # the reader has closed the pipe

    writer = Thread(target=write, name="pipe", daemon=True)
    writer.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        writer.join()
