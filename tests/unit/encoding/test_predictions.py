"""Predictions of a checkpoint's classifier, with the names of its label map."""

import json
from pathlib import Path
from typing import Any

import avex
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedding.config import EmbedConfig, make_config
from embedding.encoding.encode_batch import encode_batch
from embedding.encoding.models import check_fits, find_model
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from tests.support.encoding import make_cpu_encoder, make_encoder, tone_windows, windows_table
from tests.support.models import BEATS, EFFICIENTNET

pytestmark = pytest.mark.usefixtures("few_layers")

MODELS = {BEATS: ("classifier", 768), EFFICIENTNET: ("model.classifier.1", 1280)}
N_LABELS = 7


def write_classifier(folder: Path, features: Path, model: str, n_outputs: int = N_LABELS) -> Path:
    """Write a checkpoint with a classifier, and its label map; labels are not in the order of their numbers.

    Args:
        folder: The folder of both files.
        features: A checkpoint without a classifier.
        model: Name of the model.
        n_outputs: Number of outputs of the classifier.
    """
    name, dim = MODELS[model]
    random = torch.Generator().manual_seed(5)
    tensors = load_file(features) | {
        f"{name}.weight": torch.randn(n_outputs, dim, generator=random),
        f"{name}.bias": torch.randn(n_outputs, generator=random),
    }
    path = folder / "supervised.safetensors"
    save_file(tensors, path)
    labels = {f"Species {chr(97 + i)}": (3 * i + 1) % N_LABELS for i in range(N_LABELS)}
    (folder / "label_map.json").write_text(json.dumps(labels))
    return path


def make_request(checkpoint: object, model: str, k: int) -> EmbedConfig:
    request = {"input": "a", "output": "b", "model": model, "checkpoint": str(checkpoint), "window_s": 1.0}
    return make_config(request | {"predict": k})


def make_settings(checkpoint: object, model: str, k: int) -> Settings:
    return Settings.of(make_request(checkpoint, model, k))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("make", [make_cpu_encoder, make_encoder], ids=["graph", "torch"])
@pytest.mark.parametrize("options", [{}, {"pooling": "max"}, {"layers": "0"}])
def test_predictions_are_those_of_avex(
    model: str, make: Any, options: dict[str, Any], shallow_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    make = make_encoder if options.get("layers") else make  # of inner layers there is no graph
    path = write_classifier(tmp_path, shallow_checkpoints[model], model)
    windows = tone_windows(4)
    encoder = make(path, model, predict=3, **options)
    table, failures = encode_batch([encoder], windows_table(windows))
    assert not failures

    spec = avex.get_model_spec(model)
    assert spec is not None
    supervised: Any = avex.build_model_from_spec(spec, "cpu", num_classes=N_LABELS, pretrained=False)
    supervised.load_state_dict(load_file(path))
    supervised.eval()
    with torch.inference_mode():
        logits = torch.cat([supervised(torch.from_numpy(row)[None]) for row in windows])
    names = {number: label for label, number in json.loads((tmp_path / "label_map.json").read_text()).items()}
    best = logits.topk(3)
    assert table["0.labels"].to_pylist() == [[names[i] for i in row] for row in best.indices.tolist()]
    assert np.abs(np.array(table["0.scores"].to_pylist()) - best.values.sigmoid().numpy()).max() <= 1e-5
    assert np.ptp(best.values.numpy(), axis=0).max() > 1e-3  # otherwise windows in any order would pass


def test_labels_of_random_weights_are_called_random() -> None:
    encoder = make_cpu_encoder("random", EFFICIENTNET, predict=2)
    table, _ = encode_batch([encoder], windows_table(tone_windows(2)))
    assert all(len(row) == 2 and row[0].startswith("random label ") for row in table["0.labels"].to_pylist())


def test_a_model_without_a_classifier_is_refused_before_work_begins(
    tmp_path: Path, shallow_checkpoints: dict[str, Path]
) -> None:
    for name in ("esp_aves2_eat_all", "esp_aves2_naturelm_audio_v1_beats"):
        with pytest.raises(RequestError, match=rf"--predict: {name} has no classifier; leave --predict out"):
            make_settings("random", name, 1)
    with pytest.raises(RequestError, match=r"--predict: esp_aves2_sed_birdcode_beats_encoder has no classifier, and"):
        make_settings(shallow_checkpoints[BEATS], "esp_aves2_sed_birdcode_beats_encoder", 1)
    (tmp_path / "label_map.json").write_text('{"a": 0}')
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(shallow_checkpoints[BEATS]), bare)
    with pytest.raises(RequestError, match=r"--predict: .*bare.safetensors holds no classifier \(classifier.weight\)"):
        make_settings(bare, BEATS, 1)


