"""The bytes that libsndfile reads, and headers that do not say how long a recording is.

libsndfile believes the length that a header states, or guesses one, and leaves out the rest without a word. Such a
recording is handed to it in another way; the file itself stays as it is.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END
from threading import Thread
from typing import BinaryIO


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
        return self._at

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def is_unstated(length: int) -> bool:
    """Whether a chunk's 32-bit ``length`` is one that programs write because they do not know it.

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


def as_endless_mp3(view: ByteView) -> ByteView | None:
    """An MP3 that does not say how long it is (in a Xing or Info frame), without its ID3 tags; None for all else.

    mpg123 guesses the length of such a file from its size and its first frames, and libsndfile ends there: a third of
    the audio came out with a variable bit rate; with a constant one the guess is some frames too long (measured with
    libsndfile 1.2.2, 2026-11-20). Through a pipe there is no size to guess from, and it is read to its end.
    """
    start = 0
    view.seek(0)
    while len(tag := view.read(10)) == 10 and tag[:3] == b"ID3":
        start += 10 + sum((byte & 0x7F) << 7 * i for i, byte in enumerate(reversed(tag[6:])))
        view.seek(start)
    view.seek(start)
    frame = view.read(64)
    # Eleven bits of synchronisation, any version, layer III: ISO/IEC 11172-3, 2.4.1.3.
    if int.from_bytes(frame[:2]) & 0xFFE6 != 0xFFE2 or b"Xing" in frame or b"Info" in frame:
        return None
    return ByteView(view.stream, start=start)


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
