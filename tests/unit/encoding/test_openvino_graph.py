"""OpenVINO graphs compute what avex's modules compute, with noise in all weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from openvino import opset13 as ops
from torch import nn

from embedding.encoding.checkpoints import fetch_checkpoint
from embedding.encoding.model_loading import load
from embedding.encoding.models import find_model
from embedding.encoding.openvino_graph import OpenvinoModel, _apply
from embedding.encoding.optimized import OptimizedBeats, OptimizedEfficientNet
from tests.support.models import BEATS, EFFICIENTNET
from tests.support.optimized_models import load_perturbed, noise_windows, optimize, padding_after, relative_norm_error

pytestmark = pytest.mark.usefixtures("few_layers")


def load_both(name: str, precision: str = "fp32") -> tuple[Any, OpenvinoModel]:
    """Return one of avex's modules, and the OpenVINO model of a second one with equal weights."""
    optimized = optimize(load_perturbed(name), name)
    assert isinstance(optimized, OptimizedBeats | OptimizedEfficientNet)
    return load_perturbed(name), OpenvinoModel(optimized, precision, n_threads=1)


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_features_equal_those_of_avex_for_any_number_and_length_of_windows(name: str) -> None:
    module, model = load_both(name)
    for windows in (noise_windows(3, 1.3), noise_windows(1, 1.3), noise_windows(2, 0.8)):
        with torch.inference_mode():
            expected = module(windows)
            features, padded = model(windows, None)
        assert padded is None
        assert features.shape == expected.shape
        assert relative_norm_error(features, expected) <= 3e-6


def test_rounding_errors_of_a_long_silence_do_not_add_up(shallow_checkpoints: dict[str, Path]) -> None:
    """The error of the vectors is as large as with torch; where a CPU has no AVX-512, it was 40 times as large."""
    model = find_model(EFFICIENTNET)
    checkpoint = fetch_checkpoint(EFFICIENTNET, str(shallow_checkpoints[EFFICIENTNET]))
    module: Any = load(model, checkpoint)
    optimized = optimize(load(model, checkpoint), EFFICIENTNET)
    windows = noise_windows(4, 10.0)
    windows[:, 5_000:] = 0
    with torch.inference_mode():
        spectra = optimized.spectrum(windows).expand(-1, 3, -1, -1)
        with_torch = module.model.features(spectra).mean((2, 3))
        exact = module.double().model.features(spectra.double()).mean((2, 3))
        vectors = OpenvinoModel(optimized, "fp32", n_threads=1)(windows, None)[0].mean((2, 3))
    assert relative_norm_error(vectors, exact) <= 2 * relative_norm_error(with_torch, exact)


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_the_next_call_does_not_overwrite_features(name: str) -> None:
    _, model = load_both(name)
    with torch.inference_mode():
        features, _ = model(noise_windows(1, 1.3), None)
        before = features.clone()
        model(0.5 * noise_windows(1, 1.3), None)
    assert torch.equal(features, before)


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_bfloat16_is_close_to_float32(name: str) -> None:
    module, model = load_both(name, "bf16")
    windows = noise_windows(2, 1.3)
    with torch.inference_mode():
        error = relative_norm_error(model(windows, None)[0], module(windows))
    assert error <= 1e-2


def test_masked_features_equal_those_of_avex() -> None:
    module, model = load_both(BEATS)
    windows = noise_windows(2, 1.3)
    padding = padding_after([windows.shape[1], 5_000], windows.shape[1])
    with torch.inference_mode():
        expected, expected_padded = module.backbone(module.process_audio(windows), padding)
        features, padded = model(windows, padding)
    assert padded is not None
    assert torch.equal(padded, expected_padded)
    assert relative_norm_error(features[~padded], expected[~padded]) <= 3e-6


def test_the_error_names_a_module_that_efficientnets_do_not_have() -> None:
    with pytest.raises(TypeError, match="Hardswish"):
        _apply(nn.Sequential(nn.SiLU(), nn.Hardswish()), ops.parameter([1, 1, 4, 4]))


def test_openvino_does_not_use_the_network() -> None:
    """OpenVINO depends on a package for telemetry, which is not active when models are built by hand."""
    script = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        sys.exit(f"{event} {arguments}")
sys.addaudithook(refuse)
import numpy as np, openvino
from openvino import opset13 as ops
x = ops.parameter([2], np.float32)
print(openvino.Core().compile_model(openvino.Model([ops.add(x, x)], [x]), "CPU")([np.ones(2, np.float32)])[0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[2. 2.]"), done.stderr
