"""Windows to vectors: device, precision, micro-batch, pooling. Knows torch, knows nothing of Ray."""

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from embedding.decoding.decode import Failure
from embedding.encoding.graph import Compiled
from embedding.encoding.lean import Features, LeanBeats, LeanEfficientNet, lean_kind
from embedding.encoding.micro_batch import MicroBatch
from embedding.encoding.models import load
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

    def encode(
        self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], stopping: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """Pooled vectors, ``[n, dim]`` float32, of ``windows`` (``[n, length]``).

        Args:
            n_audio: per window, how many of its samples are audio rather than padding; only ``mask_padding`` looks.
            stopping: asked before each micro-batch; once it says so, the vectors are those of the first windows only.
        """
        # They stay on the device until the end: a GPU is then never waited for between two passes.
        vectors: list[torch.Tensor] = []
        start = 0
        while start < len(windows) and not stopping():
            part = slice(start, start + self._micro_batch.size)
            try:
                vectors.append(self._pass(windows[part], n_audio[part]))
            except torch.OutOfMemoryError as error:
                self._micro_batch.ran_out(error)
                torch.cuda.empty_cache()
            else:
                start += len(vectors[-1])
        if not vectors:
            return np.empty((0, self.settings.model.traits.dim), dtype=np.float32)
        return torch.cat(vectors).cpu().numpy()

    def _pass(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64]) -> torch.Tensor:
        """One forward pass. While the micro-batch is being found, its end is waited for and timed."""
        began = time.perf_counter()
        vectors = self._forward(windows, n_audio)
        if self._micro_batch.growing:
            torch.cuda.synchronize()
            self._micro_batch.passed(len(windows), time.perf_counter() - began)
        return vectors

    @torch.inference_mode()
    def _forward(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64]) -> torch.Tensor:
        # From pinned memory the copy to a GPU overlaps what it computes.
        on_gpu = self._device.type == "cuda"
        x = torch.tensor(windows, pin_memory=on_gpu).to(self._device, non_blocking=True)
        mask = None
        if self.settings.mask_padding and (n_audio < x.shape[1]).any():
            audio = torch.as_tensor(n_audio, device=self._device)
            mask = torch.arange(x.shape[1], device=self._device) >= audio[:, None]
        features, padded = self._features(x, mask)
        return pool(features.float(), self.settings.pooling, padded)


def _features(
    settings: Settings, device: str, n_threads: int
) -> Callable[[torch.Tensor, torch.Tensor | None], Features]:
    """What turns windows, and the mask of their padding, into features."""
    module = load(settings.model, settings.checkpoint)
    kind = lean_kind(module, settings.model.architecture)
    if device == "cpu" and issubclass(kind, LeanBeats | LeanEfficientNet):
        return Compiled(kind(module, torch.float32).eval(), settings.precision, n_threads)
    return kind(module, DTYPES[settings.precision]).eval().to(device)


def pool(features: torch.Tensor, pooling: str, padded: torch.Tensor | None = None) -> torch.Tensor:
    """One vector per window, ``[batch, dim]``.

    Args:
        features: tokens ``[batch, tokens, dim]`` or a map ``[batch, dim, freq, time]``.
        padded: ``[batch, tokens]``, true where a token is padding and does not count.
    """
    tokens = features.flatten(2).transpose(1, 2) if features.dim() == 4 else features
    if pooling == "cls":
        return tokens[:, 0]
    if padded is None:
        return tokens.amax(1) if pooling == "max" else tokens.mean(1)
    padded = padded[..., None]
    if pooling == "max":
        return tokens.masked_fill(padded, float("-inf")).amax(1)
    return tokens.masked_fill(padded, 0).sum(1) / (~padded).sum(1)


def encode_table(
    encoder: Encoder, table: pa.Table, stopping: Callable[[], bool] = lambda: False
) -> tuple[pa.Table, list[Failure]]:
    """A table of windows with ``embedding`` in the place of ``window``; a window whose vector is not finite fails.

    Fewer rows than came in once ``stopping`` says so.
    """
    spec = encoder.settings.windows
    samples = matrix(table["window"])
    n_audio = spec.audio_samples(table["start_time"].to_numpy(), table["end_time"].to_numpy())
    vectors = encoder.encode(samples, n_audio, stopping)
    table = table.slice(0, len(vectors))
    finite = np.isfinite(vectors).all(axis=1)
    failures = []
    for row in table.drop_columns("window").filter(pa.array(~finite)).to_pylist():
        message = f"the model gave no finite vector for window {row['window_index']} at {row['start_time']:g} s"
        failures.append(Failure(row["file"], row["file_id"], -1, "encode", "nonfinite", message))
    encoded = table.drop_columns("window").append_column("embedding", column(vectors))
    return encoded.filter(pa.array(finite)) if failures else encoded, failures
