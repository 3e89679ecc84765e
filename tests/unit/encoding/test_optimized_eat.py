"""EAT: avex's loading path with a stand-in for the backbone from the hub, and the optimised front end."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embedding.encoding.optimized import UnoptimizedModel, optimized_class
from embedding.encoding.optimized_eat import OptimizedEat
from tests.support import (
    eat_hub,
    reference,  # noqa: F401 — imports all of avex with EAT's processor; `load` imports only what its model needs
)
from tests.support.commands import ROOT

# A program, because EAT needs transformers: loading another model makes transformers unavailable in a process. One
# program for all tests, because importing transformers takes 8 s.
PROGRAM = """
import json, sys
import numpy as np, torch
from embedding.config import make_config
from embedding.encoding.checkpoints import fetch_checkpoint
from embedding.encoding.devices import Cpu
from embedding.encoding.encoder import Encoder
from embedding.encoding.micro_batch import MicroBatch
from embedding.encoding.model_loading import load
from embedding.encoding.models import find_model
from embedding.encoding.optimized import UnoptimizedModel, optimized_class
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from simulated_gpu import SimulatedGpu

MODEL = "esp_aves2_eat_all"
WINDOWS = np.random.default_rng(0).normal(0, 0.1, (9, 80_000)).astype(np.float32)

def encode(checkpoint, windows, device, **options):
    request = {"input": "a", "output": "b", "model": MODEL, "checkpoint": checkpoint, "window_s": 5.0}
    encoder = Encoder(Settings.of(make_config(request | options)), device, 1)
    assert not encoder._network.training
    encoder._micro_batch = MicroBatch(4)
    return encoder.encode(windows, np.full(len(windows), 80_000))["embedding"].tolist()

def poolings(checkpoint):
    return {pooling: encode(checkpoint, WINDOWS[:3], Cpu(), pooling=pooling) for pooling in ("cls", "mean", "max")}

# Two full micro-batches and a rest.
def devices(checkpoint):
    on_gpu = {
        precision: encode(checkpoint, WINDOWS, SimulatedGpu(is_late=True), precision=precision)
        for precision in ("fp32", "tf32", "bf16", "fp16")
    }
    return {"cpu": encode(checkpoint, WINDOWS, Cpu())} | on_gpu

# Relative errors of the features of both classes against those of avex's module in float32.
def parity(checkpoint):
    model = find_model(MODEL)
    module = load(model, fetch_checkpoint(model.name, checkpoint))
    model_class = optimized_class(module, model.architecture)
    windows = torch.from_numpy(WINDOWS[:3])
    report = {"class": model_class.__name__}
    with torch.inference_mode():
        expected = module(windows)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for tested_class in (model_class, UnoptimizedModel):
                features, _ = tested_class(module, dtype)(windows, None)
                assert features.shape == expected.shape
                error = (features.float() - expected).norm() / expected.norm()
                report[f"{tested_class.__name__} {dtype}"] = float(error)
    return report

results = []
for function, checkpoint in json.loads(sys.argv[1]):
    try:
        results.append(globals()[function](checkpoint))
    except RequestError as error:
        results.append(str(error))
