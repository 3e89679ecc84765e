"""Agreement of a reduced precision with fp32, measured on the first windows of a batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding.encoding.agreement import N_WINDOWS, measure_agreement
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.schema.targets import FIELD
from tests.support.encoding import make_settings, tone_windows, windows_table
from tests.support.models import BEATS, EFFICIENTNET

LENGTH = 16_000


class TurningEncoder:
    """Stand-in whose vectors are turned away from those of fp32 by an angle for each window."""

    def __init__(self, settings: Settings, angles: np.ndarray) -> None:
        self.settings, self._angles = settings, angles
        self.seen: list[np.ndarray] = []

    def encode(self, windows: np.ndarray, n_audio: np.ndarray, stopping: Any = None) -> dict[str, np.ndarray]:
        self.seen.append(windows)
        assert len(n_audio) == len(windows)
        angles = self._angles[: len(windows)]
        return {"embedding": np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)}


def measure(angles: np.ndarray, least: float = 0.0, **options: object) -> tuple[dict[int, Any], list[Settings]]:
    settings = make_settings("random", BEATS, **({"precision": "bf16"} | options))
    loaded = []

    def load_exact(exact: Settings) -> TurningEncoder:
        loaded.append(exact)
        return TurningEncoder(exact, np.zeros(len(angles)))

    encoder = TurningEncoder(settings, angles)
    return measure_agreement([encoder], windows_table(tone_windows(len(angles))), least, load_exact), loaded


def test_cosines_are_those_of_the_first_windows() -> None:
    angles = np.linspace(0.0, 0.1, 12)
    found, loaded = measure(angles)
    cosines = np.cos(angles[:N_WINDOWS])
    assert found[0].windows == N_WINDOWS
    assert found[0].least == pytest.approx(cosines.min(), abs=1e-6)
    assert found[0].median == pytest.approx(np.median(cosines), abs=1e-6)
    assert [each.precision for each in loaded] == ["fp32"]


def test_vectors_of_fp32_are_not_compared() -> None:
    assert measure(np.zeros(3), precision="fp32") == ({}, [])


def test_the_encoder_of_fp32_has_neither_layers_nor_labels() -> None:
    _, loaded = measure(np.zeros(3), layers="0", predict=2)
    assert (loaded[0].layers, loaded[0].label_map, loaded[0].device) == ((), None, None)


def test_a_cosine_below_the_limit_is_refused_with_the_figure_and_the_way_out() -> None:
    with pytest.raises(RequestError) as refused:
        measure(np.array([0.0, 0.0, 0.2]), 0.995)
    assert str(refused.value) == (
        "--precision: bf16 vectors of esp_aves2_sl_beats_all differ too much from fp32: cosine with fp32 at least "
        "0.980067, median 1.000000 (3 windows), and --min-agreement is 0.995; use --precision fp32, or accept them "
        "with --min-agreement 0.98"
    )
    measure(np.array([0.0, 0.0, 0.2]), 0.98)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_vectors_that_have_no_direction_are_left_out(value: float) -> None:
    class Broken(TurningEncoder):
        def encode(self, windows: np.ndarray, n_audio: np.ndarray, stopping: Any = None) -> dict[str, np.ndarray]:
            vectors = super().encode(windows, n_audio)["embedding"]
            vectors[0] = value
            return {"embedding": vectors}

    settings = make_settings("random", BEATS, precision="bf16")
    for n_windows, expected in ((3, 2), (1, None)):
        found = measure_agreement(
            [Broken(settings, np.zeros(3))],
            windows_table(tone_windows(n_windows)),
            0.995,
            lambda exact: TurningEncoder(exact, np.zeros(3)),
        )
        assert (found[0].windows if found else None) == expected


def test_each_target_is_compared_with_its_own_windows() -> None:
    table = windows_table(tone_windows(4))
    table = table.set_column(table.column_names.index("targets"), "targets", pa.array([3, 1, 3, 1], FIELD.type))
    first, second = (make_settings("random", name, precision="bf16") for name in (BEATS, EFFICIENTNET))
    second = replace(second, windows=first.windows)
    encoders = [TurningEncoder(settings, np.zeros(4)) for settings in (first, second)]
    found = measure_agreement(encoders, table, 0.9, lambda exact: TurningEncoder(exact, np.zeros(4)))
    assert {target: agreement.windows for target, agreement in found.items()} == {0: 4, 1: 2}
    assert np.array_equal(encoders[1].seen[0], tone_windows(4)[[0, 2]])
