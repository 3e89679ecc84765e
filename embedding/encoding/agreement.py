"""Agreement of vectors of a reduced precision with vectors of fp32, measured on the first windows of a run."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.encoding.encode_batch import WindowEncoder, own_windows
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.schema.targets import TargetColumn
from embedding.text import describe_agreement

if TYPE_CHECKING:
    from embedding.encoding.devices import Device

# Windows that are encoded once more, in fp32. With windows of 5 s BEATs takes 2 to 12 s of a core for them.
N_WINDOWS = 8


@dataclass(frozen=True)
class Agreement:
    """Cosines between vectors of a reduced precision and vectors of fp32, of the same windows.

    Attributes:
        windows: Number of windows that were compared.
        least: The least cosine.
        median: The median of the cosines.
    """

    windows: int
    least: float
    median: float


class Reporter(Protocol):
    """The end of the progress channel that a check uses; see ``ray_runtime.progress_channel.ProgressReporter``."""

    def choose_measured(self, batch: str, targets: Collection[int]) -> list[int]:
        """Return the targets for which the windows of a batch are to be encoded in fp32, too."""
        ...

    def agreed(self, target: int, agreement: dict[str, float]) -> None:
        """Report the agreement of a target with fp32."""
        ...

    def is_stopping(self) -> bool:
        """Return whether the worker is to encode no more."""
        ...


class AgreementCheck:
    """Check of the encoders of one process, on the first windows of each target of a reduced precision."""

    def __init__(
        self,
        encoders: Sequence[WindowEncoder],
        load_exact: Callable[[Settings], WindowEncoder],
        reporter: Reporter,
        least: float,
        gpu: "Device | None" = None,
    ) -> None:
        """Prepare the check; nothing is loaded yet.

        Args:
            encoders: One encoder per target.
            load_exact: Loads an encoder for settings in fp32.
            reporter: Chooses one batch of the run for each target, and receives the figures.
            least: Least cosine that is accepted; 0: nothing is measured.
            gpu: The GPU of the encoders; None for CPUs.
        """
        self._encoders, self._load_exact, self._reporter = encoders, load_exact, reporter
        self._least, self._gpu = least, gpu
        reduced = (target for target, encoder in enumerate(encoders) if encoder.settings.precision != "fp32")
        self._unmeasured = set(reduced) if least > 0 else set[int]()

    def run(self, batch: str, windows: pa.Table) -> None:
        """Measure the agreement of targets that have windows in a batch, unless another batch is chosen for them.

        Args:
            batch: Name of the batch.
            windows: Windows in the columns of ``batches.windows_schema``.

        Raises:
            RequestError: The vectors differ too much.
        """
        if not self._unmeasured:
            return
        targets = TargetColumn.of(windows)
        present = {target for target in self._unmeasured if targets.needed_by(target).any()}
        self._unmeasured -= present
        if not present or self._reporter.is_stopping():
            return
        for target in self._reporter.choose_measured(batch, present):
            agreement = self._measure(target, windows)
            if agreement is not None:
                self._reporter.agreed(target, asdict(agreement))
                refuse_disagreement(self._encoders[target].settings, agreement, self._least)

    def _measure(self, target: int, windows: pa.Table) -> Agreement | None:
        encoder, stopping = self._encoders[target], self._reporter.is_stopping
        if self._gpu is None:
            return measure_agreement(encoder, windows, target, self._load_exact, stopping)
        from embedding.encoding.devices import is_out_of_memory  # imports torch

        try:
            return measure_agreement(encoder, windows, target, self._load_exact, stopping)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None  # the GPU has no memory for two models; the run goes on with one
        finally:
            self._gpu.release_memory()


def measure_agreement(
    encoder: WindowEncoder,
    table: pa.Table,
    target: int,
    load_exact: Callable[[Settings], WindowEncoder],
    stopping: Callable[[], bool] = lambda: False,
) -> Agreement | None:
    """Compare the vectors of an encoder of a reduced precision with vectors of fp32.

    Args:
        encoder: The encoder of the target.
        table: Windows in the columns of ``batches.windows_schema``; the first of them are compared.
        target: Number of the target.
        load_exact: Loads an encoder for settings in fp32.
        stopping: Checked before each forward pass; once it returns True, no more windows are encoded.

    Returns:
        The agreement; None if no window of the target has finite vectors of both kinds.
    """
    settings = encoder.settings
    _, windows, n_audio = own_windows(table, target, settings.windows)
    windows, n_audio = windows[:N_WINDOWS], n_audio[:N_WINDOWS]
    coarse = encoder.encode(windows, n_audio, stopping)["embedding"]
    if not len(coarse):
        return None
    exact_encoder = load_exact(replace(settings, precision="fp32", device=None, label_map=None))
    exact = exact_encoder.encode(windows, n_audio, stopping)["embedding"]
    n_both = min(len(coarse), len(exact))
    cosines = _cosines(coarse[:n_both], exact[:n_both])
    return Agreement(len(cosines), float(cosines.min()), float(np.median(cosines))) if len(cosines) else None


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosines of rows that are finite in both, and not zero."""
    norms = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    return np.einsum("nd,nd->n", a[usable], b[usable], dtype=np.float64) / norms[usable]


def refuse_disagreement(settings: Settings, agreement: Agreement, least: float) -> None:
    """Refuse vectors that differ too much from fp32.

    Args:
        settings: Settings of the vectors.
        agreement: Their agreement with fp32.
        least: Least cosine that is accepted.

    Raises:
        RequestError: A cosine is below ``least``.
    """
    if agreement.least >= least:
        return
    remedy = "use --precision fp32 with another --output"
    if agreement.least >= 0:
        accepted = math.floor(agreement.least * 1_000) / 1_000
        remedy += f", or accept the vectors with --min-agreement {accepted:g}"
    raise RequestError(
        f"--precision: {settings.precision} vectors of {settings.model.name} differ too much from fp32: "
        f"{describe_agreement(asdict(agreement))}, and --min-agreement is {least:g}; {remedy}"
    )
