"""A pass of an arranged model uses the GPU alone: it makes and finds no tensor on the CPU, and waits for no number.

No GPU is needed: ``fake_cuda.py`` explains how.
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
from embedding.encoding.label_map import Labels
from embedding.encoding.optimized import Plain
from embedding.encoding.optimized_eat import OptimizedEat
from embedding.encoding.settings import Settings
from simulated_gpu import SimulatedGpu
from tests.support.fake_cuda import trace
from tests.support.models import BEATS, EFFICIENTNET
from tests.unit.encoding.test_optimized import lean, load_with_trained_looking_weights, some_windows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Patches(nn.Module):
    """A stand-in for EAT's backbone, whose code is on the hub."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 768, 16, 16)

    def extract_features(self, picture: torch.Tensor) -> torch.Tensor:
        return self.patches(picture).flatten(2).transpose(1, 2)


def lean_eat(dtype: torch.dtype) -> OptimizedEat:
    return OptimizedEat(SimpleNamespace(audio_processor=EATAudioProcessor(), backbone=Patches()), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET, "eat"])
def test_all_tensors_of_a_pass_are_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    model = lean_eat(dtype) if name == "eat" else lean(load_with_trained_looking_weights(name), name, dtype)
    windows = some_windows(2, 1.3)
    paddings = [None]
    if name == BEATS:
        paddings += [torch.arange(windows.shape[1]) >= torch.tensor([windows.shape[1], 5_000])[:, None]]
    for padding in paddings:
        operations, features = trace(model, windows, padding)
        assert operations.devices == {"cuda"}
        assert features.device.type == "cuda"
        assert len(features) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET])
def test_products_have_the_type_that_is_asked_for_and_norms_have_float32(name: str, dtype: torch.dtype) -> None:
    """Not EAT: its backbone computes under autocast, which torch disables where there is no GPU."""
    operations, features = trace(lean(load_with_trained_looking_weights(name), name, dtype), some_windows(2, 1.3), None)
    by_operator = operations.dtypes
    products = {"aten.conv2d.default", "aten.linear.default", "aten.scaled_dot_product_attention.default"}
    assert {frozenset(by_operator[product]) for product in products & by_operator.keys()} == {frozenset({dtype})}
    float32 = {"aten.layer_norm.default", "aten.matmul.default", "aten.log.default"}  # norms, and the spectrum
    assert {frozenset(by_operator[each]) for each in float32 & by_operator.keys()} == {frozenset({torch.float32})}
    # Nothing computes in a type that nobody asked for; float64 is sixty times as slow on most GPUs.
    assert set().union(*by_operator.values()) == {torch.float32, dtype}
    assert features.dtype == (torch.float32 if name == BEATS else dtype)


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET, "eat"])
def test_the_number_of_operations_does_not_depend_on_the_number_of_windows(name: str) -> None:
    model = lean_eat(torch.float32) if name == "eat" else lean(load_with_trained_looking_weights(name), name)
    trace(model, some_windows(1, 1.3), None)  # BEATs makes its position bias in the first pass only
    one, many = (trace(model, some_windows(n, 1.3), None)[0].operators for n in (1, 32))
    assert one == many


def test_a_tensor_made_on_the_cpu_is_seen() -> None:
    """avex's own BEATs makes the numbers of relative positions there, in each pass (avex 1.4.0)."""
    operations, _ = trace(Plain(load_with_trained_looking_weights(BEATS), torch.float32), some_windows(1, 1.3), None)
    assert operations.devices == {"cpu", "cuda"}


class WholePass(nn.Module):
    """Everything between the copies to and from a GPU: mask, network, pooling, classifier."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = (encoder,)  # in a tuple, or torch would look for modules in it
        self.features, self.classifier = encoder._features, encoder._classifier

    def forward(self, windows: torch.Tensor, n_audio: torch.Tensor) -> tuple[torch.Tensor, None]:
        slot = SimpleNamespace(samples=windows, n_audio=n_audio)
        columns = self.encoder[0]._forward(slot, len(windows), masked=True)
        assert {name: rows.dtype for name, rows in columns.items()} == {
            "embedding": torch.float32,
            "labels": torch.int64,
            "scores": torch.float32,
        }
        return torch.cat(list(columns.values()), 1), None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_masking_pooling_and_labels_stay_on_the_gpu_and_give_the_types_that_are_stored(precision: str) -> None:
    request = {"input": "a", "output": "b", "model": BEATS, "checkpoint": "random", "window_s": 1.3}
    settings = Settings.of(make_config(request | {"precision": precision, "mask_padding": True}))
    settings = replace(settings, labels=Labels(3, tuple("abcde")))
    whole = WholePass(Encoder(settings, SimulatedGpu(), 1))
    operations, columns = trace(whole, some_windows(2, 1.3), torch.tensor([20_800, 5_000]))
    assert operations.devices == {"cuda"}
    assert columns.shape == (2, 768 + 3 + 3)


class Faulty(nn.Module):
    """A module that adds a tensor which is no buffer, or waits for a number."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.one = fault, torch.ones(1)

    def forward(self, windows: torch.Tensor, padding: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        if self.fault == "no buffer":
            return windows + self.one, None
        return windows * float(windows.amax()), None


@pytest.mark.parametrize("fault", ["no buffer", "a number"])
def test_a_tensor_left_on_the_cpu_and_a_number_waited_for_are_refused(fault: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        trace(Faulty(fault), some_windows(1, 0.1), None)
