"""Encoders of a run: graphs where they can be used, torch for the rest and where a cache cannot be written."""

from pathlib import Path

import pytest

from embedding.encoding import encoder_loading
from embedding.encoding.cpu_encoder import CpuEncoder
from embedding.encoding.devices import Cpu
from embedding.encoding.encoder import Encoder
from embedding.encoding.encoder_loading import load_encoders
from embedding.encoding.graph_files import GraphFiles
from tests.support.encoding import encode, make_settings, relative_error, tone_windows
from tests.support.models import BEATS, EFFICIENTNET


def test_encoders_are_in_the_order_of_the_targets(checkpoints: dict[str, Path]) -> None:
    targets = [
        make_settings(checkpoints[EFFICIENTNET], EFFICIENTNET, layers="0"),
        make_settings(checkpoints[EFFICIENTNET], EFFICIENTNET),
        make_settings(checkpoints[BEATS], BEATS, mask_padding=True),
    ]
    encoders = load_encoders(targets, 1)
    assert [type(encoder) for encoder in encoders] == [Encoder, CpuEncoder, Encoder]
    assert [encoder.settings for encoder in encoders] == targets


def test_without_a_cache_torch_computes_the_same(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(checkpoints[EFFICIENTNET], EFFICIENTNET)
    (with_cache,) = load_encoders([settings], 1)
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
    (without,) = load_encoders([settings], 1)
    assert (type(with_cache), type(without)) == (CpuEncoder, Encoder)
    vectors = [encode(encoder, tone_windows(3))["embedding"] for encoder in (with_cache, without)]
    assert relative_error(*vectors) <= 1e-5


def test_torch_computes_a_model_that_has_no_graph(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_loading, "open_graph_files", lambda *_: GraphFiles(tmp_path))
    (encoder,) = load_encoders([make_settings(checkpoints[EFFICIENTNET], EFFICIENTNET)], 1)
    assert isinstance(encoder, Encoder)


def test_a_gpu_gets_no_graph(checkpoints: dict[str, Path]) -> None:
    (encoder,) = load_encoders([make_settings(checkpoints[EFFICIENTNET], EFFICIENTNET)], 1, Cpu())
    assert isinstance(encoder, Encoder)
