"""Vectors of reduced precision from GPUs and from CPUs do not come to lie in one output."""

from pathlib import Path

import numpy as np
import pytest

from embedding.config import make_config
from embedding.errors import RequestError
from embedding.job import Target, describe_run, described
from embedding.output.store import Store
from embedding.search.query import encode_clip
from tests.support.audio import tone, write_audio
from tests.support.models import EFFICIENTNET
from tests.support.shards import shard

CONFIG = make_config({"input": "a", "output": "/out", "model": EFFICIENTNET, "checkpoint": "random"})


def target_of(output: Path, precision: str, device: str = "auto") -> Target:
    request = {"input": "a", "output": str(output), "model": EFFICIENTNET, "checkpoint": "random"}
    return Target.of(make_config(request | {"precision": precision, "device": device}))


def with_vectors(output: Path, precision: str, device: str) -> None:
    """A run of encoders on ``device`` leaves vectors."""
    held = target_of(output, precision).on_device(device)
    held.store.write_shard(shard((1, 0, 1)), "0123456789ab-0-000000")
    held.write_description(CONFIG)


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_bf16_of_one_device_is_refused_beside_that_of_the_other(first: str, second: str, tmp_path: Path) -> None:
    with_vectors(tmp_path, "bf16", first)
    again = target_of(tmp_path, "bf16")
    again.store.refuse_other_settings(again.settings.guarded())
    assert again.on_device(first) is again
    with pytest.raises(
        RequestError, match=f"--device: .* holds bf16 vectors from {first}.*on {second}.*--device {first}"
    ):
        again.on_device(second)


def test_fp32_vectors_of_both_devices_may_mix(tmp_path: Path) -> None:
    with_vectors(tmp_path, "fp32", "cuda")
    again = target_of(tmp_path, "fp32")
    assert again.on_device("cpu") is again.on_device("cuda") is again


def test_an_output_of_before_devices_were_stored_is_one_of_cpus(tmp_path: Path) -> None:
    """Earlier versions could not run on GPUs."""
    made = target_of(tmp_path, "bf16")
    description = describe_run(CONFIG, made.settings)
    settings = {name: value for name, value in description["settings"].items() if name != "device"}
    made.store.write_shard(shard((1, 0, 1)), "0123456789ab-0-000000")
    made.store.write_json("run.json", description | {"settings": settings})
    again = target_of(tmp_path, "bf16")
    again.store.refuse_other_settings(again.settings.guarded())
    assert again.on_device("cpu") is again
    with pytest.raises(RequestError, match="holds bf16 vectors from cpu"):
        again.on_device("cuda")


def test_the_device_is_stored_with_vectors_that_it_decides(tmp_path: Path) -> None:
    assert described(target_of(tmp_path, "bf16").on_device("cuda").settings)["device"] == "cuda"
    assert described(target_of(tmp_path, "bf16").on_device("cpu").settings)["device"] is None
    assert described(target_of(tmp_path, "fp32").on_device("cuda").settings)["device"] is None
    assert '"device": "cuda"' in target_of(tmp_path, "fp16").on_device("cuda").store.settings


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_a_precision_of_gpus_alone_is_refused_on_cpus(precision: str, tmp_path: Path) -> None:
    line = f"--precision: only GPUs compute in {precision}; on CPUs use fp32 or bf16"
    with pytest.raises(RequestError, match=line):
        target_of(tmp_path, precision, device="cpu")
    with pytest.raises(RequestError, match=line):
        target_of(tmp_path, precision).on_device("cpu")


def test_a_clip_is_encoded_in_fp32_for_vectors_of_a_precision_that_cpus_lack(tmp_path: Path) -> None:
    clip = write_audio(tmp_path / "clip.wav", tone(1.0, 16_000), 16_000)
    vectors = {}
    for precision in ("fp32", "fp16"):
        output = tmp_path / precision
        with_vectors(output, precision, "cuda")
        vectors[precision] = encode_clip(str(clip), Store(str(output), ""), "embedding", 1)
    assert vectors["fp16"].shape == (1, 1280)
    assert np.array_equal(vectors["fp16"], vectors["fp32"])
