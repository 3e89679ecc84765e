"""Recordings of every format that libsndfile writes, and damage as by a disk, a cable or a bug, always the same."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile as sf

from tests.support.audio import tone, write_audio

Mutation = Callable[[bytes, np.random.Generator], bytes]

HEADER_BYTES = 128  # about the length of a header of uncompressed audio

# Formats that cannot be read from one file: RAW has no header, and the header of SD2 is in another file.
NOT_READ = {"RAW", "SD2"}
# Suffixes of formats where the suffix is not libsndfile's name of the format.
SUFFIXES = {"WAVEX": "wav", "SVX": "iff", "IRCAM": "sf", "NIST": "sph", "MPC2K": "snd", "MAT4": "mat", "MAT5": "mat"}
# Rates and numbers of channels. Some codecs allow only some of them: the first allowed pair in random order is taken.
LAYOUTS = list(product((8_000, 16_000, 22_050, 44_100, 48_000, 96_000), (1, 2)))
# Numbers of further mutations of a file after its first one, in turn.
N_MORE = (0, 0, 0, 1, 3)


@dataclass(frozen=True)
class Seed:
    """An intact recording of 0.3 to 3 s."""

    container: str
    subtype: str
    content: bytes
    n_frames: int

    @property
    def name(self) -> str:
        """A file name like ``WAV-PCM_16.wav``."""
        return f"{self.container}-{self.subtype}.{SUFFIXES.get(self.container, self.container.lower())}"

    def write(self, path: Path) -> Path:
        """Write the recording, and return the path."""
        path.write_bytes(self.content)
        return path


def seeds(folder: Path) -> list[Seed]:
    """Create one recording for each container and subtype that the installed libsndfile writes.

    Args:
        folder: Folder for the files.
    """
    forms = [
        (container, subtype)
        for container in sf.available_formats()
        for subtype in sf.available_subtypes(container)
        if container not in NOT_READ and sf.check_format(container, subtype)
    ]
    found = (_seed(folder / str(number), number, *form) for number, form in enumerate(forms))
    return [seed for seed in found if seed is not None]


def _seed(path: Path, number: int, container: str, subtype: str) -> Seed | None:
    """Create a recording; return None if libsndfile has no encoder for the format."""
    rng = np.random.default_rng(number)
    # Formats with small files get a long recording, so that there is audio before the damage.
    duration_s = 3.0 if container in {"FLAC", "MP3", "OGG"} else rng.choice([0.3, 1.0, 3.0])
    for rate_hz, channels in rng.permutation(LAYOUTS).tolist():
        audio = tone(duration_s, rate_hz, channels=channels, seed=number)
        try:
            write_audio(path, audio, rate_hz, subtype, format=container)
        except sf.LibsndfileError:
            continue
        return Seed(container, subtype, path.read_bytes(), len(audio))
    return None


def write_mutated(folder: Path, originals: list[Seed], n: int) -> Iterator[tuple[Path, Seed]]:
    """Write damaged files named ``number-mutation-seed``, equally many of each container.

    Args:
        folder: Folder for the files, which does not exist.
        originals: The intact recordings.
        n: Number of files; the first files are the same for every ``n``.

    Yields:
        Path and original of each file.
    """
    folder.mkdir()
    groups = [list(group) for _, group in groupby(originals, lambda seed: seed.container)]
    for number in range(n):
        group = groups[number % len(groups)]
        seed = group[number // len(groups) % len(group)]
        rng = np.random.default_rng(number)
        mutation, *more = rng.permutation(np.array(MUTATIONS))[: 1 + N_MORE[number % len(N_MORE)]]
        content = mutation(seed.content, rng)
        for further in more:
            content = further(content, rng)
        path = folder / f"{number:06}-{mutation.__name__}-{seed.name}"
        path.write_bytes(content)
        yield path, seed


# --- bytes ------------------------------------------------------------------------------------------------------------


def _flip(content: bytes, first: int, last: int, n_bits: int | np.int64, rng: np.random.Generator) -> bytes:
    flipped = bytearray(content)
    for at in rng.integers(first, max(first + 1, last), n_bits):
        if at < len(content):
            flipped[at] ^= 1 << rng.integers(8)
    return bytes(flipped)


def one_bit_of_the_header(content: bytes, rng: np.random.Generator) -> bytes:
    return _flip(content, 0, HEADER_BYTES, 1, rng)


def bits_of_the_header(content: bytes, rng: np.random.Generator) -> bytes:
    return _flip(content, 0, HEADER_BYTES, 1 << rng.integers(1, 6), rng)


def one_bit_of_the_body(content: bytes, rng: np.random.Generator) -> bytes:
    return _flip(content, HEADER_BYTES, len(content), 1, rng)


def bits_of_the_body(content: bytes, rng: np.random.Generator) -> bytes:
    return _flip(content, HEADER_BYTES, len(content), 1 << rng.integers(1, 12), rng)


def cut_in_the_header(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(HEADER_BYTES)]


def cut_anywhere(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content) + 1)]


def a_run_of_zeros(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace up to 64 kB at a random position by zeros, like a lost block of a disk."""
    first, n = rng.integers(len(content) + 1), 1 << rng.integers(17)
    return content[:first] + bytes(min(n, len(content) - first)) + content[first + n :]