def test_a_models_own_checkpoint_named_as_an_option_has_no_classifier() -> None:
    model = find_model("esp_aves2_eat_all")
    with pytest.raises(RequestError, match=r"--predict: esp_aves2_eat_all has no classifier; leave --predict out"):
        check_fits(model, make_request(model.checkpoint, model.name, 1), 16_000)


def test_the_label_map_beside_a_checkpoint_of_the_hub_is_used(
    tmp_path: Path, shallow_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is laid out as the hub's client does it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--lab--tuned"
    folder = repository / "snapshots" / ("0" * 40) / "beats"
    for new_folder in (folder, repository / "refs"):
        new_folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    write_classifier(folder, shallow_checkpoints[BEATS], BEATS)
    uri = "hf://lab/tuned/beats/supervised.safetensors"
    assert (
        make_settings(uri, BEATS, 1).label_map == make_settings(folder / "supervised.safetensors", BEATS, 1).label_map
    )
    (folder / "label_map.json").unlink()
    with pytest.raises(RequestError, match=r"the label map of .* \(hf://lab/tuned/beats/label_map.json\) could not be"):
        make_settings(uri, BEATS, 1)


def test_a_label_map_of_another_length_than_the_classifier_is_refused(
    tmp_path: Path, shallow_checkpoints: dict[str, Path]
) -> None:
    path = write_classifier(tmp_path, shallow_checkpoints[BEATS], BEATS, n_outputs=5)
    with pytest.raises(RequestError, match=r"has a classifier of 5 outputs, its label map 7 labels"):
        make_settings(path, BEATS, 1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"weight": (7, 1280)}, r"holds no classifier \(model.classifier.1.bias\)"),
        ({"weight": (7, 100), "bias": (7,)}, r"other shapes \(\[7, 100\] and \[7\]\) than .* needs \(n × 1280 and n\)"),
        ({"weight": (7,), "bias": (7,)}, r"other shapes \(\[7\] and \[7\]\)"),
        ({"weight": (7, 1280), "bias": (5,)}, r"other shapes \(\[7, 1280\] and \[5\]\)"),
    ],
)
def test_a_classifier_of_other_shapes_is_refused(
    shapes: dict[str, tuple[int, ...]], message: str, tmp_path: Path, shallow_checkpoints: dict[str, Path]
) -> None:
    path = write_classifier(tmp_path, shallow_checkpoints[EFFICIENTNET], EFFICIENTNET)
    name, _ = MODELS[EFFICIENTNET]
    save_file({f"{name}.{part}": torch.zeros(shape) for part, shape in shapes.items()}, path)
    with pytest.raises(RequestError, match=message):
        make_settings(path, EFFICIENTNET, 1)


def test_a_damaged_checkpoint_is_refused_before_work_begins(
    tmp_path: Path, shallow_checkpoints: dict[str, Path]
) -> None:
    path = write_classifier(tmp_path, shallow_checkpoints[EFFICIENTNET], EFFICIENTNET)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RequestError, match=r"--checkpoint: .*supervised.safetensors is damaged"):
        make_settings(path, EFFICIENTNET, 1)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"a": 1}',
        '{"a": 0, "b": 0}',
        '{"a": "x"}',
        '{"a": null}',
        '{"a": Infinity}',
        '{"a": 0.5}',
        '{"a": false}',
        '{"\\ud800": 0}',
        "[" * 100_000,
    ],
)
def test_a_damaged_label_map_is_refused(content: str, tmp_path: Path, shallow_checkpoints: dict[str, Path]) -> None:
    path = write_classifier(tmp_path, shallow_checkpoints[BEATS], BEATS)
    (tmp_path / "label_map.json").write_text(content)
    with pytest.raises(RequestError, match=r"--predict: .*label_map.json is no label map"):
        make_settings(path, BEATS, 1)


def test_more_labels_than_the_model_has_are_refused(tmp_path: Path, shallow_checkpoints: dict[str, Path]) -> None:
    path = write_classifier(tmp_path, shallow_checkpoints[EFFICIENTNET], EFFICIENTNET)
    with pytest.raises(RequestError, match=r"--predict: esp_aves2_effnetb0_all has 7 labels, fewer than 8"):
        make_settings(path, EFFICIENTNET, 8)


def test_a_file_too_large_for_a_label_map_is_refused_unread(
    tmp_path: Path, shallow_checkpoints: dict[str, Path]
) -> None:
    path = write_classifier(tmp_path, shallow_checkpoints[BEATS], BEATS)
    with (tmp_path / "label_map.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(
        RequestError, match=rf"--predict: cannot read {tmp_path}/label_map.json: larger than [\d,]+ bytes"
    ):
        make_settings(path, BEATS, 1)
