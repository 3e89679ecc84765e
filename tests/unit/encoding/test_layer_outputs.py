"""Inner layers: what avex's own hooks catch, pooled like the embedding, a column each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedding.config import make_config
from embedding.encoding.devices import Cpu
from embedding.encoding.encoder import Encoder
from embedding.encoding.models import find_model, layer_numbers
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from tests.support import reference
from tests.support.audio import tone
from tests.support.models import BEATS, EFFICIENTNET

MODELS = [BEATS, EFFICIENTNET]


def encoder(checkpoint: Path, model: str, layers: str, **options: object) -> Encoder:
    request = {"input": "a", "output": "b", "model": model, "checkpoint": str(checkpoint), "window_s": 1.0}
    return Encoder(Settings.of(make_config(request | {"layers": layers} | options)), Cpu(), 2)


def encode(encoder: Encoder, windows: np.ndarray) -> dict[str, np.ndarray]:
    return encoder.encode(windows, np.full(len(windows), windows.shape[1]))


def some_windows(n: int, length_s: float = 1.0) -> np.ndarray:
    return np.stack([tone(length_s, 16_000, 200.0 * (i + 1), seed=i) for i in range(n)])


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def extracted(model: str, checkpoint: Path, windows: np.ndarray, folder: Path, aggregation: str) -> list[Any]:
    """avex's ``extract_embeddings`` of all layers, one window at a time: per window a list, or one tensor."""
    module: Any = reference.load(model, checkpoint, folder)
    module.register_hooks_for_layers(["all"])
    return [module.extract_embeddings(torch.from_numpy(row)[None], aggregation=aggregation) for row in windows]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_layers_are_those_of_avex(model: str, pooling: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    windows = some_windows(3)
    columns = encode(encoder(checkpoints[model], model, "all", pooling=pooling), windows)
    names = [name for name in columns if name != "embedding"]
    module: Any = reference.load(model, checkpoints[model], tmp_path)
    assert names == module.get_model_layers()
    for at, of_window in enumerate(extracted(model, checkpoints[model], windows, tmp_path, "none")):
        for name, unpooled in zip(names, of_window, strict=True):
            dims = (2, 3) if unpooled.dim() == 4 else (1,)
            expected = unpooled.mean(dims) if pooling == "mean" else unpooled.amax(dims)
            assert relative_error(columns[name][at : at + 1], expected.numpy()) <= 1e-5, name


def test_the_mean_of_a_map_is_that_of_avex_without_its_frequencies(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """avex's own mean of a map is over time only, and keeps a number for each channel and frequency."""
    windows = some_windows(1)
    columns = encode(encoder(checkpoints[EFFICIENTNET], EFFICIENTNET, "-1"), windows)
    module: Any = reference.load(EFFICIENTNET, checkpoints[EFFICIENTNET], tmp_path)
    module.register_hooks_for_layers([-1])
    over_time = module.extract_embeddings(torch.from_numpy(windows), aggregation="mean").numpy()
    assert relative_error(columns["model.features.8.0"], over_time.reshape(1, 1280, -1).mean(-1)) <= 1e-5


@pytest.mark.parametrize("model", MODELS)
def test_the_embedding_is_the_same_with_layers(model: str, checkpoints: dict[str, Path]) -> None:
    windows = some_windows(5)
    plain = encode(encoder(checkpoints[model], model, "last"), windows)
    assert list(plain) == ["embedding"]
    layered = encode(encoder(checkpoints[model], model, "0,-2"), windows)
    assert len(layered) == 3
    assert relative_error(layered["embedding"], plain["embedding"]) <= 1e-5


def test_as_many_windows_as_tokens_are_not_taken_for_tokens(checkpoints: dict[str, Path]) -> None:
    """BEATs' layers have tokens before windows; avex finds that out by their number, and not with as many of both."""
    layered = encoder(checkpoints[BEATS], BEATS, "3")
    windows = some_windows(8, 0.2)[:, :2_960]
    n_tokens = layered._features(torch.from_numpy(windows[:1]))[0].shape[1]  # type: ignore[operator, union-attr]
    assert n_tokens == len(windows)
    layered._micro_batch.size = n_tokens
    alone = np.concatenate([encode(layered, windows[i : i + 1])["backbone.encoder.layers.2.fc2"] for i in range(8)])
    assert relative_error(encode(layered, windows)["backbone.encoder.layers.2.fc2"], alone) <= 1e-5


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET, "esp_aves2_sed_birdcode_beats_encoder"])
def test_sizes_of_layers_are_those_of_the_network(name: str) -> None:
    request = {"input": "a", "output": "b", "model": name, "checkpoint": "random", "window_s": 0.5, "layers": "all"}
    settings = Settings.of(make_config(request))
    columns = encode(Encoder(settings, Cpu(), 2), np.zeros((1, settings.windows.length), np.float32))
    assert tuple(rows.shape[1] for rows in list(columns.values())[1:]) == settings.model.traits.layer_dims
    assert settings.row_bytes > 4 * sum(rows.size for rows in columns.values())


def test_layers_are_counted_from_either_end() -> None:
    model = find_model(BEATS)
    assert layer_numbers(model, "last") == ()
    assert layer_numbers(model, "all") == tuple(range(13))
    assert layer_numbers(model, (-1, 0, 12, 5)) == (0, 5, 12)
    with pytest.raises(RequestError, match=r"--layers: esp_aves2_sl_beats_all has no layer 13; they are 0 to 12"):
        layer_numbers(model, (13,))
