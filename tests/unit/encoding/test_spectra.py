"""Spectra computed with NumPy equal those that the optimised modules compute with torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from embedding.encoding.checkpoints import fetch_checkpoint
from embedding.encoding.graph_files import open_graph_files
from embedding.encoding.models import find_model
from embedding.encoding.spectra import FrontEnd
from tests.support.audio import tone
from tests.support.models import BEATS, EFFICIENTNET
from tests.support.optimized_models import RATE_HZ, load_perturbed, optimize

RANDOM = np.random.default_rng(0)
SOUNDS: dict[str, Callable[[int], np.ndarray]] = {
    "noise": lambda n: RANDOM.normal(0, 0.1, n),
    "whisper": lambda n: RANDOM.normal(0, 1e-5, n),
    "clipped": lambda n: np.clip(RANDOM.normal(0, 3, n), -1, 1),
    "tone": lambda n: tone(n / RATE_HZ, RATE_HZ, 700.0),
    "offset": lambda n: np.full(n, 0.5),
    "silence": np.zeros,
    "half silence": lambda n: np.where(np.arange(n) < n // 2, RANDOM.normal(0, 0.1, n), 0),
    "click": lambda n: (np.arange(n) == n // 3).astype(float),
}


@pytest.fixture(scope="module", params=[BEATS, EFFICIENTNET])
def both(request: pytest.FixtureRequest) -> tuple[FrontEnd, Any]:
    """The front end of a model's files, and the function that computes the same with torch."""
    model = find_model(request.param)
    files = open_graph_files(model, fetch_checkpoint(model.name, "random"))
    # The noise in the weights of this module does not reach its front end.
    return files.front_end(), optimize(load_perturbed(model.name), model.name).spectrum


@pytest.mark.parametrize("sound", SOUNDS)
@pytest.mark.parametrize("length", [4_800, 16_000, 16_001, 80_000])
def test_spectra_equal_those_of_torch(sound: str, length: int, both: tuple[FrontEnd, Any]) -> None:
    front_end, reference = both
    windows = np.stack([SOUNDS[sound](length), SOUNDS["noise"](length)]).astype(np.float32)
    expected = reference(torch.from_numpy(windows)).numpy()
    spectra = front_end(windows)
    assert spectra.dtype == np.float32
    assert spectra.shape == expected.shape
    # torch's own spectra of a tone differ by 2e-6 on average from spectra in float64, and the weakest energies by more.
    assert np.abs(spectra - expected).max() <= 1e-3
    assert np.abs(spectra - expected).mean() <= 1e-5


def test_spectra_leave_the_windows_as_they_are(both: tuple[FrontEnd, Any]) -> None:
    windows = RANDOM.normal(0, 0.1, (2, 16_000)).astype(np.float32)
    before = windows.copy()
    both[0](windows)
    assert np.array_equal(windows, before)
