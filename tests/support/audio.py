"""Synthetic recordings, and files of them."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf


def tone(duration_s: float, rate_hz: int, frequency_hz: float = 440.0, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return a tone with noise, float32, ``[n]`` or ``[n, channels]``.

    Channels have different frequencies, so that a test can tell whether they were averaged.
    """
    rng = np.random.default_rng(seed)
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    audio = np.stack([0.3 * np.sin(2 * np.pi * frequency_hz * (c + 1) * t) for c in range(channels)], axis=1)
    audio += 0.05 * rng.standard_normal(audio.shape)
    audio = audio.astype(np.float32)
    return audio[:, 0] if channels == 1 else audio


def write_audio(path: Path, audio: np.ndarray, rate_hz: int, subtype: str | None = None, **kwargs: Any) -> Path:
    """Write a recording in blocks: libsndfile's Vorbis encoder overflows its stack if one call writes a long array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    with sf.SoundFile(path, "w", rate_hz, channels, subtype, **kwargs) as file:
        for start in range(0, len(audio), 1 << 14):
            file.write(audio[start : start + (1 << 14)])
    return path