def junk_before(content: bytes, rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(1, 3_000))) + content


def junk_after(content: bytes, rng: np.random.Generator) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 100_000)))


# --- chunks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chunks:
    """Chunks of a container: each has a name, a length and so many bytes.

    Attributes:
        start: Position of the first chunk.
        name_bytes: Bytes of a name.
        length_bytes: Bytes of a length.
        byteorder: Byte order of a length.
        counts_header: Whether a length includes name and length.
        alignment: A chunk begins at a multiple of this number of bytes.
    """

    start: int
    name_bytes: int
    length_bytes: int
    byteorder: Literal["big", "little"]
    counts_header: bool = False
    alignment: int = 1

    def positions(self, content: bytes) -> list[int]:
        """Return the positions of all chunks."""
        position, found = self.start, []
        header_bytes = self.name_bytes + self.length_bytes
        while position + header_bytes <= len(content):
            found.append(position)
            length = int.from_bytes(content[position + self.name_bytes : position + header_bytes], self.byteorder)
            position += max(header_bytes, length + (0 if self.counts_header else header_bytes))
            position += -position % self.alignment
        return found


CHUNKS = {
    b"RIFF": _Chunks(12, 4, 4, "little", alignment=2),
    b"RF64": _Chunks(12, 4, 4, "little", alignment=2),
    b"FORM": _Chunks(12, 4, 4, "big", alignment=2),
    b"caff": _Chunks(8, 4, 8, "big"),
    b"riff": _Chunks(40, 16, 8, "little", counts_header=True, alignment=8),
    b"fLaC": _Chunks(4, 1, 3, "big"),
}


def _boundaries(content: bytes, rng: np.random.Generator) -> list[int]:
    """Return the positions of chunks or Ogg pages, or of random pieces if there are neither; and the end."""
    if form := CHUNKS.get(content[:4]):
        inner = form.positions(content)
    elif content[:4] == b"OggS":
        inner = [position for position in range(len(content)) if content.startswith(b"OggS", position)]
    else:
        inner = rng.integers(len(content) + 1, size=6).tolist()
    return sorted({0, *inner, len(content)})


def _pieces(content: bytes, rng: np.random.Generator) -> list[bytes]:
    return [content[first:last] for first, last in pairwise(_boundaries(content, rng))]


def a_chunk_removed(content: bytes, rng: np.random.Generator) -> bytes:
    pieces = _pieces(content, rng)
    if pieces:
        del pieces[rng.integers(len(pieces))]
    return b"".join(pieces)


def a_chunk_twice(content: bytes, rng: np.random.Generator) -> bytes:
    pieces = _pieces(content, rng)
    if pieces:
        pieces.insert(rng.integers(len(pieces) + 1), pieces[rng.integers(len(pieces))])
    return b"".join(pieces)


def two_chunks_swapped(content: bytes, rng: np.random.Generator) -> bytes:
    pieces = _pieces(content, rng)
    if pieces:
        a, b = rng.integers(len(pieces), size=2)
        pieces[a], pieces[b] = pieces[b], pieces[a]
    return b"".join(pieces)


def a_wrong_length(content: bytes, rng: np.random.Generator) -> bytes:
    """Write 0, all ones or random bits as the length of a chunk; without chunks, as a random word of the header."""
    form = CHUNKS.get(content[:4])
    if form is not None and (positions := form.positions(content)):
        # The length of the whole file, after the first name, also counts.
        at, n = rng.choice([(4, 4), *((at + form.name_bytes, form.length_bytes) for at in positions)])
    else:
        at, n = 4 * rng.integers(HEADER_BYTES // 4), 4
    length = (bytes(n), b"\xff" * n, rng.bytes(n))[rng.integers(3)]
    return (content[:at] + length + content[at + n :])[: len(content)]


MUTATIONS: list[Mutation] = [
    one_bit_of_the_header,
    bits_of_the_header,
    one_bit_of_the_body,
    bits_of_the_body,
    cut_in_the_header,
    cut_anywhere,
    a_run_of_zeros,
    junk_before,
    junk_after,
    a_chunk_removed,
    a_chunk_twice,
    two_chunks_swapped,
    a_wrong_length,
    a_wrong_length,  # twice, because it has three kinds, and lengths are the most common fault of headers
]
