"""The parts of a recording's file that recorders write beside the audio: chunks of RIFF, and their copies in FLAC."""

import struct
from collections.abc import Iterator
from io import SEEK_END
from typing import Protocol

# Chunks with facts, and the most bytes of each that are read. Recorders write some hundred.
WANTED_CHUNKS = {b"guan": 1 << 16, b"bext": 1 << 16, b"iXML": 1 << 18, b"LIST": 1 << 16}
# Chunks of one file that are looked at; a damaged file may claim millions of empty ones.
MOST_CHUNKS = 1_000

_UNSTATED = 0xFFFF_FFFF  # length of the audio of RF64, whose ds64 chunk has the true one
_APPLICATION = 2  # type of a FLAC metadata block


class Stream(Protocol):
    """A stream of bytes with positions."""

    def read(self, n: int, /) -> bytes:
        """Read up to ``n`` bytes."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position."""
        ...


def read_chunks(stream: Stream) -> dict[bytes, bytes]:
    """Return the content of WANTED_CHUNKS in a WAV, RF64 or FLAC; the first one of each name.

    Args:
        stream: The file; it is left at any position.

    Returns:
        The chunks that are whole and not too long; none for other files.
    """
    found: dict[bytes, bytes] = {}
    stream.seek(0)
    head = stream.read(12)
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
        chunks = _riff_chunks(stream)
    elif head[:4] == b"fLaC":
        chunks = _flac_chunks(stream)
    else:
        return found
    for name, length in chunks:
        if name in WANTED_CHUNKS and name not in found and length <= WANTED_CHUNKS[name]:
            content = stream.read(length)
            if len(content) == length:
                found[name] = content
    return found


def _riff_chunks(stream: Stream) -> Iterator[tuple[bytes, int]]:
    """Yield name and length of each chunk, with the stream at its content."""
    position, audio_length = 12, None
    end = stream.seek(0, SEEK_END)
    for _ in range(MOST_CHUNKS):
        if position >= end:  # ds64 may state 2⁶⁴ bytes, which no stream can seek to
            return
        stream.seek(position)
        header = stream.read(8)
        if len(header) < 8:
            return
        name, length = struct.unpack("<4sI", header)
        if name == b"ds64" and len(sizes := stream.read(16)) == 16:
            audio_length = struct.unpack("<8xQ", sizes)[0]
        if name == b"data" and length == _UNSTATED:
            if audio_length is None:
                return
            length = audio_length
        yield name, length
        position += 8 + length + length % 2


def _flac_chunks(stream: Stream) -> Iterator[tuple[bytes, int]]:
    """Yield name and length of each RIFF chunk that ``flac --keep-foreign-metadata`` has kept.

    Source: RFC 9639, 8.4; the content of such a block is ``riff``, then a chunk.
    """
    position, is_last = 4, False
    for _ in range(MOST_CHUNKS):
        if is_last:
            return
        stream.seek(position)
        header = stream.read(4)
        if len(header) < 4:
            return
        is_last, kind, length = bool(header[0] & 0x80), header[0] & 0x7F, int.from_bytes(header[1:])
        if kind == _APPLICATION and length >= 12 and stream.read(4) == b"riff":
            name, chunk_length = struct.unpack("<4sI", stream.read(8).ljust(8, b"\0"))
            if chunk_length <= length - 12:
                yield name, chunk_length
        position += 4 + length
