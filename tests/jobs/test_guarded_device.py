"""An output of reduced precision holds vectors from GPUs or from CPUs, not from both."""

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


def write_vectors(output: Path, precision: str, device: str) -> None:
    """Write the output of a run with encoders on ``device``."""
    target = target_of(output, precision).on_device(device)
    target.store.write_shard(shard((1, 0, 1)), "0123456789ab-0-000000")
    target.write_description(CONFIG)


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_bf16_vectors_of_two_devices_do_not_mix(first: str, second: str, tmp_path: Path) -> None:
    write_vectors(tmp_path, "bf16", first)
    target = target_of(tmp_path, "bf16")
    target.store.refuse_other_settings(target.settings.guarded())
    assert target.on_device(first) is target
    with pytest.raises(
        RequestError, match=f"--device: .* holds bf16 vectors from {first}.*on {second}.*--device {first}"
    ):
        target.on_device(second)


def test_fp32_vectors_of_two_devices_may_mix(tmp_path: Path) -> None:
    write_vectors(tmp_path, "fp32", "cuda")
    target = target_of(tmp_path, "fp32")
    assert target.on_device("cpu") is target.on_device("cuda") is target


def test_an_output_without_a_stored_device_is_from_cpus(tmp_path: Path) -> None:
    """Earlier versions stored no device, and could not run on GPUs."""
    target = target_of(tmp_path, "bf16")
    description = describe_run(CONFIG, target.settings)
    settings = {name: value for name, value in description["settings"].items() if name != "device"}
    target.store.write_shard(shard((1, 0, 1)), "0123456789ab-0-000000")
    target.store.write_json("run.json", description | {"settings": settings})
    target = target_of(tmp_path, "bf16")
    target.store.refuse_other_settings(target.settings.guarded())
    assert target.on_device("cpu") is target
    with pytest.raises(RequestError, match="holds bf16 vectors from cpu"):
        target.on_device("cuda")


def test_the_device_is_stored_where_it_changes_the_vectors(tmp_path: Path) -> None:
    assert described(target_of(tmp_path, "bf16").on_device("cuda").settings)["device"] == "cuda"
    assert described(target_of(tmp_path, "bf16").on_device("cpu").settings)["device"] is None
    assert described(target_of(tmp_path, "fp32").on_device("cuda").settings)["device"] is None
    assert '"device": "cuda"' in target_of(tmp_path, "fp16").on_device("cuda").store.settings


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_a_precision_that_only_gpus_have_is_refused_on_cpus(precision: str, tmp_path: Path) -> None:
    message = f"--precision: only GPUs compute in {precision}; on CPUs use fp32 or bf16"
    with pytest.raises(RequestError, match=message):
        target_of(tmp_path, precision, device="cpu")
    with pytest.raises(RequestError, match=message):
        target_of(tmp_path, precision).on_device("cpu")


def test_a_clip_is_encoded_in_fp32_where_cpus_lack_the_precision(tmp_path: Path) -> None:
    clip = write_audio(tmp_path / "clip.wav", tone(1.0, 16_000), 16_000)
    vectors = {}
    for precision in ("fp32", "fp16"):
        output = tmp_path / precision
        write_vectors(output, precision, "cuda")
        vectors[precision] = encode_clip(str(clip), Store(str(output), ""), "embedding", 1)
    assert vectors["fp16"].shape == (1, 1280)
    assert np.array_equal(vectors["fp16"], vectors["fp32"])
