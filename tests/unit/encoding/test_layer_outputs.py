"""Outputs of inner layers: caught by avex's hooks, pooled like the embedding, and one column per layer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import reference
from tests.support.encoding import encode, make_encoder, relative_error, tone_windows
from tests.support.models import BEATS, EFFICIENTNET

MODELS = [BEATS, EFFICIENTNET]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_layer_outputs_equal_those_of_avex(
    model: str, pooling: str, shallow_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    windows = tone_windows(3)
    outputs = encode(make_encoder(shallow_checkpoints[model], model, layers="all", pooling=pooling), windows)
    names = [name for name in outputs if name != "embedding"]
    module: Any = reference.load(model, shallow_checkpoints[model], tmp_path)
    assert names == module.get_model_layers()
    module.register_hooks_for_layers(["all"])
    for i, window in enumerate(windows):
        layers = module.extract_embeddings(torch.from_numpy(window)[None], aggregation="none")
        for name, unpooled in zip(names, layers, strict=True):
            dims = (2, 3) if unpooled.dim() == 4 else (1,)
            expected = unpooled.mean(dims) if pooling == "mean" else unpooled.amax(dims)
            assert relative_error(outputs[name][i : i + 1], expected.numpy()) <= 1e-5, name


def test_the_mean_of_a_map_equals_the_mean_of_avex_over_frequencies(
    shallow_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The mean that avex computes is over time only, with a number for each channel and frequency."""
    windows = tone_windows(1)
    outputs = encode(make_encoder(shallow_checkpoints[EFFICIENTNET], EFFICIENTNET, layers="-1"), windows)
    module: Any = reference.load(EFFICIENTNET, shallow_checkpoints[EFFICIENTNET], tmp_path)
    module.register_hooks_for_layers([-1])
    over_time = module.extract_embeddings(torch.from_numpy(windows), aggregation="mean").numpy()
    assert relative_error(outputs["model.features.8.0"], over_time.reshape(1, 1280, -1).mean(-1)) <= 1e-5


@pytest.mark.parametrize("model", MODELS)
def test_the_embedding_does_not_depend_on_the_option_layers(model: str, shallow_checkpoints: dict[str, Path]) -> None:
    windows = tone_windows(5)
    plain = encode(make_encoder(shallow_checkpoints[model], model, layers="last"), windows)
    assert list(plain) == ["embedding"]
    layered = encode(make_encoder(shallow_checkpoints[model], model, layers="0,-2"), windows)
    assert len(layered) == 3
    assert relative_error(layered["embedding"], plain["embedding"]) <= 1e-5


def test_as_many_windows_as_tokens_are_not_confused_with_tokens(shallow_checkpoints: dict[str, Path]) -> None:
    """BEATs' layers have tokens before windows, which avex detects only if their numbers differ."""
    encoder = make_encoder(shallow_checkpoints[BEATS], BEATS, layers="1")
    windows = tone_windows(8, 0.2)[:, :2_960]
    n_tokens = encoder._network(torch.from_numpy(windows[:1]))[0].shape[1]  # type: ignore[operator, union-attr]
    assert n_tokens == len(windows)
    encoder._micro_batch.size = n_tokens
    alone = np.concatenate([encode(encoder, windows[i : i + 1])["backbone.encoder.layers.0.fc2"] for i in range(8)])
    assert relative_error(encode(encoder, windows)["backbone.encoder.layers.0.fc2"], alone) <= 1e-5
