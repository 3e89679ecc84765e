"""Agreement of a reduced precision with fp32, measured on the first windows of a batch."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from embedding.encoding.agreement import N_WINDOWS, Agreement, AgreementCheck, measure_agreement, refuse_disagreement
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.schema.targets import FIELD
from simulated_gpu import SimulatedGpu
from tests.support.encoding import make_settings, tone_windows, windows_table
from tests.support.models import BEATS, EFFICIENTNET


class TurningEncoder:
    """Stand-in whose vectors are turned away from those of fp32 by an angle for each window."""

    def __init__(self, settings: Settings, angles: np.ndarray) -> None:
        self.settings, self._angles = settings, angles
        self.seen: list[np.ndarray] = []

    def encode(
        self, windows: np.ndarray, n_audio: np.ndarray, stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, np.ndarray]:
        self.seen.append(windows)
        assert len(n_audio) == len(windows)
        angles = self._angles[: 0 if stopping() else len(windows)]
        return {"embedding": np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)}


def exact_encoder(settings: Settings) -> TurningEncoder:
    return TurningEncoder(settings, np.zeros(N_WINDOWS))


def measure(angles: np.ndarray, load: Any = exact_encoder, **options: object) -> Agreement | None:
    encoder = TurningEncoder(make_settings("random", BEATS, **({"precision": "bf16"} | options)), angles)
    return measure_agreement(encoder, windows_table(tone_windows(len(angles))), 0, load)


def test_cosines_are_those_of_the_first_windows() -> None:
    angles = np.linspace(0.0, 0.1, 12)
    found = measure(angles)
    cosines = np.cos(angles[:N_WINDOWS])
    assert found is not None
    assert found.windows == N_WINDOWS
    assert found.least == pytest.approx(cosines.min(), abs=1e-6)
    assert found.median == pytest.approx(np.median(cosines), abs=1e-6)


def test_the_encoder_of_fp32_has_the_same_layers_and_no_labels() -> None:
    """With other layers another program would compute the vectors."""
    loaded: list[Settings] = []

    def load(settings: Settings) -> TurningEncoder:
        loaded.append(settings)
        return exact_encoder(settings)

    measure(np.zeros(3), load, layers="0", predict=2)
    exact = loaded[0]
    assert (exact.precision, exact.layers, exact.label_map, exact.device) == ("fp32", (0,), None, None)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_vectors_that_have_no_direction_are_left_out(value: float) -> None:
    class Broken(TurningEncoder):
        def encode(
            self, windows: np.ndarray, n_audio: np.ndarray, stopping: Callable[[], bool] = lambda: False
        ) -> dict[str, np.ndarray]:
            vectors = super().encode(windows, n_audio, stopping)["embedding"]
            vectors[0] = value
            return {"embedding": vectors}

    encoder = Broken(make_settings("random", BEATS, precision="bf16"), np.zeros(3))
    for n_windows, n_compared in ((3, 2), (1, None)):
        found = measure_agreement(encoder, windows_table(tone_windows(n_windows)), 0, exact_encoder)
        assert (found and found.windows) == n_compared


def test_a_run_that_is_stopping_loads_no_second_model() -> None:
    encoder = TurningEncoder(make_settings("random", BEATS, precision="bf16"), np.zeros(3))

    def load(_: Settings) -> TurningEncoder:
        raise AssertionError

    assert measure_agreement(encoder, windows_table(tone_windows(3)), 0, load, lambda: True) is None


@pytest.mark.parametrize(
    ("least", "remedy"),
    [
        (0.980067, "use --precision fp32 with another --output, or accept the vectors with --min-agreement 0.98"),
        (-0.5, "use --precision fp32 with another --output"),
    ],
)
def test_the_refusal_has_the_figures_and_the_way_out(least: float, remedy: str) -> None:
    settings = make_settings("random", BEATS, precision="bf16")
    with pytest.raises(RequestError) as refused:
        refuse_disagreement(settings, Agreement(3, least, 1.0), 0.995)
    assert str(refused.value) == (
        f"--precision: bf16 vectors of esp_aves2_sl_beats_all differ too much from fp32: least cosine with fp32 "
        f"{least:.6f}, median 1.000000 (3 windows), and --min-agreement is 0.995; {remedy}"
    )
    refuse_disagreement(settings, Agreement(3, least, 1.0), -1.0)


# --- the check of one process -----------------------------------------------------------------------------------


class FakeReporter:
    """Stands for a ProgressReporter; it chooses every batch for every target."""

    def __init__(self, *, stopping: bool = False) -> None:
        self._stopping = stopping
        self.asked: list[tuple[str, list[int]]] = []
        self.found: dict[int, dict[str, float]] = {}

    def choose_measured(self, batch: str, targets: Collection[int]) -> list[int]:
        self.asked.append((batch, sorted(targets)))
        return sorted(targets)

    def agreed(self, target: int, agreement: dict[str, float]) -> None:
        self.found[target] = agreement

    def is_stopping(self) -> bool:
        return self._stopping


def two_encoders(precision: str = "bf16", angles: tuple[float, float] = (0.0, 0.0)) -> list[TurningEncoder]:
    first, second = (make_settings("random", name, precision=precision) for name in (BEATS, EFFICIENTNET))
    second = replace(second, windows=first.windows)
    return [
        TurningEncoder(settings, np.full(N_WINDOWS, angle))
        for settings, angle in zip((first, second), angles, strict=True)
    ]


def batch_for(*targets: int) -> pa.Table:
    """Return a batch of one window for each set of targets, given as bits."""
    table = windows_table(tone_windows(len(targets)))
    return table.set_column(table.column_names.index(FIELD.name), FIELD, pa.array(targets, FIELD.type))


def test_each_target_is_compared_with_its_own_first_windows() -> None:
    encoders, reporter = two_encoders(), FakeReporter()
    check = AgreementCheck(encoders, exact_encoder, reporter, 0.9)
    for name, batch in (("a", batch_for(2, 2)), ("b", batch_for(3, 1, 3)), ("c", batch_for(3, 3))):
        check.run(name, batch)
    assert reporter.asked == [("a", [1]), ("b", [0])]
    assert {target: found["windows"] for target, found in reporter.found.items()} == {1: 2, 0: 3}
    assert np.array_equal(encoders[0].seen[0], tone_windows(3))


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9), ("bf16", 0.0)])
def test_nothing_is_measured_for_fp32_or_without_a_limit(precision: str, least: float) -> None:
    reporter = FakeReporter()
    AgreementCheck(two_encoders(precision), exact_encoder, reporter, least).run("a", batch_for(3))
    assert not reporter.asked


def test_nothing_is_measured_in_a_run_that_is_stopping() -> None:
    reporter = FakeReporter(stopping=True)
    AgreementCheck(two_encoders(), exact_encoder, reporter, 0.9).run("a", batch_for(3))
    assert not reporter.asked


def test_the_figures_of_a_refused_run_are_reported() -> None:
    reporter = FakeReporter()
    check = AgreementCheck(two_encoders(angles=(0.0, 0.2)), exact_encoder, reporter, 0.995)
    with pytest.raises(RequestError, match=EFFICIENTNET):
        check.run("a", batch_for(3))
    assert reporter.found[1]["least"] == pytest.approx(np.cos(0.2), abs=1e-6)


def test_a_gpu_without_memory_for_two_models_goes_on_with_one() -> None:
    reporter, gpu = FakeReporter(), SimulatedGpu()

    def load(_: Settings) -> TurningEncoder:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    AgreementCheck(two_encoders(), load, reporter, 0.9, gpu).run("a", batch_for(3))
    assert not reporter.found
    assert gpu.n_released == 2


def test_another_fault_of_a_gpu_reaches_the_caller_and_its_memory_is_released() -> None:
    gpu = SimulatedGpu()

    def load(_: Settings) -> TurningEncoder:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(RuntimeError, match="launch failure"):
        AgreementCheck(two_encoders(), load, FakeReporter(), 0.9, gpu).run("a", batch_for(3))
    assert gpu.n_released == 1


def test_the_memory_of_a_gpu_is_released_after_a_measurement() -> None:
    reporter, gpu = FakeReporter(), SimulatedGpu()
    AgreementCheck(two_encoders(), exact_encoder, reporter, 0.9, gpu).run("a", batch_for(3))
    assert reporter.found.keys() == {0, 1}
    assert gpu.n_released == 2
