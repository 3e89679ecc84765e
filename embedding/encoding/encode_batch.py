"""Tables of windows to tables of vectors: what each model of a run gives, in the place of samples."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.encoding.encoder import Encoder
from embedding.encoding.settings import Settings
from embedding.schema.batches import by_rate, output_column, window_column
from embedding.schema.failures import Failure
from embedding.schema.targets import FIELD, TargetColumn
from embedding.schema.vectors import column, matrix


def encode_batch(
    encoders: Sequence[Encoder], table: pa.Table, stopping: Callable[[], bool] = lambda: False
) -> tuple[pa.Table, list[tuple[int, Failure]]]:
    """A table of windows with what each target's encoder gives (``embedding`` and more) in the place of samples.

    A row is wanted by those targets only whose vectors it has, and goes where there are none: a window of which a
    vector is not finite fails, and once ``stopping`` says so only the first windows are encoded. Returned with the
    failures, each with its target.
    """
    targets = TargetColumn.of(table)
    encoded = [np.zeros(len(table), bool) for _ in encoders]
    failures: list[tuple[int, Failure]] = []
    columns: dict[str, pa.Array] = {}
    for target, encoder in enumerate(encoders):
        spec = encoder.settings.windows
        own = np.flatnonzero(targets.needed_by(target))
        windows = matrix(table[window_column(spec.rate_hz)])
        n_audio = spec.audio_samples(table["start_time"].to_numpy(), table["end_time"].to_numpy())
        if len(own) < len(table):
            windows, n_audio = windows[own], n_audio[own]
        outputs = encoder.encode(windows, n_audio, stopping)
        own = own[: len(outputs["embedding"])]
        finite = np.logical_and.reduce([np.isfinite(rows).all(axis=1) for rows in outputs.values()])
        encoded[target][own[finite]] = True
        failures += [(target, _nonfinite(row)) for row in table.select(_OF_FAILURE).take(own[~finite]).to_pylist()]
        for name, rows in outputs.items():
            columns[output_column(target, name)] = _as_column(name, _spread(rows, own, len(table)), encoder.settings)
    table = table.drop_columns([window_column(spec.rate_hz) for spec in by_rate(e.settings.windows for e in encoders)])
    targets = TargetColumn.from_members(encoded)
    table = table.set_column(table.column_names.index(FIELD.name), FIELD, targets.as_array())
    for name, values in columns.items():
        table = table.append_column(name, values)
    needed = targets.needed()
    return table if needed.all() else table.filter(pa.array(needed)), failures


_OF_FAILURE = ["file", "file_id", "window_index", "start_time"]


def _nonfinite(row: dict[str, Any]) -> Failure:
    message = f"the model gave no finite vector for window {row['window_index']} at {row['start_time']:g} s"
    return Failure(row["file"], row["file_id"], -1, "encode", "nonfinite", message)


def _spread(rows: NDArray[Any], at: NDArray[np.int64], n: int) -> NDArray[Any]:
    """``rows`` at their places among ``n``; zeros elsewhere, which nobody wants."""
    if len(rows) == n:
        return rows
    spread = np.zeros((n, rows.shape[1]), rows.dtype)
    spread[at] = rows
    return spread


def _as_column(name: str, rows: NDArray[Any], settings: Settings) -> pa.Array:
    """Vectors as lists of fixed size; labels by name and their scores as plain lists."""
    if name not in ("labels", "scores"):
        return column(rows)
    assert settings.labels is not None
    values = pa.array(rows.ravel())
    if name == "labels":
        values = pa.array(settings.labels.names).take(values)
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
    return pa.ListArray.from_arrays(offsets, values)
