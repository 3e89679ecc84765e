"""Reference loop: plain avex, one window at a time, independent of ``embedding``."""

import math
import os
from pathlib import Path

import avex
import numpy as np
import soundfile as sf
import soxr
import torch
from torchvision.models import EfficientNet_B0_Weights, efficientnet_b0


def load(name: str, checkpoint: Path, torch_home: Path) -> torch.nn.Module:
    """Load a model with avex's ``load_model``.

    avex first loads ImageNet weights for EfficientNet, so random weights are written to torch's cache.
    """
    cached = torch_home / "hub" / "checkpoints" / EfficientNet_B0_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True, exist_ok=True)
    torch.save(efficientnet_b0(weights=None).state_dict(), cached)
    before = os.environ.get("TORCH_HOME")
    os.environ["TORCH_HOME"] = str(torch_home)
    try:
        model = avex.load_model(name, device="cpu", checkpoint_path=str(checkpoint), return_features_only=True)
    finally:
        os.environ.pop("TORCH_HOME")
        if before is not None:
            os.environ["TORCH_HOME"] = before
    assert isinstance(model, torch.nn.Module)
    return model.eval()


def windows(path: Path, rate_hz: int, window_s: float, hop_s: float) -> list[tuple[float, float, np.ndarray]]:
    """Return (start_s, end_s, samples) of a recording's windows, which start at 0, hop, 2·hop … within the audio."""
    audio, source_hz = sf.read(path, dtype="float32", always_2d=True)
    duration_s = len(audio) / source_hz
    mono = audio.mean(axis=1)
    if source_hz != rate_hz:
        mono = soxr.resample(mono, source_hz, rate_hz, quality="HQ")
    n = round(window_s * rate_hz)
    triples = []
    for i in range(math.ceil(duration_s / hop_s - 1e-12)):
        start = round(i * hop_s * rate_hz)
        samples = mono[start : start + n]
        triples.append((i * hop_s, min(i * hop_s + window_s, duration_s), np.pad(samples, (0, n - len(samples)))))
    return triples


@torch.no_grad()
def embed(model: torch.nn.Module, samples: np.ndarray, pooling: str = "mean") -> np.ndarray:
    """Return the vector of one window: batch of 1, no padding mask, pooled over tokens or over the map."""
    features = model(torch.from_numpy(np.ascontiguousarray(samples))[None], padding_mask=None)
    dims = (2, 3) if features.dim() == 4 else (1,)
    pooled = features.mean(dims) if pooling == "mean" else features.amax(dims)
    return pooled[0].numpy()
