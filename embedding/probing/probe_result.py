"""Options and result of a probe."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from embedding.probing.calibration import Calibration
from embedding.probing.label_manifest import LabelManifest
from embedding.probing.labels import Booleans, Floats, Integers, Labels
from embedding.probing.logistic_regression import Probe
from embedding.probing.metrics import Metrics


@dataclass(frozen=True)
class ProbeOptions:
    """Options of a probe.

    Attributes:
        root: Directory or prefix of the output.
        labels: Path or URI of the labels: a manifest, or annotations of other programs.
        column: Column with the labels; None: the usual one of their format.
        group: Column of the manifest; recordings with the same value are all for training or all for the test.
        layer: The inner layer whose vectors are learnt from; None for the output of the model.
        name: Name of the probe.
        test_share: Share of the recordings for the test.
        seed: Seed of the random numbers.
        max_windows: Largest number of windows for training, and for the test.
        replace: Replace a probe of the same name.
        label_format: A format of crowsetta; None: the format of the labels is recognised.
    """

    root: str
    labels: str
    column: str | None
    group: str | None
    layer: str | None
    name: str
    test_share: float
    seed: int
    max_windows: int
    replace: bool = False
    label_format: str | None = None


@dataclass(frozen=True)
class Subset:
    """The recordings and windows for training, or those for the test.

    Attributes:
        n_recordings: Number of recordings.
        n_windows: Number of stored windows of these recordings.
        windows: The windows that are used, rows of a sample of ``sample_windows``.
        truth: ``[windows used, classes]``, the labels.
    """

    n_recordings: int
    n_windows: int
    windows: pa.Table
    truth: Booleans

    @property
    def recording(self) -> Integers:
        """``[windows used]``, indices into the files of the labels."""
        return self.windows["recording"].to_numpy()


@dataclass(frozen=True)
class ProbeResult:
    """A probe, its origin and its metrics.

    Attributes:
        options: The options.
        settings: Settings of the embeddings.
        manifest: The labels of the manifest.
        labels: The labels of the recordings that are stored.
        is_test: ``[recordings]``, true for the test.
        train: What the probe was learnt from.
        test: What the probe was measured on.
        is_learnt: ``[classes]``; the rows of the probe are the classes that were learnt.
        probe: The probe.
        calibration: The calibration of its scores, fitted on the test.
        scores: ``[windows of the test, classes learnt]``.
        window_metrics: Metrics over windows.
        recording_metrics: Metrics over recordings.
    """

    options: ProbeOptions
    settings: dict[str, Any]
    manifest: LabelManifest
    labels: Labels
    is_test: Booleans
    train: Subset
    test: Subset
    is_learnt: Booleans
    probe: Probe
    calibration: Calibration
    scores: Floats
    window_metrics: Metrics
    recording_metrics: Metrics

    @property
    def classes(self) -> list[str]:
        """The classes that were learnt, in the order of the probe's rows."""
        return self.labels.classes[self.is_learnt].tolist()
