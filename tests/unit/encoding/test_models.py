"""avex models: their specifications, and the checks of checkpoints."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import avex
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedding.config import EmbedConfig
from embedding.encoding.checkpoints import fetch_checkpoint
from embedding.encoding.model_loading import load
from embedding.encoding.models import ARCHITECTURES, check_fits, find_model, model_names
from embedding.errors import RequestError
from tests.support.models import BEATS, EFFICIENTNET


def test_every_packaged_model_has_the_properties_that_avex_reports() -> None:
    assert len(model_names()) >= 11
    for name in model_names():
        model, spec = find_model(name), avex.get_model_spec(name)
        assert spec is not None
        assert spec.audio_config is not None
        assert model.architecture == spec.name
        assert model.rate_hz == spec.audio_config.sample_rate
        assert model.native_s == spec.audio_config.target_length_seconds
        assert model.checkpoint == avex.get_checkpoint_path(name)


def test_the_sample_rate_depends_on_the_model() -> None:
    assert find_model("esp_aves2_sed_birdcode_beats_encoder").rate_hz == 32_000
    assert find_model(BEATS).rate_hz == 16_000


def test_the_error_of_a_misspelled_model_suggests_the_most_similar_name() -> None:
    with pytest.raises(
        RequestError, match=r"no avex model 'esp_aves2_sl_beat_all'; did you mean 'esp_aves2_sl_beats_all'"
    ):
        find_model("esp_aves2_sl_beat_all")


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET, "esp_aves2_sed_birdcode_beats_encoder"])
def test_dim_and_shortest_window_equal_those_of_the_network(name: str) -> None:
    model = find_model(name)
    network = load(model, fetch_checkpoint(model.name, "random"))
    shortest = torch.zeros(1, model.traits.min_samples)
    with torch.inference_mode():
        features = network(shortest)
        assert features.shape[1 if features.dim() == 4 else 2] == model.traits.dim
        assert features.flatten(2).shape[1 if features.dim() == 3 else 2] >= 1
        with pytest.raises(RuntimeError, match=r"Kernel size can't be greater|Padding size should be less"):
            network(shortest[:, 1:])
    assert not network.training


def test_options_that_a_model_does_not_support_are_refused() -> None:
    beats, efficientnet = find_model(BEATS), find_model(EFFICIENTNET)
    with pytest.raises(RequestError, match=r"--pooling: .* has no CLS token"):
        check_fits(beats, EmbedConfig(input=("a",), output="b", pooling="cls"), 80_000)
    with pytest.raises(RequestError, match=r"--mask-padding: .* takes no padding mask"):
        check_fits(efficientnet, EmbedConfig(input=("a",), output="b", mask_padding=True), 80_000)
    with pytest.raises(RequestError, match=r"--window-s: .* at least 0\.175 s \(2800 samples at 16000 Hz\)"):
        check_fits(beats, EmbedConfig(input=("a",), output="b"), 2799)


def test_random_weights_are_the_same_every_time() -> None:
    model = find_model(EFFICIENTNET)
    first, second = (load(model, fetch_checkpoint(model.name, "random")).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_equal_those_of_the_checkpoint(checkpoints: dict[str, Path]) -> None:
    for name, path in checkpoints.items():
        loaded, stored = (
            load(find_model(name), fetch_checkpoint(name, str(path))).state_dict(),
            load_file(path),
        )
        unused_tensors = find_model(name).traits.unused_tensors
        for key, tensor in loaded.items():
            if not key.startswith(unused_tensors):
                assert torch.equal(tensor, stored[key]), key


def test_a_torch_checkpoint_loads_like_a_safetensors_file(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model, tensors = find_model(EFFICIENTNET), load_file(checkpoints[EFFICIENTNET])
    torch.save({"model_state_dict": tensors, "epoch": 3}, tmp_path / "w.pt")
    loaded = load(model, fetch_checkpoint(model.name, str(tmp_path / "w.pt"))).state_dict()
    key = "model.features.0.0.weight"
    assert torch.equal(loaded[key], tensors[key])


def test_no_imagenet_weights_are_downloaded(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a download was attempted")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    model = find_model(EFFICIENTNET)
    load(model, fetch_checkpoint(model.name, str(checkpoints[EFFICIENTNET])))
    load(model, fetch_checkpoint(model.name, "random"))


def test_the_error_of_a_checkpoint_of_another_model_states_how_many_tensors_matched(
    checkpoints: dict[str, Path],
) -> None:
    beats = find_model(BEATS)
    with pytest.raises(RequestError, match=r"does not fit esp_aves2_sl_beats_all: 0 of \d+ tensors matched"):
        load(beats, fetch_checkpoint(beats.name, str(checkpoints[EFFICIENTNET])))


def test_a_checkpoint_that_lacks_one_layer_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    beats, tensors = find_model(BEATS), load_file(checkpoints[BEATS])
    del tensors["backbone.encoder.layers.7.fc1.weight"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(
        RequestError, match=r"(\d+) of \d+ tensors matched \(missing, for one: .*layers\.7\.fc1\.weight\)"
    ):
        load(beats, fetch_checkpoint(beats.name, str(tmp_path / "w.safetensors")))


def test_a_checkpoint_of_other_shapes_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model, tensors = find_model(EFFICIENTNET), load_file(checkpoints[EFFICIENTNET])
    tensors["model.features.0.0.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(RequestError, match="1 tensors have another shape"):
        load(model, fetch_checkpoint(model.name, str(tmp_path / "w.safetensors")))


class _Payload:
    """Object that creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    torch.save({"model": _Payload(marker)}, tmp_path / "w.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_Payload(marker), protocol=2))  # the protocol of torch.save
    model = find_model(EFFICIENTNET)
    for name in ("w.pt", "raw.pt"):
        with pytest.raises(RequestError, match="code in a checkpoint is never run"):
            load(model, fetch_checkpoint(model.name, str(tmp_path / name)))
    assert not marker.exists()


def test_a_damaged_safetensors_file_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(checkpoints[EFFICIENTNET].read_bytes()[:1000])
    model = find_model(EFFICIENTNET)
    with pytest.raises(RequestError, match="is damaged"):
        load(model, fetch_checkpoint(model.name, str(path)))


def test_architectures_cover_every_packaged_model() -> None:
    assert {find_model(name).architecture for name in model_names()} <= ARCHITECTURES.keys()
    assert np.isfinite([model.native_s for model in map(find_model, model_names())]).all()


def _replace_one_weight(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[0] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_replace_one_weight(np.nan), r"NaN or infinite in float32 \(model\.features\.0\.0\.weight\)"),
        (_replace_one_weight(-np.inf), "NaN or infinite in float32"),
        (lambda tensor: tensor.double() + 1e300, "NaN or infinite in float32"),
        (lambda tensor: (tensor * 100).to(torch.int8), r"stores model\.features\.0\.0\.weight as I8"),
        (lambda tensor: tensor > 0, "as BOOL"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "as F8_E4M3"),
        (lambda tensor: tensor[:0], "1 tensors have another shape"),
    ],
    ids=["nan", "inf", "too large for float32", "int8", "bool", "float8", "size zero"],
)
def test_invalid_weights_are_refused_by_name(
    change: Callable[[torch.Tensor], torch.Tensor], reason: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model, tensors = find_model(EFFICIENTNET), load_file(checkpoints[EFFICIENTNET])
    name = "model.features.0.0.weight"
    save_file(tensors | {name: change(tensors[name])}, tmp_path / "w.safetensors")
    with pytest.raises(RequestError, match=rf"^--checkpoint: {tmp_path}/w.safetensors .*{reason}"):
        load(model, fetch_checkpoint(model.name, str(tmp_path / "w.safetensors")))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_float_types_are_accepted(
    kind: torch.dtype, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model, tensors = find_model(EFFICIENTNET), load_file(checkpoints[EFFICIENTNET])
    name = "model.features.0.0.weight"
    save_file(tensors | {name: tensors[name].to(kind)}, tmp_path / "w.safetensors")
    loaded = load(model, fetch_checkpoint(model.name, str(tmp_path / "w.safetensors"))).state_dict()
    assert torch.equal(loaded[name], tensors[name].to(kind).float())


HEADERS = {
    "2 GB": (2 << 30).to_bytes(8, "little") + b"{}",
    "2^63": b"\xff" * 8 + b"{}",
    "empty": b"",
    "truncated": b"abc",
    "no JSON": (4).to_bytes(8, "little") + b"abcd",
    "nested": (100_000).to_bytes(8, "little") + b"[" * 100_000,
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_an_impossible_safetensors_header_is_refused_as_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    model = find_model(EFFICIENTNET)
    with pytest.raises(RequestError, match=rf"--checkpoint: {tmp_path}/w.safetensors is damaged"):
        load(model, fetch_checkpoint(model.name, str(tmp_path / "w.safetensors")))


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 100, b"PK\x05\x06" + b"\0" * 18, b"\x80\x02}q\x01(" * 9])
def test_a_torch_checkpoint_that_is_no_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    model = find_model(EFFICIENTNET)
    with pytest.raises(RequestError, match=rf"--checkpoint: {tmp_path}/w.pt cannot be read as tensors only"):
        load(model, fetch_checkpoint(model.name, str(tmp_path / "w.pt")))


def test_a_torch_checkpoint_that_unpacks_to_far_more_than_its_size_is_not_read(tmp_path: Path) -> None:
    plain, compressed, views = (tmp_path / name for name in ("plain.pt", "compressed.pt", "views.pt"))
    torch.save({"x": torch.zeros(10_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    torch.save({"x": torch.zeros(1).expand(1 << 50)}, views)
    model = find_model(EFFICIENTNET)
    for path in (compressed, views):
        with pytest.raises(RequestError, match=rf"--checkpoint: {path} unpacks [\d,]+ bytes to [\d,]+, more than"):
            load(model, fetch_checkpoint(model.name, str(path)))
