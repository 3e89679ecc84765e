"""Windows to vectors: device, precision, micro-batch, pooling. Knows torch, knows nothing of Ray."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from embedding.decode import Failure
from embedding.models import load
from embedding.settings import Settings

# Windows per forward pass. On CPUs larger ones only thrash the caches; see docs/decisions.md, "Encoder".
MICRO_BATCH = {"cpu": 16, "cuda": 64}


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
        self._micro_batch = MICRO_BATCH[device]
        self._module: Any = load(settings.model, settings.checkpoint).to(self._device)

    def encode(
        self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], stopping: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """Pooled vectors, ``[n, dim]`` float32, of ``windows`` (``[n, length]``).

        Args:
            n_audio: per window, how many of its samples are audio rather than padding; only ``mask_padding`` looks.
            stopping: asked before each micro-batch; once it says so, the vectors are those of the first windows only.
        """
        vectors = np.empty((len(windows), self.settings.model.traits.dim), dtype=np.float32)
        start = 0
        while start < len(windows) and not stopping():
            part = slice(start, start + self._micro_batch)
            try:
                vectors[part] = self._forward(windows[part], n_audio[part])
            except torch.OutOfMemoryError:
                if self._micro_batch == 1:
                    raise
                self._micro_batch //= 2
                torch.cuda.empty_cache()
            else:
                start += self._micro_batch
        return vectors[:start]

    @torch.inference_mode()
    def _forward(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64]) -> NDArray[np.float32]:
        x = torch.tensor(windows, device=self._device)
        mask = None
        if self.settings.mask_padding and (n_audio < x.shape[1]).any():
            audio = torch.as_tensor(n_audio, device=self._device)
            mask = torch.arange(x.shape[1], device=self._device) >= audio[:, None]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            if mask is None:
                features, padded = self._module(x), None
            else:
                # avex's wrapper drops the token mask its backbone returns, and a mean over tokens needs it.
                features, padded = self._module.backbone(self._module.process_audio(x), mask)
        return pool(features.float(), self.settings.pooling, padded).cpu().numpy()


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
    column = table["window"].combine_chunks()
    samples = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), spec.length)
    n_audio = spec.audio_samples(table["start_time"].to_numpy(), table["end_time"].to_numpy())
    vectors = encoder.encode(samples, n_audio, stopping)
    table = table.slice(0, len(vectors))
    finite = np.isfinite(vectors).all(axis=1)
    failures = []
    for row in table.drop_columns("window").filter(pa.array(~finite)).to_pylist():
        message = f"the model gave no finite vector for window {row['window_index']} at {row['start_time']:g} s"
        failures.append(Failure(row["file"], row["file_id"], -1, "encode", "nonfinite", message))
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    encoded = table.drop_columns("window").append_column("embedding", embedding)
    return encoded.filter(pa.array(finite)) if failures else encoded, failures
