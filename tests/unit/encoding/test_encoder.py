"""Encoders on a CPU: their vectors equal those of plain avex, whatever the batch; pooling, masking and precision."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from embedding.encoding.staging_buffers import StagingBuffer
from embedding.encoding.token_pooling import pool
from tests.support import reference
from tests.support.encoding import encode, make_cpu_encoder, make_encoder, relative_error, smallest_cosine, tone_windows
from tests.support.models import BEATS, EFFICIENTNET

MODELS = [BEATS, EFFICIENTNET]
CAPABILITIES = "OPTIMIZATION_CAPABILITIES"
either_encoder = pytest.mark.parametrize("make", [make_cpu_encoder, make_encoder], ids=["graph", "torch"])


@either_encoder
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_vectors_equal_those_of_the_reference_loop(
    make: Any, model: str, pooling: str, shallow_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    windows = tone_windows(5)
    network = reference.load(model, shallow_checkpoints[model], tmp_path)
    expected = np.stack([reference.embed(network, window, pooling) for window in windows])
    vectors = encode(make(shallow_checkpoints[model], model, pooling=pooling), windows)["embedding"]
    assert vectors.dtype == np.float32
    assert relative_error(vectors, expected) <= 1e-5
    assert relative_error(vectors[1:], vectors[:-1]) > 1e-3  # else the vectors of any sound would pass


@either_encoder
@pytest.mark.parametrize("model", MODELS)
def test_bf16_vectors_point_in_the_direction_of_fp32_vectors(
    make: Any, model: str, shallow_checkpoints: dict[str, Path]
) -> None:
    windows = tone_windows(5)
    exact = encode(make(shallow_checkpoints[model], model), windows)["embedding"]
    coarse = encode(make(shallow_checkpoints[model], model, precision="bf16"), windows)["embedding"]
    assert smallest_cosine(coarse, exact) >= 0.999
    # Equal vectors would be fp32, in which a CPU without products of bfloat16 computes.
    assert (relative_error(coarse, exact) > 1e-6) == ("BF16" in openvino.Core().get_property("CPU", CAPABILITIES))


@either_encoder
@pytest.mark.parametrize("model", MODELS)
def test_vectors_do_not_depend_on_the_batch(make: Any, model: str, shallow_checkpoints: dict[str, Path]) -> None:
    windows = tone_windows(35)  # several full micro-batches and a rest
    encoder = make(shallow_checkpoints[model], model)
    together = encode(encoder, windows)["embedding"]
    alone = np.concatenate([encode(encoder, windows[i : i + 1])["embedding"] for i in range(0, 35, 7)])
    assert relative_error(together[::7], alone) <= 1e-5


def test_masked_padding_hardly_changes_the_vector(shallow_checkpoints: dict[str, Path]) -> None:
    """With the mask, the vector of a padded window is close to that of its audio alone; without the mask it is not."""
    windows = tone_windows(3)
    n_audio = np.array([16_000, 9_600, 6_400])
    padded = np.where(np.arange(16_000) < n_audio[:, None], windows, 0).astype(np.float32)
    masking = make_encoder(shallow_checkpoints[BEATS], BEATS, mask_padding=True)
    plain = make_encoder(shallow_checkpoints[BEATS], BEATS)
    alone = np.stack(
        [plain.encode(padded[i : i + 1, : n_audio[i]], n_audio[i : i + 1])["embedding"][0] for i in range(len(windows))]
    )
    masked, unmasked = masking.encode(padded, n_audio)["embedding"], plain.encode(padded, n_audio)["embedding"]
    assert relative_error(masked[:1], alone[:1]) <= 1e-5  # no padding
    for i in (1, 2):
        assert relative_error(masked[i], alone[i]) < 0.5 * relative_error(unmasked[i], alone[i])


def test_masking_does_not_change_windows_without_padding(shallow_checkpoints: dict[str, Path]) -> None:
    windows = tone_windows(4)
    with_mask = encode(make_encoder(shallow_checkpoints[BEATS], BEATS, mask_padding=True), windows)["embedding"]
    without = encode(make_encoder(shallow_checkpoints[BEATS], BEATS), windows)["embedding"]
    assert np.array_equal(with_mask, without)


def test_the_micro_batch_is_halved_without_loss_when_memory_runs_out(
    shallow_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = tone_windows(9)
    encoder = make_encoder(shallow_checkpoints[EFFICIENTNET], EFFICIENTNET)
    expected = encode(encoder, windows)["embedding"]
    forward, sizes = encoder._forward, []

    def forward_in_little_memory(buffer: StagingBuffer, size: int, *, masked: bool) -> dict[str, torch.Tensor]:
        sizes.append(size)
        if size > 2:
            raise torch.OutOfMemoryError
        return forward(buffer, size, masked=masked)

    monkeypatch.setattr(encoder, "_forward", forward_in_little_memory)
    assert relative_error(encode(encoder, windows)["embedding"], expected) <= 1e-5
    assert sizes == [4, 2, 2, 2, 2, 1]


def test_memory_too_small_for_one_window_raises(
    shallow_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder(shallow_checkpoints[EFFICIENTNET], EFFICIENTNET)

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(encoder, "_forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(tone_windows(2), np.array([16_000, 16_000]))


def test_pooling_of_tokens_and_maps() -> None:
    tokens = torch.tensor([[[9.0, 0.0], [3.0, 2.0], [3.0, 4.0]]])
    assert pool(tokens, "mean").tolist() == [[5.0, 2.0]]
    assert pool(tokens, "max").tolist() == [[9.0, 4.0]]
    assert pool(tokens, "cls").tolist() == [[9.0, 0.0]]
    feature_map = torch.arange(12.0).reshape(1, 2, 3, 2)
    assert pool(feature_map, "mean").tolist() == [[2.5, 8.5]]
    assert pool(feature_map, "max").tolist() == [[5.0, 11.0]]


def test_mean_and_max_leave_out_padded_tokens() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [50.0]]])
    padded = torch.tensor([[False, False, True]])
    assert pool(tokens, "mean", padded).tolist() == [[2.0]]
    assert pool(tokens, "max", padded).tolist() == [[3.0]]
