"""Encoder of a model's graph: it does without torch, and computes what the encoder of torch computes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.encoding.cpu_encoder import CpuEncoder
from embedding.encoding.encoder_loading import load_encoders
from embedding.encoding.micro_batch_search import MicroBatchSearch
from tests.support.encoding import (
    encode,
    make_cpu_encoder,
    make_encoder,
    make_settings,
    relative_error,
    tone_windows,
)
from tests.support.models import BEATS, EFFICIENTNET

pytestmark = pytest.mark.usefixtures("few_layers")

MODELS = [BEATS, EFFICIENTNET]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_predictions_equal_those_with_torch(model: str, pooling: str) -> None:
    """The batch has windows of one pass and a rest."""
    options: dict[str, Any] = {"pooling": pooling, "predict": 3}
    windows = tone_windows(7)
    outputs = encode(make_cpu_encoder("random", model, **options), windows)
    expected = encode(make_encoder("random", model, **options), windows)
    assert outputs.keys() == expected.keys() == {"embedding", "labels", "scores"}
    assert relative_error(outputs["embedding"], expected["embedding"]) <= 1e-5
    assert np.array_equal(outputs["labels"], expected["labels"])
    assert np.abs(outputs["scores"] - expected["scores"]).max() <= 1e-5


def test_windows_are_encoded_with_neither_torch_nor_avex(shallow_checkpoints: dict[str, Path]) -> None:
    """Importing them takes seconds and hundreds of megabytes in each encoder."""
    make_cpu_encoder(shallow_checkpoints[EFFICIENTNET], EFFICIENTNET)  # the first encoder of a machine writes the graph
    script = f"""
import sys
import numpy as np
import embedding.encoding.encode_batch
from embedding.config import make_config
from embedding.encoding.encoder_loading import load_encoders
from embedding.encoding.settings import Settings
options = dict(input="a", output="b", model="{EFFICIENTNET}", checkpoint={str(shallow_checkpoints[EFFICIENTNET])!r})
(encoder,) = load_encoders([Settings.of(make_config(options))], 1)
print(encoder.encode(np.zeros((2, 16_000), np.float32), np.full(2, 16_000))["embedding"].shape)
print([name for name in ("torch", "avex", "torchaudio", "torchvision", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["(2, 1280)", "[]"], done.stderr


def test_no_window_gives_no_vector(shallow_checkpoints: dict[str, Path]) -> None:
    encoder = make_cpu_encoder(shallow_checkpoints[EFFICIENTNET], EFFICIENTNET)
    assert encode(encoder, np.empty((0, 16_000), np.float32))["embedding"].shape == (0, 1280)


def test_an_encoder_that_is_told_to_stop_ends_after_the_pass_at_hand(shallow_checkpoints: dict[str, Path]) -> None:
    encoder = make_cpu_encoder(shallow_checkpoints[EFFICIENTNET], EFFICIENTNET)
    encoder.warm_up(64)
    answers = iter([False, False, True])
    vectors = encoder.encode(tone_windows(64), np.full(64, 16_000), lambda: next(answers))["embedding"]
    assert 2 <= len(vectors) < 64


@pytest.mark.parametrize("model", MODELS)
def test_vectors_stay_the_same_while_the_fastest_pass_is_searched(
    model: str, shallow_checkpoints: dict[str, Path]
) -> None:
    windows = tone_windows(20)
    encoder = make_cpu_encoder(shallow_checkpoints[model], model, precision="bf16")
    assert encoder._search_file is not None
    for file in encoder._search_file.parent.glob("micro-batch-bf16-*"):  # of other tests
        file.unlink()
    encoder.warm_up(20)
    assert encoder._search.measured_next == 1
    first = encode(encoder, windows)["embedding"]
    while encoder._search.measured_next is not None:
        assert relative_error(encode(encoder, windows)["embedding"], first) <= 2e-2
    assert relative_error(encode(encoder, windows)["embedding"], first) <= 2e-2
    again = make_cpu_encoder(shallow_checkpoints[model], model, precision="bf16")
    again.warm_up(20)
    assert again._search.measured_next is None
    assert again._search.pass_size == encoder._search.pass_size


@pytest.mark.parametrize(("window_s", "best"), [(lambda n: 1.0 * n, 1), (lambda n: 1.0 if n == 4 else 2.0, 4)])
def test_the_compiled_graph_has_the_size_of_the_fastest_pass(
    window_s: Callable[[int], float], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise smaller passes would be filled up to the size that was measured last."""
    record = MicroBatchSearch.record
    monkeypatch.setattr(MicroBatchSearch, "record", lambda search, n, _: record(search, n, n * window_s(n)))
    encoder = make_cpu_encoder("random", EFFICIENTNET)
    encoder._search = MicroBatchSearch(tmp_path / "times", 16)
    while encoder._search.measured_next is not None:
        encode(encoder, tone_windows(16))
    encode(encoder, tone_windows(16))
    assert encoder._model._shape[0] == encoder._search.pass_size == best


def test_an_encoder_that_keeps_no_times_measures_for_itself_alone(shallow_checkpoints: dict[str, Path]) -> None:
    settings = make_settings(shallow_checkpoints[EFFICIENTNET], EFFICIENTNET, window_s=0.7)
    (encoder,) = load_encoders([settings], 1, keeps_times=False)
    assert isinstance(encoder, CpuEncoder)
    for _ in range(8):
        encode(encoder, tone_windows(1, 0.7))
    assert encoder._search._window_s
    (later,) = load_encoders([settings], 1)
    assert isinstance(later, CpuEncoder)
    assert not later._search._window_s
