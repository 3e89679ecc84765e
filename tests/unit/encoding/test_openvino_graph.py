"""What a CPU runs computes what avex's own modules compute, in every part that training can set."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from openvino import opset13 as ops
from torch import nn

from embedding.encoding.models import find_model
from embedding.encoding.openvino_graph import Compiled, _through
from embedding.encoding.optimized import OptimizedBeats, OptimizedEfficientNet, optimized_class
from tests.support.models import BEATS, EFFICIENTNET
from tests.unit.encoding.test_optimized import load_with_trained_looking_weights, relative_error, some_windows


def arranged(name: str) -> OptimizedBeats | OptimizedEfficientNet:
    module = load_with_trained_looking_weights(name)
    kind = optimized_class(module, find_model(name).architecture)
    assert issubclass(kind, OptimizedBeats | OptimizedEfficientNet)
    return kind(module, torch.float32)


def compiled(name: str, precision: str = "fp32") -> tuple[Any, Compiled]:
    """avex's module as it was loaded, and another one's graph."""
    return load_with_trained_looking_weights(name), Compiled(arranged(name), precision, n_threads=1)


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_features_are_those_of_the_module_for_any_number_and_length_of_windows(name: str) -> None:
    module, on_cpu = compiled(name)
    for windows in (some_windows(3, 1.3), some_windows(1, 1.3), some_windows(2, 0.8)):
        with torch.inference_mode():
            expected = module(windows)
            features, padded = on_cpu(windows, None)
        assert padded is None
        assert features.shape == expected.shape
        assert relative_error(features, expected) <= 3e-6


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_features_stay_when_the_next_are_computed(name: str) -> None:
    _, on_cpu = compiled(name)
    with torch.inference_mode():
        features, _ = on_cpu(some_windows(1, 1.3), None)
        before = features.clone()
        on_cpu(0.5 * some_windows(1, 1.3), None)
    assert torch.equal(features, before)


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_bfloat16_is_close_to_float32(name: str) -> None:
    module, on_cpu = compiled(name, "bf16")
    windows = some_windows(2, 1.3)
    with torch.inference_mode():
        error = relative_error(on_cpu(windows, None)[0], module(windows))
    assert error <= 1e-2


def test_masked_features_are_those_of_the_module() -> None:
    module, on_cpu = compiled(BEATS)
    windows = some_windows(2, 1.3)
    padding = torch.arange(windows.shape[1]) >= torch.tensor([windows.shape[1], 5_000])[:, None]
    with torch.inference_mode():
        expected, expected_padded = module.backbone(module.process_audio(windows), padding)
        features, padded = on_cpu(windows, padding)
    assert padded is not None
    assert torch.equal(padded, expected_padded)
    assert relative_error(features[~padded], expected[~padded]) <= 3e-6


def test_a_module_that_an_efficientnet_does_not_have_is_named() -> None:
    with pytest.raises(TypeError, match="Hardswish"):
        _through(nn.Sequential(nn.SiLU(), nn.Hardswish()), ops.parameter([1, 1, 4, 4]))


def test_nothing_is_said_to_the_network() -> None:
    """OpenVINO brings a package for telemetry, which it asks nobody about when models are built by hand."""
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
