"""Synthetic archives for benchmarks, made once and cached.

``python benchmarks/archive.py --format flac --rate-hz 48000 --hours 1``

The sound resembles that of a field recorder: a noise floor that FLAC compresses to about 55 %, wind, and calls. A
recording is the sum of two loops of about two minutes with different prime lengths. The offsets of the loops differ
between files, so that no two files, and no two hours of a file, are equal. Equal requests give equal sound; the bytes
may differ by Ogg's serial numbers and between versions of libsndfile's lossy encoders.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

VERSION = 1  # of the sound; part of the names of cached archives
LOOPS_S = (127, 113)  # prime lengths, so that the sum repeats only after four hours
# Full scale is 1. FLAC compresses white noise of 2⁻⁸·⁵ to about 55 % of 16 bits.
FLOOR = 0.0021
WIND = 0.02
CALLS_PER_S = 0.7
CALL = (0.01, 0.2)
# libsndfile's Vorbis encoder overflows its stack if one call writes a long block.
BLOCK_FRAMES = 1 << 15

# Suffix, and libsndfile's names of the container and the codec.
FORMATS = {
    "wav": (".wav", "WAV", "PCM_16"),
    "flac": (".flac", "FLAC", "PCM_16"),
    "mp3": (".mp3", "MP3", "MPEG_LAYER_III"),
    "opus": (".opus", "OGG", "OPUS"),
    "vorbis": (".ogg", "OGG", "VORBIS"),
}


@dataclass(frozen=True)
class Archive:
    """``n_files`` recordings of ``file_s`` seconds each, mono."""

    format: str
    rate_hz: int
    n_files: int
    file_s: float

    @classmethod
    def of_hours(cls, hours: float, file_s: float = 60.0, rate_hz: int = 48_000, format: str = "flac") -> "Archive":  # noqa: A002
        return cls(format, rate_hz, max(1, round(hours * 3600 / file_s)), file_s)

    @property
    def audio_s(self) -> float:
        return self.n_files * self.file_s

    @property
    def name(self) -> str:
        return f"{self.format}-{self.rate_hz}hz-{self.n_files}x{self.file_s:g}s-v{VERSION}"

    def __str__(self) -> str:
        length = f"{self.file_s:g} s" if self.file_s < 120 else f"{self.file_s / 60:g} min"
        kind = "Ogg-Opus" if self.format == "opus" else self.format.upper()
        return f"{self.n_files:,} × {length} of {self.rate_hz / 1000:g} kHz {kind}"

    def path(self, folder: Path, index: int) -> Path:
        """Return the path of recording ``index``; a folder holds a thousand recordings."""
        suffix = FORMATS[self.format][0]
        return folder / f"site-{index // 1000:03}" / f"recording-{index:06}{suffix}"


def default_cache() -> Path:
    return Path(tempfile.gettempdir()) / "avex-batch-benchmarks"


def make_archive(archive: Archive, cache_folder: Path | None = None) -> Path:
    """Return the folder with the recordings; write the recordings if the folder does not exist.

    Raises:
        ValueError: The codec does not support the sample rate.
    """
    if archive.format == "opus" and archive.rate_hz not in (8_000, 12_000, 16_000, 24_000, 48_000):
        raise ValueError(f"Opus has no {archive.rate_hz} Hz")
    folder = (cache_folder or default_cache()) / archive.name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{archive.name}.", dir=folder.parent))
    try:
        _write_all(archive, partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def first_recordings(folder: Path, n_files: int) -> Path:
    """Return a folder with hard links to the first ``n_files`` recordings of an archive, which take no space."""
    part = folder.with_name(f"{folder.name}-first-{n_files}")
    if part.is_dir():
        return part
    partial = Path(tempfile.mkdtemp(prefix=f"{part.name}.", dir=part.parent))
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[:n_files]:
        link = partial / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link)
    partial.rename(part)
    return part


def read_into_cache(folder: Path) -> None:
    """Read every file once, so that no measured command reads from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass


