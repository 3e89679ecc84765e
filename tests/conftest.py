"""Fixtures: archives on disk, an S3 server on loopback, one small Ray for all end-to-end tests."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Outcome:
    """How a command ended, as a user sees it."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray of two CPUs that every end-to-end test shares: starting one takes longer than most jobs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 30)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def embed(ray_address: str) -> Callable[..., Outcome]:
    """Run ``python -m jobs.embed`` with these arguments, as a user does, on the shared Ray."""

    def run(*arguments: object, env: dict[str, str] | None = None, timeout_s: float = 300) -> Outcome:
        command = [sys.executable, "-m", "jobs.embed", *map(str, arguments)]
        environment = os.environ | {"RAY_ADDRESS": ray_address} | (env or {})
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


def tone(duration_s: float, rate_hz: int, frequency_hz: float = 440.0, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A tone in noise, ``[n]`` or ``[n, channels]`` float32; channels differ, so that averaging them shows."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    audio = np.stack([0.3 * np.sin(2 * np.pi * frequency_hz * (c + 1) * t) for c in range(channels)], axis=1)
    audio += 0.05 * rng.standard_normal(audio.shape)
    audio = audio.astype(np.float32)
    return audio[:, 0] if channels == 1 else audio


def write_audio(path: Path, audio: np.ndarray, rate_hz: int, **kwargs: str) -> Path:
    """Write in blocks: libsndfile's Vorbis encoder overflows its stack on one long call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    with sf.SoundFile(path, "w", rate_hz, channels, **kwargs) as file:
        for start in range(0, len(audio), 1 << 14):
            file.write(audio[start : start + (1 << 14)])
    return path
