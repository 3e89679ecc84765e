"""Models with all of their layers: vectors equal those of plain avex, one window at a time, whatever computes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.encoding.models import find_model, layer_numbers
from embedding.errors import RequestError
from tests.support import reference
from tests.support.encoding import encode, make_cpu_encoder, make_encoder, relative_error, smallest_cosine, tone_windows
from tests.support.models import BEATS, EFFICIENTNET


@pytest.mark.parametrize("model", [BEATS, EFFICIENTNET])
def test_vectors_equal_those_of_the_reference_loop(model: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    windows = tone_windows(5)
    network = reference.load(model, checkpoints[model], tmp_path)
    expected = np.stack([reference.embed(network, window) for window in windows])
    assert relative_error(expected[1:], expected[:-1]) > 1e-3  # else the vectors of any sound would pass
    encoders: dict[str, Any] = {"graph": make_cpu_encoder, "torch": make_encoder}
    for name, make in encoders.items():
        vectors = encode(make(checkpoints[model], model), windows)["embedding"]
        assert vectors.dtype == np.float32
        assert relative_error(vectors, expected) <= 1e-5, name
    for precision in ("bf16", "int8") if model == BEATS else ("bf16",):
        coarse = encode(make_cpu_encoder(checkpoints[model], model, precision=precision), windows)["embedding"]
        assert smallest_cosine(coarse, expected) >= 0.999, precision
        assert precision == "bf16" or relative_error(coarse, expected) > 1e-5


@pytest.mark.parametrize("name", [BEATS, EFFICIENTNET, "esp_aves2_sed_birdcode_beats_encoder"])
def test_layer_dims_equal_those_of_the_network(name: str) -> None:
    encoder = make_encoder("random", name, window_s=0.5, layers="all")
    settings = encoder.settings
    outputs = encode(encoder, np.zeros((1, settings.windows.length), np.float32))
    assert tuple(values.shape[1] for values in list(outputs.values())[1:]) == settings.model.traits.layer_dims
    assert settings.row_bytes > 4 * sum(values.size for values in outputs.values())


def test_layers_are_counted_from_either_end() -> None:
    model = find_model(BEATS)
    assert layer_numbers(model, "last") == ()
    assert layer_numbers(model, "all") == tuple(range(13))
    assert layer_numbers(model, (-1, 0, 12, 5)) == (0, 5, 12)
    with pytest.raises(RequestError, match=r"--layers: esp_aves2_sl_beats_all has no layer 13; they are 0 to 12"):
        layer_numbers(model, (13,))
