"""Encoding of a table of windows: the columns of samples are replaced by the outputs of each target's encoder."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.encoding.settings import Settings
from embedding.schema.batches import by_rate, output_column, window_column
from embedding.schema.failures import Failure
from embedding.schema.targets import FIELD, TargetColumn
from embedding.schema.vectors import column, matrix
from embedding.schema.windows import WindowSpec

_FAILURE_COLUMNS = ["file", "file_id", "window_index", "start_time"]


class WindowEncoder(Protocol):
    """An encoder as this module uses it: ``Encoder`` or ``CpuEncoder``."""

    settings: Settings

    def encode(
        self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], stopping: Callable[[], bool] = ...
    ) -> dict[str, NDArray[Any]]:
        """Compute the outputs of windows; see ``Encoder.encode``."""
        ...


def encode_batch(
    encoders: Sequence[WindowEncoder], table: pa.Table, stopping: Callable[[], bool] = lambda: False
) -> tuple[pa.Table, list[tuple[int, Failure]]]:
    """Encode a table of windows.

    Args:
        encoders: One encoder per target.
        table: Windows in the columns of ``batches.windows_schema``.
        stopping: Checked before each forward pass; once it returns True, the remaining windows are not encoded.

    Returns:
        The table with each target's outputs (``embedding`` and others) instead of samples; and the failures, each with
        its target. A row is needed only by targets whose vectors the row holds, and is left out if the row holds no
        vectors: a window whose vector is not finite is a failure, and a window may be left unencoded.
    """
    encoded = [np.zeros(len(table), bool) for _ in encoders]
    failures: list[tuple[int, Failure]] = []
    columns: dict[str, pa.Array] = {}
    for target, encoder in enumerate(encoders):
        own_rows, windows, n_audio = own_windows(table, target, encoder.settings.windows)
        outputs = encoder.encode(windows, n_audio, stopping)
        own_rows = own_rows[: len(outputs["embedding"])]
        finite = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in outputs.values()])
        encoded[target][own_rows[finite]] = True
        failed = table.select(_FAILURE_COLUMNS).take(own_rows[~finite])
        failures += [(target, _nonfinite_failure(window)) for window in failed.to_pylist()]
        for name, values in outputs.items():
            scattered = _scatter(values, own_rows, len(table))
            columns[output_column(target, name)] = _as_column(name, scattered, encoder.settings)
    table = table.drop_columns([window_column(spec.rate_hz) for spec in by_rate(e.settings.windows for e in encoders)])
    targets = TargetColumn.from_members(encoded)
    table = table.set_column(table.column_names.index(FIELD.name), FIELD, targets.as_array())
    for name, values in columns.items():
        table = table.append_column(name, values)
    needed = targets.needed()
    return table if needed.all() else table.filter(pa.array(needed)), failures


def own_windows(
    table: pa.Table, target: int, spec: WindowSpec
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Return the windows that a target needs.

    Args:
        table: Windows in the columns of ``batches.windows_schema``.
        target: Number of the target.
        spec: Windows of the target.

    Returns:
        The rows of the windows in the table, ``[n]``; their samples, float32 ``[n, length]``; and the number of samples
        of each that are audio, ``[n]``.
    """
    rows = np.flatnonzero(TargetColumn.of(table).needed_by(target))
    windows = matrix(table[window_column(spec.rate_hz)])
    n_audio = spec.audio_samples(table["start_time"].to_numpy(), table["end_time"].to_numpy())
    if len(rows) < len(table):
        windows, n_audio = windows[rows], n_audio[rows]
    return rows, windows, n_audio


def _nonfinite_failure(window: dict[str, Any]) -> Failure:
    message = f"the model gave no finite vector for window {window['window_index']} at {window['start_time']:g} s"
    return Failure(window["file"], window["file_id"], -1, "encode", "nonfinite", message)


def _scatter(values: NDArray[Any], rows: NDArray[np.int64], n_rows: int) -> NDArray[Any]:
    """Place ``values`` at ``rows`` of ``n_rows``; other rows are zeros, which no target reads."""
    if len(values) == n_rows:
        return values
    scattered = np.zeros((n_rows, values.shape[1]), values.dtype)
    scattered[rows] = values
    return scattered


def _as_column(name: str, values: NDArray[Any], settings: Settings) -> pa.Array:
    """Convert vectors to lists of fixed size, and labels (by name) and their scores to plain lists."""
    if name not in ("labels", "scores"):
        return column(values)
    assert settings.label_map is not None
    flat = pa.array(values.ravel())
    if name == "labels":
        flat = pa.array(settings.label_map.names).take(flat)
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.ListArray.from_arrays(offsets, flat)
