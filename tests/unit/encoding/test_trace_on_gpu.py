"""Forward pass of optimised models on a fake GPU: no tensor is on the CPU, and no number is waited for.

No GPU is needed; see ``tests/support/fake_cuda.py``.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avex.models.eat.audio_processor import EATAudioProcessor
from torch import nn

from embedding.config import make_config
from embedding.encoding.encoder import Encoder
from embedding.encoding.label_map import LabelMap
from embedding.encoding.optimized import UnoptimizedModel
from embedding.encoding.optimized_eat import OptimizedEat
from embedding.encoding.settings import Settings
from simulated_gpu import SimulatedGpu
from tests.support.fake_cuda import trace
from tests.support.models import BEATS, EFFICIENTNET
from tests.support.optimized_models import load_perturbed, noise_windows, optimize, padding_after

pytestmark = pytest.mark.usefixtures("few_layers")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class EatBackbone(nn.Module):
    """Stand-in for EAT's backbone, whose code is on the hub."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 768, 16, 16)

    def extract_features(self, spectra: torch.Tensor) -> torch.Tensor:
        return self.patches(spectra).flatten(2).transpose(1, 2)


def optimized_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    if name == "eat":
        return OptimizedEat(SimpleNamespace(audio_processor=EATAudioProcessor(), backbone=EatBackbone()), dtype)
    return optimize(load_perturbed(name), name, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET, "eat"])
def test_all_tensors_of_a_pass_are_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    model = optimized_model(name, dtype)
    windows = noise_windows(2, 1.3)
    paddings = [None]
    if name == BEATS:
        paddings += [padding_after([windows.shape[1], 5_000], windows.shape[1])]
    for padding in paddings:
        recorded, features = trace(model, windows, padding)
        assert recorded.devices == {"cuda"}
        assert features.device.type == "cuda"
        assert len(features) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_products_have_the_configured_type_and_norms_are_float32(name: str, dtype: torch.dtype) -> None:
    """Without EAT, whose backbone uses autocast, which torch disables on a machine without a GPU."""
    recorded, features = trace(optimized_model(name, dtype), noise_windows(2, 1.3), None)
    by_operator = recorded.dtypes
    products = {"aten.conv2d.default", "aten.linear.default", "aten.scaled_dot_product_attention.default"}
    assert {frozenset(by_operator[product]) for product in products & by_operator.keys()} == {frozenset({dtype})}
    float32 = {"aten.layer_norm.default", "aten.matmul.default", "aten.log.default"}  # norms and spectra
    assert {frozenset(by_operator[operator]) for operator in float32 & by_operator.keys()} == {
        frozenset({torch.float32})
    }
    # No other type is used: float64 is sixty times as slow on most GPUs.
    assert set().union(*by_operator.values()) == {torch.float32, dtype}
    assert features.dtype == (torch.float32 if name == BEATS else dtype)


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET, "eat"])
def test_the_operators_do_not_depend_on_the_number_of_windows(name: str) -> None:
    model = optimized_model(name)
    trace(model, noise_windows(1, 1.3), None)  # BEATs computes its position bias in the first pass only
    one, many = (trace(model, noise_windows(n, 1.3), None)[0].operators for n in (1, 32))
    assert one == many


def test_the_trace_shows_a_tensor_on_the_cpu() -> None:
    """The BEATs of avex computes relative positions on the CPU in each pass (avex 1.4.0)."""
    recorded, _ = trace(UnoptimizedModel(load_perturbed(BEATS), torch.float32), noise_windows(1, 1.3), None)
    assert recorded.devices == {"cpu", "cuda"}


class WholePass(nn.Module):
    """All computations between the copies to and from a GPU: mask, network, pooling and classifier."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = (encoder,)  # in a tuple, so that torch does not search it for modules
        self.network, self.classifier = encoder._network, encoder._classifier

    def forward(self, windows: torch.Tensor, n_audio: torch.Tensor) -> tuple[torch.Tensor, None]:
        buffer = SimpleNamespace(samples=windows, n_audio=n_audio)
        outputs = self.encoder[0]._forward(buffer, len(windows), masked=True)
        assert {name: values.dtype for name, values in outputs.items()} == {
            "embedding": torch.float32,
            "labels": torch.int64,
            "scores": torch.float32,
        }
        return torch.cat(list(outputs.values()), 1), None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_masking_pooling_and_classifier_use_only_the_gpu_and_return_the_stored_types(precision: str) -> None:
    request = {"input": "a", "output": "b", "model": BEATS, "checkpoint": "random", "window_s": 1.3}
    settings = Settings.of(make_config(request | {"precision": precision, "mask_padding": True}))
    settings = replace(settings, label_map=LabelMap(3, tuple("abcde")))
    whole = WholePass(Encoder(settings, SimulatedGpu(), 1))
    recorded, outputs = trace(whole, noise_windows(2, 1.3), torch.tensor([20_800, 5_000]))
    assert recorded.devices == {"cuda"}
    assert outputs.shape == (2, 768 + 3 + 3)


class Faulty(nn.Module):
    """Module that adds a tensor which is no buffer, or waits for a number."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.one = fault, torch.ones(1)

    def forward(self, windows: torch.Tensor, padding: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        if self.fault == "no buffer":
            return windows + self.one, None
        return windows * float(windows.amax()), None


@pytest.mark.parametrize("fault", ["no buffer", "a number"])
def test_the_trace_refuses_a_tensor_that_is_no_buffer_and_waiting_for_a_number(fault: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        trace(Faulty(fault), noise_windows(1, 0.1), None)
