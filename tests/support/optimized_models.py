"""avex's modules with weights like trained ones, their optimised forms, and comparisons of features."""

from typing import Any

import numpy as np
import torch

from embedding.encoding.checkpoints import fetch_checkpoint
from embedding.encoding.model_loading import load
from embedding.encoding.models import find_model
from embedding.encoding.optimized import optimized_class
from tests.support import reference  # noqa: F401 — imports all of avex; `load` imports only what its first model needs

RATE_HZ = 16_000


def load_perturbed(name: str) -> Any:
    """Load one of avex's modules with random weights and noise in all of them.

    Fresh biases, gates and running statistics are 0 or 1, which would hide an error in their use.
    """
    model = find_model(name)
    module = load(model, fetch_checkpoint(model.name, "random"))
    generator = torch.Generator().manual_seed(1)
    for key, tensor in module.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point() and tensor.dim() and not key.startswith("backbone.fbank"):
            tensor.add_(torch.empty_like(tensor).normal_(0, 0.02, generator=generator))
    return module


def optimize(module: Any, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return the optimised form of one of avex's modules."""
    return optimized_class(module, find_model(name).architecture)(module, dtype)


def noise_windows(n: int, length_s: float) -> torch.Tensor:
    """Return windows ``[n, length]`` of noise."""
    samples = np.random.default_rng(0).normal(0, 0.1, (n, int(length_s * RATE_HZ)))
    return torch.tensor(samples, dtype=torch.float32)


def padding_after(n_audio: list[int], length: int) -> torch.Tensor:
    """Return the mask ``[n, length]`` of padding after ``n_audio`` samples or tokens of each row."""
    return torch.arange(length) >= torch.tensor(n_audio)[:, None]


def relative_norm_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the norm of ``a - b`` relative to that of ``b``, over all elements."""
    return float((a.float() - b.float()).norm() / b.float().norm())
