"""Encoders of short windows, tables of windows, and comparisons of vectors."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from embedding.config import make_config
from embedding.encoding.cpu_encoder import CpuEncoder
from embedding.encoding.devices import Cpu, Device
from embedding.encoding.encode_batch import WindowEncoder
from embedding.encoding.encoder import Encoder
from embedding.encoding.encoder_loading import load_encoders
from embedding.encoding.settings import Settings
from embedding.schema.batches import windows_schema
from embedding.schema.windows import WindowSpec
from tests.support.audio import tone

RATE_HZ = 16_000
WINDOW_S = 1.0


def make_settings(checkpoint: Path | str, model: str, **options: object) -> Settings:
    """Return the settings of a model with windows of 1 s."""
    request = {"input": "a", "output": "b", "model": model, "checkpoint": str(checkpoint), "window_s": WINDOW_S}
    return Settings.of(make_config(request | options))


def make_encoder(checkpoint: Path | str, model: str, device: Device | None = None, **options: object) -> Encoder:
    """Load a model onto ``device``, by default the CPU, for torch."""
    import avex  # noqa: F401 — with all architectures: the process of a run skips those it does not need, tests need all

    return Encoder(make_settings(checkpoint, model, **options), device or Cpu(), 2)


def make_cpu_encoder(checkpoint: Path | str, model: str, **options: object) -> CpuEncoder:
    """Load a model's graph."""
    (encoder,) = load_encoders([make_settings(checkpoint, model, **options)], 2)
    assert isinstance(encoder, CpuEncoder)
    return encoder


def tone_windows(n: int, length_s: float = WINDOW_S) -> np.ndarray:
    """Return windows ``[n, length]`` with a tone of another pitch in each."""
    return np.stack([tone(length_s, RATE_HZ, 200.0 * (i + 1), seed=i) for i in range(n)])


def windows_table(windows: np.ndarray) -> pa.Table:
    """Return the table that decoding makes of windows, each of which is a recording."""
    n, length = windows.shape
    rows = {
        "file": [f"/a/{i}.wav" for i in range(n)],
        "file_id": range(n),
        "window_index": [0] * n,
        "n_windows": [1] * n,
        "start_time": [0.0] * n,
        "end_time": [length / RATE_HZ] * n,
        "duration": [length / RATE_HZ] * n,
        "sample_rate": [RATE_HZ] * n,
        "channels": [1] * n,
        "targets": [1] * n,
        "recorder_facts": [""] * n,
        "audio_hash_16000": [None] * n,
        "window_16000": list(windows),
    }
    spec = WindowSpec(RATE_HZ, length, length, "pad")
    return pa.table({name: rows[name] for name in windows_schema([spec]).names}, windows_schema([spec]))


def encode(encoder: WindowEncoder, windows: np.ndarray) -> dict[str, np.ndarray]:
    """Encode windows that have no padding."""
    return encoder.encode(windows, np.full(len(windows), windows.shape[1]))


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest relative error of the vectors ``a`` against ``b``."""
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def smallest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the smallest cosine between the vectors of ``a`` and those of ``b``."""
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())
