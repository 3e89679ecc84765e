"""Windows to vectors: device, precision, micro-batch. Knows torch, knows nothing of Ray."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from embedding.decoding.decode import Failure
from embedding.encoding.classifier import Classifier
from embedding.encoding.graph import Compiled
from embedding.encoding.layers import Layered
from embedding.encoding.lean import Features, LeanBeats, LeanEfficientNet, lean_kind
from embedding.encoding.micro_batch import MicroBatch
from embedding.encoding.models import import_only_what, load
from embedding.encoding.pooling import pool
from embedding.rows import WANTED, by_rate, output_column, window_column
from embedding.settings import Settings
from embedding.vectors import column, matrix

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Encoder:
    """A loaded model. One per process."""

    def __init__(self, settings: Settings, device: str, n_threads: int) -> None:
        """Load the weights onto ``device`` (cpu or cuda); ``n_threads`` of the CPU are torch's.

        Raises:
            RequestError: they cannot be had or do not fit.
        """
        torch.set_num_threads(n_threads)
        self.settings = settings
        self._device = torch.device(device)
        self._micro_batch = MicroBatch.on(device, settings.model.architecture)
        self._features = _features(settings, device, n_threads)
        self._classifier = None
        if settings.labels is not None:
            self._classifier = Classifier(settings.model, settings.checkpoint, settings.labels).to(device)

    def encode(
        self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, NDArray[Any]]:
        """Of ``windows`` (``[n, length]``): ``embedding``, their pooled vectors ``[n, dim]`` float32.

        Likewise of each layer that is asked for, under its name. With predictions also ``labels``, the numbers of the
        likeliest, and ``scores``, both ``[n, k]``.

        Args:
            n_audio: per window, how many of its samples are audio rather than padding; only ``mask_padding`` looks.
            stopping: asked before each micro-batch; once it says so, the rows are those of the first windows only.
        """
        # They stay on the device until the end: a GPU is then never waited for between two passes.
        parts: list[dict[str, torch.Tensor]] = []
        start = 0
        while start < len(windows) and not stopping():
            part = slice(start, start + self._micro_batch.size)
            try:
                parts.append(self._pass(windows[part], n_audio[part]))
            except torch.OutOfMemoryError as error:
                self._micro_batch.ran_out(error)
                torch.cuda.empty_cache()
            else:
                start += len(windows[part])
        if not parts:
            return self._of_no_window()
        return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}

    def _of_no_window(self) -> dict[str, NDArray[Any]]:
        """As many columns as of any other windows: a table that lacks some could not be joined with the next."""
        traits, labels = self.settings.model.traits, self.settings.labels
        dims = {"embedding": traits.dim}
        if isinstance(self._features, Layered):
            inner = (traits.layer_dims[layer] for layer in self.settings.layers)
            dims |= zip(self._features.names, inner, strict=True)
        columns: dict[str, NDArray[Any]] = {name: np.empty((0, dim), np.float32) for name, dim in dims.items()}
        if labels is not None:
            columns |= {"labels": np.empty((0, labels.k), np.int64), "scores": np.empty((0, labels.k), np.float32)}
        return columns

    def _pass(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """One forward pass. While the micro-batch is being found, its end is waited for and timed."""
        began = time.perf_counter()
        columns = self._forward(windows, n_audio)
        if self._micro_batch.growing:
            torch.cuda.synchronize()
            self._micro_batch.passed(len(windows), time.perf_counter() - began)
        return columns

    @torch.inference_mode()
    def _forward(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        # From pinned memory the copy to a GPU overlaps what it computes.
        on_gpu = self._device.type == "cuda"
        x = torch.tensor(windows, pin_memory=on_gpu).to(self._device, non_blocking=True)
        mask = None
        if self.settings.mask_padding and (n_audio < x.shape[1]).any():
            audio = torch.as_tensor(n_audio, device=self._device)
            mask = torch.arange(x.shape[1], device=self._device) >= audio[:, None]
        if isinstance(self._features, Layered):
            (features, layers), padded = self._features(x), None
        else:
            (features, padded), layers = self._features(x, mask), {}
        columns = {
            name: pool(unpooled.float(), self.settings.pooling, padded)
            for name, unpooled in {"embedding": features, **layers}.items()
        }
        if self._classifier is not None:
            columns["labels"], columns["scores"] = self._classifier(features.float(), padded)
        return columns


def _features(
    settings: Settings, device: str, n_threads: int
) -> Layered | Callable[[torch.Tensor, torch.Tensor | None], Features]:
    """What turns windows, and the mask of their padding, into features."""
    module = load(settings.model, settings.checkpoint)
    if settings.layers:
        return Layered(module.to(device), settings.layers, DTYPES[settings.precision])
    kind = lean_kind(module, settings.model.architecture)
    if device == "cpu" and issubclass(kind, LeanBeats | LeanEfficientNet):
        return Compiled(kind(module, torch.float32).eval(), settings.precision, n_threads)
    return kind(module, DTYPES[settings.precision]).eval().to(device)


def load_encoders(targets: Sequence[Settings], device: str, n_threads: int) -> list["Encoder"]:
    """One encoder per target of a run, in one process.

    Raises:
        RequestError: weights that cannot be had or do not fit.
    """
    import_only_what({settings.model.architecture for settings in targets})
    return [Encoder(settings, device, n_threads) for settings in targets]


def encode_table(
    encoders: Sequence[Encoder], table: pa.Table, stopping: Callable[[], bool] = lambda: False
) -> tuple[pa.Table, list[tuple[int, Failure]]]:
    """A table of windows with what each target's encoder gives (``embedding`` and more) in the place of samples.

    A row is wanted by those targets only whose vectors it has, and goes where there are none: a window of which a
    vector is not finite fails, and once ``stopping`` says so only the first windows are encoded. Returned with the
    failures, each with its target.
    """
    wanted = table[WANTED[0]].to_numpy()
    encoded = np.zeros_like(wanted)
    failures: list[tuple[int, Failure]] = []
    columns: dict[str, pa.Array] = {}
    for target, encoder in enumerate(encoders):
        spec = encoder.settings.windows
        own = np.flatnonzero(wanted >> target & 1)
        windows = matrix(table[window_column(spec.rate_hz)])
        n_audio = spec.audio_samples(table["start_time"].to_numpy(), table["end_time"].to_numpy())
        if len(own) < len(table):
            windows, n_audio = windows[own], n_audio[own]
        outputs = encoder.encode(windows, n_audio, stopping)
        own = own[: len(outputs["embedding"])]
        finite = np.logical_and.reduce([np.isfinite(rows).all(axis=1) for rows in outputs.values()])
        encoded[own[finite]] |= 1 << target
        failures += [(target, _nonfinite(row)) for row in table.select(_OF_FAILURE).take(own[~finite]).to_pylist()]
        for name, rows in outputs.items():
            columns[output_column(target, name)] = _as_column(name, _spread(rows, own, len(table)), encoder.settings)
    table = table.drop_columns([window_column(spec.rate_hz) for spec in by_rate(e.settings.windows for e in encoders)])
    table = table.set_column(table.column_names.index(WANTED[0]), WANTED[0], pa.array(encoded))
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table if encoded.all() else table.filter(pa.array(encoded > 0)), failures


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
