"""Archives with calls at known times: chirps, pulses and clicks mixed into recordings at several levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

RATE_HZ = 16_000
CALL_S = 1.0
LABELS = ("chirp", "pulses", "clicks")
# Levels of a call above its background, in decibels.
LOUD_DB, MEDIUM_DB, FAINT_DB = 20, 10, 0


@dataclass(frozen=True)
class Call:
    """A call in a recording."""

    file: str
    start_s: float
    label: str
    level_db: int

    @property
    def end_s(self) -> float:
        """Its end in seconds from the start of the recording."""
        return self.start_s + CALL_S


def sound_of(label: str) -> np.ndarray:
    """Return the samples of a call, with a root mean square of 1."""
    time_s = np.arange(int(CALL_S * RATE_HZ)) / RATE_HZ
    if label == "chirp":
        sound = np.sin(2 * np.pi * (1_000 * time_s + 1_000 * time_s**2))
    elif label == "pulses":
        sound = np.sin(2 * np.pi * 5_000 * time_s) * (np.sin(2 * np.pi * 6 * time_s) > 0)
    else:
        sound = np.zeros(len(time_s))
        sound[:: RATE_HZ // 25] = 1
        sound = np.convolve(sound, np.hanning(24) * np.sin(np.arange(24)), "same")
    sound *= np.minimum(1, 20 * np.minimum(time_s, CALL_S - time_s))
    return sound / np.sqrt(np.mean(sound**2))


def read_backgrounds(files: Sequence[Path]) -> list[np.ndarray]:
    """Return recordings as mono at RATE_HZ, with a root mean square of 1; silent ones are left out."""
    backgrounds = []
    for path in files:
        samples, rate_hz = sf.read(path, always_2d=True)
        mono = soxr.resample(samples.mean(axis=1), rate_hz, RATE_HZ)
        if (level := np.sqrt(np.mean(mono**2))) > 1e-5:
            backgrounds.append(mono / level)
    return backgrounds


def noise_backgrounds(n: int, seconds: float = 20.0) -> list[np.ndarray]:
    """Return ``n`` noises of different colours, for machines without recordings."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(n):
        spectrum = np.fft.rfft(rng.normal(size=int(seconds * RATE_HZ)))
        noise = np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1) ** (0.2 + 0.6 * number / n))
        found.append(noise / np.sqrt(np.mean(noise**2)))
    return found


def write_archive(
    folder: Path, backgrounds: Sequence[np.ndarray], n_recordings: int, seconds: float, calls_per_minute: float
) -> list[Call]:
    """Write recordings with calls; return the calls.

    The names have times, one an hour from midnight on, and two sites are folders.

    Args:
        folder: The folder.
        backgrounds: Mono at RATE_HZ.
        n_recordings: Number of recordings.
        seconds: Length of each.
        calls_per_minute: Calls in a minute, on average; no two overlap.
    """
    rng = np.random.default_rng(0)
    calls: list[Call] = []
    for number in range(n_recordings):
        background = backgrounds[number % len(backgrounds)]
        n = int(seconds * RATE_HZ)
        start = rng.integers(0, len(background))
        samples = 0.01 * np.take(background, np.arange(start, start + n), mode="wrap") * rng.uniform(0.5, 1.5)
        samples += rng.normal(0, 1e-4, n)
        path = folder / ("wood" if number % 2 else "pond") / f"2025050{1 + number // 24}_{number % 24:02}0000.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        slots = rng.permutation(int(seconds / (2 * CALL_S)))[: rng.poisson(calls_per_minute * seconds / 60)]
        for slot in np.sort(slots):
            label = LABELS[rng.integers(len(LABELS))]
            level_db = (LOUD_DB, MEDIUM_DB, FAINT_DB)[rng.integers(3)]
            start_s = round(float(2 * CALL_S * slot + rng.uniform(0, CALL_S)), 3)
            at = int(start_s * RATE_HZ)
            piece = samples[at : at + int(CALL_S * RATE_HZ)]
            level = np.sqrt(np.mean(piece**2)) * 10 ** (level_db / 20)
            piece += level * sound_of(label)[: len(piece)]
            calls.append(Call(str(path), start_s, label, level_db))
        sf.write(path, np.clip(samples, -1, 1), RATE_HZ)
    return calls


def write_raven(folder: Path, calls: Sequence[Call], files: Sequence[str]) -> None:
    """Write a selection table for each of ``files``, as Raven saves them."""
    folder.mkdir(parents=True, exist_ok=True)
    header = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"]
    for file in files:
        lines = ["\t".join([*header, "Begin Path", "Annotation"])]
        own = [call for call in calls if call.file == file]
        for number, call in enumerate(own, start=1):
            cells = (number, "Spectrogram 1", 1, f"{call.start_s:.6f}", f"{call.end_s:.6f}", "0.000", "8000.000")
            lines.append("\t".join(map(str, (*cells, file, call.label))))
        name = f"{Path(file).parent.name}-{Path(file).stem}.Table.1.selections.txt"
        (folder / name).write_text("\r\n".join(lines) + "\r\n")
