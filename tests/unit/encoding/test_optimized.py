"""Modules arranged for inference compute what avex's own modules compute, in every part that training can set."""

from typing import Any

import numpy as np
import pytest
import torch

from embedding.encoding.checkpoints import fetch_checkpoint
from embedding.encoding.models import find_model, load
from embedding.encoding.optimized import OptimizedBeats, OptimizedEfficientNet, Plain, optimized_class
from tests.support import reference  # noqa: F401 — imports all of avex: `load` alone imports what its first model needs
from tests.support.models import BEATS, EFFICIENTNET

RATE_HZ = 16_000


def load_with_trained_looking_weights(name: str) -> Any:
    """Fresh weights leave biases, gates and running statistics at 0 or 1, where a mistake with them would not show."""
    model = find_model(name)
    module = load(model, fetch_checkpoint(model.name, "random"))
    generator = torch.Generator().manual_seed(1)
    for key, tensor in module.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point() and tensor.dim() and not key.startswith("backbone.fbank"):
            tensor.add_(torch.empty_like(tensor).normal_(0, 0.02, generator=generator))
    return module


def lean(module: Any, name: str, dtype: torch.dtype = torch.float32) -> Any:
    return optimized_class(module, find_model(name).architecture)(module, dtype)


def some_windows(n: int, length_s: float) -> torch.Tensor:
    samples = np.random.default_rng(0).normal(0, 0.1, (n, int(length_s * RATE_HZ)))
    return torch.tensor(samples, dtype=torch.float32)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.parametrize(("name", "kind"), [(BEATS, OptimizedBeats), (EFFICIENTNET, OptimizedEfficientNet)])
def test_features_are_those_of_the_module(name: str, kind: type) -> None:
    module = load_with_trained_looking_weights(name)
    windows = some_windows(2, 1.3)
    with torch.inference_mode():
        expected = module(windows)
        arranged = lean(module, name)
        features, padded = arranged(windows, None)
    assert isinstance(arranged, kind)
    assert padded is None
    assert features.shape == expected.shape
    assert relative_error(features, expected) <= 3e-6


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_float16_is_close_to_float32(name: str) -> None:
    module = load_with_trained_looking_weights(name)
    windows = some_windows(2, 1.3)
    with torch.inference_mode():
        expected = module(windows)
        features, _ = lean(module, name, torch.float16)(windows, None)
    tokens, expected = (map_or_tokens.flatten(2).transpose(1, 2) if name == EFFICIENTNET else map_or_tokens
                        for map_or_tokens in (features.float(), expected))  # fmt: skip
    assert torch.nn.functional.cosine_similarity(tokens, expected, dim=-1).min() >= 0.999
    assert 1e-6 < relative_error(tokens, expected) <= 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_and_sums_of_beats_stay_in_float32(dtype: torch.dtype) -> None:
    model = lean(load_with_trained_looking_weights(BEATS), BEATS, dtype)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    seen: list[torch.dtype] = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.inference_mode():
        features, _ = model(some_windows(1, 0.5), None)
    assert seen == [torch.float32] * (2 + 2 * 12)
    assert {parameter.dtype for norm in norms for parameter in norm.parameters()} == {torch.float32}
    assert features.dtype == torch.float32


@pytest.mark.parametrize("n_tokens", [1, 64, 1_700])
def test_the_position_bias_is_that_of_avex(n_tokens: int) -> None:
    """1,700 tokens are farther apart than avex tells distances apart (800)."""
    module = load_with_trained_looking_weights(BEATS)
    expected = module.backbone.encoder.layers[0].self_attn.compute_bias(n_tokens, n_tokens)
    assert torch.equal(lean(module, BEATS).position_bias(n_tokens), expected)


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_bfloat16_is_at_least_as_close_as_autocast(name: str) -> None:
    module = load_with_trained_looking_weights(name)
    windows = some_windows(2, 1.3)
    with torch.inference_mode():
        expected = module(windows)
        plain, _ = Plain(module, torch.bfloat16)(windows, None)
        features, _ = lean(module, name, torch.bfloat16)(windows, None)
    assert 1e-6 < relative_error(features, expected) <= 1.1 * relative_error(plain, expected)


def test_masked_features_and_their_mask_are_those_of_the_module() -> None:
    module = load_with_trained_looking_weights(BEATS)
    windows = some_windows(3, 1.3)
    padding = torch.arange(windows.shape[1]) >= torch.tensor([windows.shape[1], 12_345, 5_000])[:, None]
    with torch.inference_mode():
        expected, expected_padded = Plain(module, torch.float32)(windows, padding)
        features, padded = lean(module, BEATS)(windows, padding)
    assert torch.equal(padded, expected_padded)
    assert relative_error(features[~padded], expected[~padded]) <= 3e-6


def test_windows_of_another_length_have_biases_of_their_own() -> None:
    module = load_with_trained_looking_weights(BEATS)
    windows = some_windows(1, 1.3)
    with torch.inference_mode():
        expected = module(windows[:, :12_000])
        arranged = lean(module, BEATS)
        arranged(windows, None)
        features, _ = arranged(windows[:, :12_000], None)
    assert relative_error(features, expected) <= 3e-6


def test_a_backbone_of_another_kind_runs_as_avex_runs_it() -> None:
    module = load_with_trained_looking_weights(BEATS)
    module.backbone.cfg.layer_norm_first = True
    assert optimized_class(module, "beats") is Plain