def sound(archive: Archive, index: int) -> Iterator[NDArray[np.float32]]:
    """Return the samples of recording ``index`` in blocks ``[n]``; full scale is 1."""
    rng = np.random.default_rng([VERSION, archive.rate_hz, index])
    loops = _loops(archive.rate_hz)
    starts = [int(rng.integers(len(loop))) for loop in loops]
    gains = rng.uniform(0.6, 0.8, len(loops)).astype(np.float32)  # together as loud as one loop
    n_samples = round(archive.file_s * archive.rate_hz)
    for first in range(0, n_samples, BLOCK_FRAMES):
        n = min(BLOCK_FRAMES, n_samples - first)
        block = np.zeros(n, np.float32)
        for loop, start, gain in zip(loops, starts, gains, strict=True):
            block += gain * _part_of_loop(loop, start + first, n)
        yield block


def _part_of_loop(loop: NDArray[np.float32], start: int, n: int) -> NDArray[np.float32]:
    start %= len(loop)
    piece = loop[start : start + n]
    return piece if len(piece) == n else np.concatenate([piece, loop[: n - len(piece)]])


@cache
def _loops(rate_hz: int) -> list[NDArray[np.float32]]:
    return [_loop(rate_hz, seconds) for seconds in LOOPS_S]


def _loop(rate_hz: int, seconds: int) -> NDArray[np.float32]:
    """Return noise floor, wind (noise below 200 Hz) and calls, at ``rate_hz``."""
    rng = np.random.default_rng([VERSION, rate_hz, seconds])
    n = rate_hz * seconds
    audio = FLOOR * rng.standard_normal(n, np.float32)
    # Noise at a rate of 400 Hz, interpolated linearly.
    coarse = rng.standard_normal(400 * seconds + 1, np.float32)
    audio += WIND * np.interp(np.arange(n) * (400 / rate_hz), np.arange(len(coarse)), coarse).astype(np.float32)
    for _ in range(round(CALLS_PER_S * seconds)):
        call = _call(rng, rate_hz)
        start = int(rng.integers(n - len(call)))
        audio[start : start + len(call)] += call
    return audio


def _call(rng: np.random.Generator, rate_hz: int) -> NDArray[np.float32]:
    """Return a whistle of 0.1–1.5 s with an overtone, that glides between two pitches and is modulated at 5–40 Hz."""
    duration_s = rng.uniform(0.1, 1.5)
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    low_hz, high_hz = 500.0, min(9_000.0, 0.45 * rate_hz / 2)
    from_hz, to_hz = rng.uniform(low_hz, high_hz, 2)
    pitch_hz = np.linspace(from_hz, to_hz, len(t)) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(5, 40) * t))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
    loudness = np.exp(rng.uniform(*np.log(CALL))) * np.sin(np.pi * t / duration_s) ** 2
    return (loudness * (np.sin(phase) + 0.2 * np.sin(2 * phase))).astype(np.float32)


def _write_all(archive: Archive, folder: Path) -> None:
    sys.stderr.write(f"writing {archive} to {folder.parent}\n")
    n_workers = min(os.cpu_count() or 1, archive.n_files)
    shares = [range(first_index, archive.n_files, n_workers) for first_index in range(n_workers)]
    if archive.n_files * archive.file_s < 120:
        for share in shares:
            _write_share(archive, folder, share)
        return
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(_write_share, archive, folder, share) for share in shares]:
            future.result()


def _write_share(archive: Archive, folder: Path, indices: range) -> None:
    _, container, codec = FORMATS[archive.format]
    for index in indices:
        path = archive.path(folder, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        with sf.SoundFile(path, "w", archive.rate_hz, 1, codec, format=container) as file:
            for block in sound(archive, index):
                file.write(block)


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        type=Path,
        default=default_cache(),
        help="folder of cached archives and weights (default: %(default)s)",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=FORMATS, default="flac")
    parser.add_argument("--rate-hz", type=int, default=48_000, metavar="HZ")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--file-s", type=float, default=60.0, metavar="S", help="length of each recording")
    add_cache_option(parser)
    arguments = parser.parse_args()
    archive = Archive.of_hours(arguments.hours, arguments.file_s, arguments.rate_hz, arguments.format)
    folder = make_archive(archive, arguments.cache)
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    share = n_bytes / (archive.audio_s * archive.rate_hz * 2)
    sys.stdout.write(f"{archive}: {folder}, {n_bytes / 1e6:,.0f} MB, {share:.0%} of 16-bit PCM\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
