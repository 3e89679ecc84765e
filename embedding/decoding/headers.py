"""The bytes that libsndfile reads, and headers that do not say how long a recording is.

libsndfile believes the length that a header states, or guesses one, and leaves out the rest without a word. Such a
recording is handed to it in another way; the file itself stays as it is.
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
# libsndfile (mpg123) takes what lies before the first frame for junk, and looks about as far for one.
MP3_SEARCHED_BYTES = 1 << 16


class ByteView:
    """``head``, then ``length`` bytes of ``stream`` from ``start`` on, as a stream that remembers its failure.

    soundfile hands libsndfile callbacks; an exception in one is printed and read as the end of the file, so that a
    lost connection would look like a truncated recording.
    """

    def __init__(self, stream: BinaryIO, head: bytes = b"", start: int = 0, length: int | None = None) -> None:
        if length is None:
            length = stream.seek(0, SEEK_END) - start
        self.n_bytes = len(head) + length
        self.stream = stream
        self._head = head
        self._start = start
        self._at = 0
        self._error: Exception | None = None

    def read(self, n: int) -> bytes:
        """Return the next ``n`` bytes, or fewer at the end."""
        head = self._head[self._at : self._at + n]
        n_body = min(n, self.n_bytes - self._at) - len(head)
        body = b""
        if n_body > 0 and self._error is None:
            try:
                self.stream.seek(self._start + max(0, self._at - len(self._head)))
                body = self.stream.read(n_body)
            except Exception as error:  # noqa: BLE001 — kept, and raised by raise_error outside the callback
                self._error = error
        self._at += len(head) + len(body)
        return head + body

    def seek(self, offset: int, whence: int = 0) -> int:
        """As lseek does it: the position may lie past the end, and stays where it is rather than before the start."""
        target = offset + (0, self._at, self.n_bytes)[whence]
        if target >= 0:
            self._at = target
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def raise_error(self) -> None:
        """Raise the error of the storage, if there was one."""
        if self._error is not None:
            raise self._error


def is_unstated(length: int) -> bool:
    """Return whether a chunk's 32-bit ``length`` is one that programs write when they do not know it.

    0 where a recorder lost power; into a pipe ffmpeg writes 2³² − 1, sox and arecord something near 2³¹.
    """
    return length == 0 or 0x7FFF_0000 <= length <= 0x8000_0000 or 0xFFFF_0000 <= length <= 0xFFFF_FFFF


def as_measured_wav(view: ByteView) -> ByteView | None:
    """A WAV that holds more audio than its 32-bit length says, with a header that says it; None for all else.

    Past 4 GiB the length wraps around, and it is unstated where a recorder lost power or a program wrote into a pipe.
    libsndfile (1.2.2, src/wav.c) takes what lies beyond it for a chunk that it does not know.
    """
    view.seek(0)
    head = view.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    form = b""
    while (chunk := _chunk(view)) and chunk[0] != b"data":
        name, length = chunk
        end = view.tell() + length + length % 2
        if name == b"fmt " and length <= 1024:  # it has 16 to 50 bytes; of a damaged length no gigabytes are read
            form = view.read(length)
        view.seek(end)
    if chunk is None or not form:
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
    chunks = struct.pack("<4sI", b"fmt ", len(form)) + form + struct.pack("<4sI", b"data", min(length, 0xFFFF_FFFF))
    n_bytes = 4 + len(chunks) + length
    if n_bytes < 1 << 32:
        head = struct.pack("<4sI4s", b"RIFF", n_bytes, b"WAVE")
    else:  # ds64 has the lengths of the file, of its audio, of a fact chunk and of a table of others
        head = struct.pack("<4sI4s", b"RF64", 0xFFFF_FFFF, b"WAVE")
        head += struct.pack("<4sIQQQI", b"ds64", 28, n_bytes + 36, length, 0, 0)
    return ByteView(view.stream, head + chunks, start, length)


def _chunk(view: ByteView) -> tuple[bytes, int] | None:
    """Name and length in bytes of the RIFF chunk that begins here, or None if none does."""
    header = view.read(8)
    if len(header) < 8:
        return None
    name, length = struct.unpack("<4sI", header)
    named = name.isascii() and name.decode().isprintable()
    return (name, length) if named and (name == b"data" or length <= view.n_bytes - view.tell()) else None


def as_endless_mp3(view: ByteView, n_frames: int) -> ByteView | None:
    """An MP3 from its first frame on, if nothing in that frame states the ``n_frames`` that it is said to have.

    mpg123 guesses the length of a file without a Xing or Info frame, or with a damaged one, from its size and its first
    frames, and libsndfile ends there: a third of the audio came out with a variable bit rate; with a constant one the
    guess is some frames too long (measured with libsndfile 1.2.2, 2026-11-20). Through a pipe there is no size to guess
    from, and it is read to its end.
    """
    was_at, start = view.tell(), 0  # libsndfile reads on from where it was
    view.seek(0)
    while len(tag := view.read(10)) == 10 and tag[:3] == b"ID3":
        start += 10 + sum((byte & 0x7F) << 7 * i for i, byte in enumerate(reversed(tag[6:])))
        view.seek(start)
    view.seek(start)
    begin = view.read(MP3_SEARCHED_BYTES)
    view.seek(was_at)
    first = _first_mp3_frame(begin)
    if first is None:
        return None
    frame = begin[first : first + 64].ljust(80)
    tag_at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if tag_at >= 0:
        if _states_mp3_length(frame, tag_at, n_frames):
            return None
        first += _mp3_frame_bytes(frame[:4])  # nor is it right about the silence that it has cut off at both ends
    return ByteView(view.stream, start=start + first)


def _first_mp3_frame(content: bytes) -> int | None:
    """Return the position of the first frame of layer III that another frame or the end follows."""
    at = content.find(0xFF)
    while at >= 0:
        n_bytes = _mp3_frame_bytes(content[at : at + 4])
        following = content[at + n_bytes : at + n_bytes + 4]
        if n_bytes and (_mp3_frame_bytes(following) or len(following) < 4):
            return at
        at = content.find(0xFF, at + 1)
    return None


def _mp3_frame_bytes(header: bytes) -> int:
    """Length of the frame of layer III that begins with these four bytes; 0 if none does (ISO/IEC 11172-3, 2.4.1.3)."""
    word = int.from_bytes(header)
    version, bitrate, rate = word >> 19 & 3, word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or word >> 17 & 3 != 1 or version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    rate_hz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    kbps = (MPEG_1_KBPS if version == 3 else MPEG_2_KBPS)[bitrate - 1]
    return (144 if version == 3 else 72) * 1000 * kbps // rate_hz + (word >> 9 & 1)


def _states_mp3_length(frame: bytes, tag_at: int, n_frames: int) -> bool:
    """Return whether the Xing or Info tag at ``tag_at`` states a length of ``n_frames`` of audio."""
    flags, n_stated = struct.unpack_from(">II", frame, tag_at + 4)
    stated = n_stated * (1152 if frame[1] >> 3 & 3 == 3 else 576)
    # LAME's tag has the silence cut off that encoders put before and after: twelve bits each.
    return bool(flags & 1) and stated - 2 * 4096 <= n_frames <= stated


def n_unread(pipe: int, view: ByteView) -> int:
    """Bytes of ``view`` that nobody took from its ``pipe``; at least the pipe's capacity if much was left."""
    in_pipe = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(in_pipe, sys.byteorder) + view.n_bytes - view.tell()


@contextmanager
def piped(view: ByteView) -> Iterator[int]:
    """A file descriptor from which all of ``view`` can be read once."""
    read_end, write_end = os.pipe()

    def write() -> None:
        try:
            with open(write_end, "wb") as pipe:  # noqa: PTH123 — a descriptor has no path
                while block := view.read(1 << 16):
                    pipe.write(block)
        except BrokenPipeError:
            pass  # nobody reads on

    writer = Thread(target=write, name="pipe", daemon=True)
    writer.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        writer.join()
