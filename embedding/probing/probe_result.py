"""Options and result of a probe."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from embedding.probing.label_manifest import Manifest
from embedding.probing.labels import Floats, Integers, Labels, Truth
from embedding.probing.logistic_regression import Probe
from embedding.probing.metrics import Metrics


@dataclass(frozen=True)
class Wanted:
    """The options."""

    root: str
    labels: str  # URI of the manifest
    column: str
    group: str | None
    layer: str | None  # an inner one; None: what the model ends in
    name: str
    test_share: float
    seed: int
    max_windows: int  # on each side
    replace: bool = False  # a probe of the same name


@dataclass(frozen=True)
class Side:
    """Recordings to learn from, or for the test."""

    n_recordings: int
    n_windows: int  # that are stored
    windows: pa.Table  # of them those that are used, as probing.windows has them
    truth: Truth  # [windows used, classes]

    @property
    def recording(self) -> Integers:
        """``[windows used]``, into the files of the labels."""
        return self.windows["recording"].to_numpy()


@dataclass(frozen=True)
class Result:
    """A probe, where it comes from and how good it is."""

    wanted: Wanted
    settings: dict[str, Any]  # of the embeddings
    manifest: Manifest
    labels: Labels  # of recordings that are stored
    is_test: Truth  # [recordings]
    train: Side
    test: Side
    is_learnt: Truth  # [classes]: the probe's rows are of these
    probe: Probe
    scores: Floats  # [windows of the test, classes learnt]
    of_windows: Metrics
    of_recordings: Metrics

    @property
    def classes(self) -> list[str]:
        """The probe's, in the order of its rows."""
        return self.labels.classes[self.is_learnt].tolist()
