"""Shared parts of the programs written by hand: command line, windows of a recording, loading, and the Parquet file.

Nothing of ``embedding`` is used, only what a user of avex, soundfile and soxr has. ``avex.load_model`` first loads
ImageNet weights, so TORCH_HOME has to contain weights under their name.
"""

import argparse
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

RATE_HZ = 16_000  # of the measured models, by their model cards
# EfficientNet-B0 on one core takes 29, 30, 34, 39, 63, 75 ms per window at batches of 1, 2, 4, 8, 16, 32 (windows of
# 5 s, fp32, 2026-11-21). Large batches, as for a GPU, cause page faults for their activations. A user who has measured
# some batch sizes chooses this one.
BATCH_SIZE = 4
SUFFIXES = {".flac", ".wav", ".mp3", ".ogg", ".opus"}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all programs have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--input", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--output", type=Path, required=True, help="Parquet file")
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--window-s", type=float, default=5.0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser


def n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def recordings(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.suffix in SUFFIXES)


def windows(file: str, window_s: float) -> NDArray[np.float32]:
    audio, source_hz = sf.read(file, dtype="float32")
    return cut(audio.mean(axis=1) if audio.ndim == 2 else audio, source_hz, window_s)


def cut(audio: Any, source_hz: int, window_s: float) -> NDArray[np.float32]:
    """Return windows ``[n, length]`` at the model's rate; the last window is padded with zeros."""
    if source_hz != RATE_HZ:
        audio = soxr.resample(audio, source_hz, RATE_HZ)
    length = round(window_s * RATE_HZ)
    n_windows = math.ceil(len(audio) / length)
    return np.pad(audio, (0, n_windows * length - len(audio))).reshape(n_windows, length)


def load_model(model: str, checkpoint: Path, device: str = "cpu") -> "torch.nn.Module":
    import avex

    return avex.load_model(model, device=device, checkpoint_path=str(checkpoint), return_features_only=True).eval()  # type: ignore[union-attr]


def embed(model: "torch.nn.Module", batch: "torch.Tensor", precision: str) -> "torch.Tensor":
    """Return vectors ``[n, dim]`` of ``[n, length]``: the mean over tokens (BEATs, EAT) or the map (EfficientNet)."""
    import torch

    with torch.inference_mode(), torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bf16"):
        features = model(batch, padding_mask=None).float()
        return features.mean((2, 3) if features.dim() == 4 else 1)


def write(path: Path, files: Iterable[str], indices: Iterable[int], vectors: NDArray[np.float32]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "file": pa.array(files),
        "window_index": pa.array(indices, pa.int32()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
