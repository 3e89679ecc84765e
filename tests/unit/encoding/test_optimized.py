"""Optimised models compute what avex's modules compute, with noise in all weights."""

import pytest
import torch

from embedding.encoding.optimized import (
    OptimizedBeats,
    OptimizedEfficientNet,
    UnoptimizedModel,
    optimized_class,
)
from tests.support.models import BEATS, EFFICIENTNET
from tests.support.optimized_models import load_perturbed, noise_windows, optimize, padding_after, relative_norm_error

pytestmark = pytest.mark.usefixtures("few_layers")


@pytest.mark.parametrize(("name", "model_class"), [(BEATS, OptimizedBeats), (EFFICIENTNET, OptimizedEfficientNet)])
def test_features_equal_those_of_avex(name: str, model_class: type) -> None:
    module = load_perturbed(name)
    windows = noise_windows(2, 1.3)
    with torch.inference_mode():
        expected = module(windows)
        model = optimize(module, name)
        features, padded = model(windows, None)
    assert isinstance(model, model_class)
    assert padded is None
    assert features.shape == expected.shape
    assert relative_norm_error(features, expected) <= 3e-6


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_float16_is_close_to_float32(name: str) -> None:
    module = load_perturbed(name)
    windows = noise_windows(2, 1.3)
    with torch.inference_mode():
        expected = module(windows)
        features, _ = optimize(module, name, torch.float16)(windows, None)
    tokens = features.float()
    if name == EFFICIENTNET:
        tokens, expected = (feature_map.flatten(2).transpose(1, 2) for feature_map in (tokens, expected))
    assert torch.nn.functional.cosine_similarity(tokens, expected, dim=-1).min() >= 0.999
    assert 1e-6 < relative_norm_error(tokens, expected) <= 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_and_sums_of_beats_are_float32(dtype: torch.dtype, few_layers: int) -> None:
    model = optimize(load_perturbed(BEATS), BEATS, dtype)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    input_dtypes: list[torch.dtype] = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, inputs: input_dtypes.append(inputs[0].dtype))
    with torch.inference_mode():
        features, _ = model(noise_windows(1, 0.5), None)
    assert input_dtypes == [torch.float32] * (2 + 2 * few_layers)
    assert {parameter.dtype for norm in norms for parameter in norm.parameters()} == {torch.float32}
    assert features.dtype == torch.float32


@pytest.mark.parametrize("n_tokens", [1, 64, 1_700])
def test_the_position_bias_equals_that_of_avex(n_tokens: int) -> None:
    """Up to 1,700 tokens, because avex distinguishes distances up to 800 only."""
    module = load_perturbed(BEATS)
    expected = module.backbone.encoder.layers[0].self_attn.compute_bias(n_tokens, n_tokens)
    assert torch.equal(optimize(module, BEATS).position_bias(n_tokens), expected)


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_bfloat16_is_at_least_as_accurate_as_autocast(name: str) -> None:
    module = load_perturbed(name)
    windows = noise_windows(2, 1.3)
    with torch.inference_mode():
        expected = module(windows)
        autocast, _ = UnoptimizedModel(module, torch.bfloat16)(windows, None)
        features, _ = optimize(module, name, torch.bfloat16)(windows, None)
    assert 1e-6 < relative_norm_error(features, expected) <= 1.1 * relative_norm_error(autocast, expected)


def test_masked_features_and_their_mask_equal_those_of_avex() -> None:
    module = load_perturbed(BEATS)
    windows = noise_windows(3, 1.3)
    padding = padding_after([windows.shape[1], 12_345, 5_000], windows.shape[1])
    with torch.inference_mode():
        expected, expected_padded = UnoptimizedModel(module, torch.float32)(windows, padding)
        features, padded = optimize(module, BEATS)(windows, padding)
    assert torch.equal(padded, expected_padded)
    assert relative_norm_error(features[~padded], expected[~padded]) <= 3e-6


def test_the_position_bias_follows_the_length_of_the_windows() -> None:
    module = load_perturbed(BEATS)
    windows = noise_windows(1, 1.3)
    with torch.inference_mode():
        expected = module(windows[:, :12_000])
        model = optimize(module, BEATS)
        model(windows, None)
        features, _ = model(windows[:, :12_000], None)
    assert relative_norm_error(features, expected) <= 3e-6


def test_a_backbone_with_unpublished_options_is_not_optimized() -> None:
    module = load_perturbed(BEATS)
    module.backbone.cfg.layer_norm_first = True
    assert optimized_class(module, "beats") is UnoptimizedModel
