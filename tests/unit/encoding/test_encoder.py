"""Windows to vectors: parity with avex used plainly, whatever the batch; pooling, masking, precision."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from embedding.config import make_config
from embedding.encoding.devices import Cpu
from embedding.encoding.encoder import Encoder
from embedding.encoding.settings import Settings
from embedding.encoding.staging_buffers import Slot
from embedding.encoding.token_pooling import pool
from embedding.schema.batches import windows_schema
from embedding.schema.windows import WindowSpec
from tests.support import reference
from tests.support.audio import tone
from tests.support.models import BEATS, EFFICIENTNET

MODELS = [BEATS, EFFICIENTNET]
WINDOW_S = 1.0


def make_encoder(checkpoint: Path, model: str, **options: object) -> Encoder:
    request = {"input": "a", "output": "b", "model": model, "checkpoint": str(checkpoint), "window_s": WINDOW_S}
    config = make_config(request | options)
    return Encoder(Settings.of(config), Cpu(), 2)


def some_windows(n: int) -> np.ndarray:
    return np.stack([tone(WINDOW_S, 16_000, 200.0 * (i + 1), seed=i) for i in range(n)])


def windows_table(windows: np.ndarray) -> pa.Table:
    """As decoding gives them: each a recording of its own."""
    n, length = windows.shape
    rows = {
        "file": [f"/a/{i}.wav" for i in range(n)],
        "file_id": range(n),
        "window_index": [0] * n,
        "n_windows": [1] * n,
    }
    rows |= {"start_time": [0.0] * n, "end_time": [length / 16_000] * n, "duration": [length / 16_000] * n}
    rows |= {
        "sample_rate": [16_000] * n,
        "channels": [1] * n,
        "targets": [1] * n,
        "audio_hash_16000": [None] * n,
        "window_16000": list(windows),
    }
    spec = WindowSpec(16_000, length, length, "pad")
    return pa.table({name: rows[name] for name in windows_schema([spec]).names}, windows_schema([spec]))


def full(windows: np.ndarray) -> np.ndarray:
    return np.full(len(windows), windows.shape[1])


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_vectors_are_those_of_the_reference_loop(
    model: str, pooling: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    windows = some_windows(5)
    expected = np.stack(
        [
            reference.embed(network, window, pooling)
            for network in [reference.load(model, checkpoints[model], tmp_path)]
            for window in windows
        ]
    )
    vectors = make_encoder(checkpoints[model], model, pooling=pooling).encode(windows, full(windows))["embedding"]
    assert vectors.dtype == np.float32
    assert relative_error(vectors, expected) <= 1e-5
    assert relative_error(vectors[1:], vectors[:-1]) > 1e-3  # or those of any sound would do


@pytest.mark.parametrize("model", MODELS)
def test_bf16_points_the_same_way_as_fp32(model: str, checkpoints: dict[str, Path]) -> None:
    windows = some_windows(5)
    exact = make_encoder(checkpoints[model], model).encode(windows, full(windows))["embedding"]
    coarse = make_encoder(checkpoints[model], model, precision="bf16").encode(windows, full(windows))["embedding"]
    assert cosine(coarse, exact) >= 0.999
    assert relative_error(coarse, exact) > 1e-6  # it was bf16


@pytest.mark.parametrize("model", MODELS)
def test_vectors_do_not_depend_on_the_batch(model: str, checkpoints: dict[str, Path]) -> None:
    windows = some_windows(35)  # two full micro-batches and a rest
    encoder = make_encoder(checkpoints[model], model)
    together = encoder.encode(windows, full(windows))["embedding"]
    alone = np.concatenate(
        [encoder.encode(windows[i : i + 1], full(windows[i : i + 1]))["embedding"] for i in range(0, 35, 7)]
    )
    assert relative_error(together[::7], alone) <= 1e-5


def test_masked_padding_does_not_count(checkpoints: dict[str, Path]) -> None:
    """Masked, the vector of a padded window stays close to that of its audio alone; unmasked it does not."""
    windows = some_windows(3)
    n_audio = np.array([16_000, 9_600, 6_400])
    padded = np.where(np.arange(16_000) < n_audio[:, None], windows, 0).astype(np.float32)
    masking = make_encoder(checkpoints[BEATS], BEATS, mask_padding=True)
    plain = make_encoder(checkpoints[BEATS], BEATS)
    alone = np.stack(
        [plain.encode(padded[i : i + 1, : n_audio[i]], n_audio[i : i + 1])["embedding"][0] for i in range(len(windows))]
    )
    masked, unmasked = masking.encode(padded, n_audio)["embedding"], plain.encode(padded, n_audio)["embedding"]
    assert relative_error(masked[:1], alone[:1]) <= 1e-5  # nothing to mask
    for i in (1, 2):
        assert relative_error(masked[i], alone[i]) < 0.5 * relative_error(unmasked[i], alone[i])


def test_masking_changes_nothing_where_there_is_no_padding(checkpoints: dict[str, Path]) -> None:
    windows = some_windows(4)
    with_mask = make_encoder(checkpoints[BEATS], BEATS, mask_padding=True).encode(windows, full(windows))["embedding"]
    without = make_encoder(checkpoints[BEATS], BEATS).encode(windows, full(windows))["embedding"]
    assert np.array_equal(with_mask, without)


def test_memory_that_runs_out_halves_the_micro_batch_and_loses_nothing(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = some_windows(9)
    encoder = make_encoder(checkpoints[EFFICIENTNET], EFFICIENTNET)
    expected = encoder.encode(windows, full(windows))["embedding"]
    forward, sizes = encoder._forward, []

    def limited(slot: Slot, size: int, *, masked: bool) -> dict[str, torch.Tensor]:
        sizes.append(size)
        if size > 2:
            raise torch.OutOfMemoryError
        return forward(slot, size, masked=masked)

    monkeypatch.setattr(encoder, "_forward", limited)
    assert relative_error(encoder.encode(windows, full(windows))["embedding"], expected) <= 1e-5
    assert sizes == [4, 2, 2, 2, 2, 1]


def test_memory_too_small_for_one_window_is_an_error(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder(checkpoints[EFFICIENTNET], EFFICIENTNET)

    def never(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(encoder, "_forward", never)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(some_windows(2), np.array([16_000, 16_000]))


def test_pooling_of_tokens_and_maps() -> None:
    tokens = torch.tensor([[[9.0, 0.0], [3.0, 2.0], [3.0, 4.0]]])
    assert pool(tokens, "mean").tolist() == [[5.0, 2.0]]
    assert pool(tokens, "max").tolist() == [[9.0, 4.0]]
    assert pool(tokens, "cls").tolist() == [[9.0, 0.0]]
    feature_map = torch.arange(12.0).reshape(1, 2, 3, 2)
    assert pool(feature_map, "mean").tolist() == [[2.5, 8.5]]
    assert pool(feature_map, "max").tolist() == [[5.0, 11.0]]


def test_padded_tokens_are_left_out_of_mean_and_max() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [50.0]]])
    padded = torch.tensor([[False, False, True]])
    assert pool(tokens, "mean", padded).tolist() == [[2.0]]
    assert pool(tokens, "max", padded).tolist() == [[3.0]]