print(json.dumps(results))
"""


def run(hf_home: Path, *calls: tuple[str, str]) -> list[Any]:
    """Call functions of the program with a checkpoint each, offline, with the given cache of the hub."""
    environment = os.environ | {"HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of the program for random weights, a checkpoint, and a checkpoint that lacks tensors."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("hub")
    eat_hub.write_cache(folder)
    few = {"backbone.cls_token": torch.full((1, 1, 768), 3.0)}
    patches = {"backbone.patches.weight": torch.ones(768, 1, 16, 16), "backbone.patches.bias": torch.zeros(768)}
    save_file(few | patches, folder / "whole.safetensors")
    save_file(few, folder / "few.safetensors")
    calls = {
        "poolings": ("poolings", "random"),
        "devices": ("devices", "random"),
        "parity": ("parity", "random"),
        "whole": ("poolings", str(folder / "whole.safetensors")),
        "few": ("poolings", str(folder / "few.safetensors")),
    }
    return dict(zip(calls, run(folder, *calls.values()), strict=True))


def test_cls_is_the_first_token_and_mean_and_max_pool_all_tokens(results: dict[str, Any]) -> None:
    vectors = {pooling: np.array(rows) for pooling, rows in results["poolings"].items()}
    assert {rows.shape for rows in vectors.values()} == {(3, 768)}
    assert np.array_equal(vectors["cls"], np.full((3, 768), 7.0))  # token 0 of the stand-in
    assert not np.allclose(vectors["mean"][0], vectors["mean"][1])
    assert (vectors["max"] >= vectors["mean"]).all()


def test_vectors_of_a_gpu_equal_those_of_a_cpu(results: dict[str, Any]) -> None:
    vectors = {name: np.array(rows) for name, rows in results["devices"].items()}
    norms = np.linalg.norm(vectors["cpu"], axis=1)
    for precision in ("fp32", "tf32"):
        errors = np.linalg.norm(vectors[precision] - vectors["cpu"], axis=1) / norms
        assert errors.max() <= 1e-5, precision
    for precision in ("bf16", "fp16"):
        cosines = (vectors[precision] * vectors["cpu"]).sum(1) / np.linalg.norm(vectors[precision], axis=1) / norms
        assert 0.999 <= cosines.min() < 1, precision


def test_the_error_of_a_missing_backbone_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    (message,) = run(tmp_path, ("poolings", "random"))
    for part in ("esp_aves2_eat_all needs its backbone", "HF_HOME"):
        assert part in message
    assert "\n" not in message


def test_an_eat_checkpoint_that_lacks_tensors_is_refused(results: dict[str, Any]) -> None:
    assert set(np.array(results["whole"]["cls"]).ravel()) == {3.0}
    assert "1 of 3 tensors matched" in results["few"]


def test_features_equal_those_of_avex(results: dict[str, Any]) -> None:
    report = results["parity"]
    assert report["class"] == "OptimizedEat"
    assert report["OptimizedEat torch.float32"] <= 1e-6
    for dtype in ("torch.bfloat16", "torch.float16"):
        # On a CPU, autocast makes avex compute the spectra in half precision, too.
        assert 1e-5 < report[f"OptimizedEat {dtype}"] <= report[f"UnoptimizedModel {dtype}"]


# One frame, 0.5 s, 5 s, 10.24 s (1,022 frames), exactly 1,024 frames, one more, and 20 s.
LENGTHS = [400, 8_000, 80_000, 163_840, 164_080, 164_240, 320_000]


def sounds(length: int) -> dict[str, torch.Tensor]:
    """Return windows ``[length]`` with difficult spectra, by name."""
    noise = torch.randn(length, generator=torch.Generator().manual_seed(length))
    time_s = torch.arange(length) / 16_000
    click = torch.zeros(length)
    click[length // 2] = 1.0
    return {
        "noise": 0.1 * noise,
        "silence": torch.zeros(length),
        "only an offset": torch.full((length,), 0.25),
        "an offset": 0.5 + 1e-3 * noise,
        "very quiet": 1e-6 * noise,
        "below the floor": 1e-10 * noise,
        "very loud": 100 * noise,
        "a tone": 0.9 * torch.sin(2 * torch.pi * 1_000 * time_s),
        "a clipped tone": torch.sign(torch.sin(2 * torch.pi * 100 * time_s)),
        "a click": click,
        "a ramp": 0.1 * time_s,
        "silence, then noise": torch.where(time_s < 0.02, 0, 0.1 * noise),
    }


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Use one thread, like an encoder.

    Two threads add up in another order, and the weak parts of a tone's spectrum consist of rounding errors.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def front_ends() -> tuple[OptimizedEat, Any]:
    """Return the optimised front end, in a model without a backbone, and avex's processor."""
    from avex.models.eat.audio_processor import EATAudioProcessor

    processor = EATAudioProcessor()
    return OptimizedEat(SimpleNamespace(audio_processor=processor, backbone=nn.Identity()), torch.float32), processor


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("length", LENGTHS)
def test_spectra_of_a_mixed_batch_equal_those_of_avex(length: int) -> None:
    optimized, processor = front_ends()
    windows = torch.stack(list(sounds(length).values()))
    spectra, expected = optimized.spectrum(windows), processor(windows)[:, None]
    assert spectra.shape == (len(windows), 1, 1_024, 128)
    for name, spectrum, expected_spectrum in zip(sounds(length), spectra, expected, strict=True):
        torch.testing.assert_close(spectrum, expected_spectrum, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("name", sounds(400))
def test_a_spectrum_does_not_depend_on_the_other_windows_of_the_batch(name: str) -> None:
    optimized, _ = front_ends()
    window = sounds(80_000)[name]
    batch = torch.stack([window, *sounds(80_000).values()])
    torch.testing.assert_close(optimized.spectrum(window[None])[0], optimized.spectrum(batch)[0], rtol=1e-6, atol=1e-6)


def test_the_window_function_and_the_mel_bank_move_with_the_model() -> None:
    optimized, _ = front_ends()
    assert dict(optimized.named_buffers()).keys() == {"window", "mel"}
    assert {tensor.device.type for tensor in optimized.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize("settings", [{"window_type": "povey"}, {"norm_mean": 0.0, "norm_std": 1.0}])
def test_an_eat_with_an_unknown_front_end_is_not_optimized(settings: dict[str, Any]) -> None:
    _, processor = front_ends()
    assert optimized_class(SimpleNamespace(audio_processor=processor), "eat_hf") is OptimizedEat
    assert optimized_class(SimpleNamespace(audio_processor=type(processor)(**settings)), "eat_hf") is UnoptimizedModel
