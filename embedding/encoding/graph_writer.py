"""Graphs of avex's models, written to files from which encoders on CPUs start; see ``graph_files.py``."""

import json
from pathlib import Path
from typing import Any

import openvino as ov
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from embedding.encoding.checkpoints import RANDOM_SEED, Checkpoint
from embedding.encoding.graph_files import CONSTANTS, CONTENTS, GRAPH, WEIGHTS, checksum
from embedding.encoding.label_map import N_RANDOM
from embedding.encoding.model_loading import load
from embedding.encoding.models import Model
from embedding.encoding.openvino_graph import build_graph
from embedding.encoding.optimized import OptimizedBeats, OptimizedEfficientNet, optimized_class
from embedding.encoding.safe_tensors import as_safetensors


def write(model: Model, checkpoint: Checkpoint, folder: Path) -> None:
    """Load a model, and write its graph and its constants.

    Args:
        model: The model.
        checkpoint: Weights of the model, on this machine.
        folder: Empty folder for the files of ``graph_files.GraphFiles``. Of a model that has other layers than the
            published ones, no graph is written.

    Raises:
        RequestError: The checkpoint is damaged, or does not fit the model.
        OSError: The files cannot be written.
    """
    module = load(model, checkpoint)
    model_class = optimized_class(module, model.architecture)
    checksums = {}
    if issubclass(model_class, OptimizedBeats | OptimizedEfficientNet):
        optimized = model_class(module, torch.float32).eval()
        ov.save_model(build_graph(optimized), folder / GRAPH, compress_to_fp16=False)
        tensors, front_end = _front_end(optimized)
        tensors |= _classifier(model, checkpoint)
        save_file(tensors, folder / CONSTANTS, {"front_end": json.dumps(front_end)})
        checksums = {name: checksum(folder / name) for name in (GRAPH, WEIGHTS, CONSTANTS)}
    (folder / CONTENTS).write_text(json.dumps(checksums), encoding="utf-8")


def _front_end(module: OptimizedBeats | OptimizedEfficientNet) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the numbers of a module's front end."""
    if isinstance(module, OptimizedBeats):
        fbank = module.fbank
        numbers = {"architecture": "beats", "mean": module.fbank_mean, "std": module.fbank_std}
        return (
            {"window": fbank.window, "mel": fbank.mel_fb.contiguous()},
            numbers | {"hop": fbank.hop_length, "n_fft": fbank.n_fft},
        )
    processor = module.processor
    numbers = {"architecture": "efficientnet", "centered": processor.center}
    # torch.stft centres a window that is shorter than the transform.
    missing = processor.n_fft - len(module.window)
    window = torch.nn.functional.pad(module.window, (missing // 2, missing - missing // 2))
    return (
        {"window": window, "mel": module.mel.contiguous()},
        numbers | {"hop": processor.hop_length, "n_fft": processor.n_fft},
    )


def _classifier(model: Model, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint's classifier in float32 by their names; none if it has no classifier."""
    names = [f"{model.traits.classifier}.{part}" for part in ("weight", "bias")]
    if checkpoint.path is None:
        generator = torch.Generator().manual_seed(RANDOM_SEED)
        random = [torch.randn(N_RANDOM, model.traits.dim, generator=generator), torch.zeros(N_RANDOM)]
        return dict(zip(names, random, strict=True))
    with as_safetensors(checkpoint) as path, safe_open(path, "pt") as stored:
        return {name: stored.get_tensor(name).float().contiguous() for name in set(names) & set(stored.keys())}
