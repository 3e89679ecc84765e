"""Agreement of vectors of a reduced precision with vectors of fp32, measured on the first windows of a run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.encoding.encode_batch import WindowEncoder, own_windows
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.text import describe_agreement

# Windows that are encoded once more, in fp32. BEATs takes up to 10 s of a core for them.
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


def measure_agreement(
    encoders: Sequence[WindowEncoder],
    table: pa.Table,
    least: float,
    load_exact: Callable[[Settings], WindowEncoder],
) -> dict[int, Agreement]:
    """Compare the vectors of encoders of a reduced precision with vectors of fp32.

    Args:
        encoders: One encoder per target.
        table: Windows in the columns of ``batches.windows_schema``; the first of them are compared.
        least: Least cosine that is accepted.
        load_exact: Loads the encoder of settings of fp32.

    Returns:
        The agreement of each target of a reduced precision that has windows in the table with finite vectors.

    Raises:
        RequestError: A cosine is below ``least``.
    """
    found = {}
    for target, encoder in enumerate(encoders):
        settings = encoder.settings
        if settings.precision == "fp32":
            continue
        _, windows, n_audio = own_windows(table, target, settings.windows)
        windows, n_audio = windows[:N_WINDOWS], n_audio[:N_WINDOWS]
        coarse = encoder.encode(windows, n_audio)["embedding"]
        exact_settings = replace(settings, precision="fp32", device=None, layers=(), label_map=None)
        exact = load_exact(exact_settings).encode(windows, n_audio)["embedding"]
        cosines = _cosines(coarse, exact)
        if not len(cosines):
            continue
        found[target] = Agreement(len(cosines), float(cosines.min()), float(np.median(cosines)))
        if found[target].least < least:
            raise _refusal(settings, found[target], least)
    return found


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosines of rows that are finite in both, and not zero."""
    norms = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    return np.einsum("nd,nd->n", a[usable], b[usable], dtype=np.float64) / norms[usable]


def _refusal(settings: Settings, agreement: Agreement, least: float) -> RequestError:
    accepted = max(0.0, math.floor(agreement.least * 1_000) / 1_000)
    return RequestError(
        f"--precision: {settings.precision} vectors of {settings.model.name} differ too much from fp32: "
        f"{describe_agreement(asdict(agreement))}, and --min-agreement is {least:g}; use --precision fp32, or accept "
        f"them with --min-agreement {accepted:g}"
    )
