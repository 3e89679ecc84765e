"""Checkpoints for benchmarks, made by avex from seeded weights without a download.

``make_checkpoint`` runs ``python benchmarks/weights.py MODEL FILE.safetensors TORCH_HOME`` in a process of its own,
because importing avex takes seconds and a gigabyte, which would disturb the measuring process.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

EFFICIENTNET = "esp_aves2_effnetb0_all"
BEATS = "esp_aves2_sl_beats_all"
MODELS = (EFFICIENTNET, BEATS)
SEED = 1234


def make_checkpoint(model: str, cache_folder: Path) -> Path:
    """Return a checkpoint of a model; write the checkpoint and the content of ``torch_home`` if it does not exist."""
    path = cache_folder / "weights" / f"{model}-noise-{SEED}.safetensors"
    if not path.exists():
        command = [sys.executable, __file__, model, str(path), str(torch_home(cache_folder))]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def torch_home(cache_folder: Path) -> Path:
    """Return a folder for torch's cache, with random weights under the name of ImageNet weights.

    Without them ``avex.load_model`` would download ImageNet weights, and then load the checkpoint over them.
    """
    return cache_folder / "weights" / "torch-home"


def set_batch_norm_statistics(module: Any) -> None:
    """Set the statistics of batch norms to those of noise.

    Fresh batch norms shrink activations layer by layer, until all sounds have the same vector. A small part of the
    initial statistics is kept: without it every rounding error grows from layer to layer, and avex's own float32
    vectors differ from its float64 vectors by 4e-5 (docs/decisions.md).
    """
    import torch

    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 0.998
    module.train()
    with torch.no_grad():
        module(0.1 * torch.randn(8, 16_000) * torch.logspace(-2, 0, 8)[:, None])


def main() -> int:
    model, path, home = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    import avex
    import torch
    from safetensors.torch import save_file
    from torchvision.models import EfficientNet_B0_Weights, efficientnet_b0

    torch.manual_seed(SEED)
    if model == EFFICIENTNET:
        url = EfficientNet_B0_Weights.IMAGENET1K_V1.url
        imagenet = home / "hub" / "checkpoints" / url.rpartition("/")[2]
        imagenet.parent.mkdir(parents=True, exist_ok=True)
        torch.save(efficientnet_b0(weights=None).state_dict(), imagenet)
    spec = avex.get_model_spec(model)
    assert spec is not None, f"avex has no {model}"
    module = avex.build_model_from_spec(spec, "cpu", return_features_only=True, pretrained=False)
    if model == EFFICIENTNET:
        set_batch_norm_statistics(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    save_file({name: tensor.clone().contiguous() for name, tensor in module.state_dict().items()}, partial)
    partial.rename(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
