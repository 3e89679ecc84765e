"""Windows to vectors: a loaded model on a device. Knows torch, knows nothing of Ray."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedding.encoding import micro_batch
from embedding.encoding.classifier import Classifier
from embedding.encoding.devices import Device, Event, is_out_of_memory
from embedding.encoding.layer_outputs import Layered
from embedding.encoding.micro_batch import MicroBatch
from embedding.encoding.models import import_only_what, load
from embedding.encoding.openvino_graph import Compiled
from embedding.encoding.optimized import Features, OptimizedBeats, OptimizedEfficientNet, optimized_class
from embedding.encoding.precision import DTYPES, arithmetic
from embedding.encoding.settings import Settings
from embedding.encoding.staging_buffers import Slot, Staging
from embedding.encoding.token_pooling import pool

# Passes of a size while the fastest one is found. The first one also plans and allocates: the fastest counts.
TRIES = 3


class Encoder:
    """A loaded model on a device.

    Passes are launched, not waited for: while the device computes one, the next is copied to it, and vectors of the
    one before come back. Two threads may call ``encode`` at once; the second one's windows are then on their way to the
    device while the first one's vectors are turned into a table.
    """

    def __init__(self, settings: Settings, device: Device, n_threads: int, *, fused_bias: bool = False) -> None:
        """Load the weights onto ``device``.

        Args:
            settings: model, checkpoint, precision and what else decides the vectors.
            device: where to compute.
            n_threads: threads of the CPU that torch may use.
            fused_bias: compute BEATs' position bias inside the attention kernel of a GPU. Never measured on one, so it
                is off in the job.

        Raises:
            RequestError: the weights cannot be had or do not fit.
        """
        torch.set_num_threads(n_threads)
        self.settings = settings
        self._device = device
        self._features = _features(settings, device, n_threads, fused_bias=fused_bias)
        self._classifier = None
        if settings.labels is not None:
            classifier = Classifier(settings.model, settings.checkpoint, settings.labels)
            self._classifier = classifier.to(device.torch_device)
        self._staging = Staging(device)
        self._computing, self._returning = device.queue(), device.queue()
        first = micro_batch.FIRST_ON_GPU if device.is_gpu else micro_batch.on_cpu(settings.model.architecture)
        self._micro_batch = MicroBatch(first)

    def warm_up(self, batch_size: int) -> float:
        """Find the fastest micro-batch for batches of ``batch_size`` windows, and let each size pass once.

        On a GPU the first pass of each shape plans, compiles and allocates. A CPU has nothing to warm up.

        Returns:
            Seconds that this took.
        """
        began = time.perf_counter()
        if self._device.is_gpu:
            length = self.settings.windows.length
            noise = np.random.default_rng(0).normal(0, 0.1, (batch_size, length)).astype(np.float32)
            self._micro_batch = MicroBatch(micro_batch.fastest(lambda size: self._seconds(noise[:size]), batch_size))
            for size in self._micro_batch.sizes:
                self.encode(noise[:size], np.full(size, length))
                if self.settings.mask_padding:
                    self.encode(noise[:size], np.full(size, length // 2))
            self._device.release_memory()
        return time.perf_counter() - began

    def _seconds(self, windows: NDArray[np.float32]) -> float | None:
        """Time of a pass of as many windows; None if memory runs out."""
        n_audio = np.full(len(windows), windows.shape[1])
        self._micro_batch = MicroBatch(len(windows))
        times = []
        for _ in range(TRIES):
            began = time.perf_counter()
            self.encode(windows, n_audio)
            times.append(time.perf_counter() - began)
        return min(times) if self._micro_batch.size == len(windows) else None

    def encode(
        self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, NDArray[Any]]:
        """Return the vectors of windows, by the name of what they are.

        Args:
            windows: float32 ``[n, length]``.
            n_audio: ``[n]``, how many samples of each window are audio rather than padding; read by ``mask_padding``.
            stopping: asked before each pass; once it is true, only the windows before are encoded.

        Returns:
            ``embedding``: pooled vectors, float32 ``[n, dim]``; the same for each inner layer that is asked for, under
            its name. With predictions also ``labels``, the numbers of the likeliest, and ``scores``, both ``[n, k]``.

        Raises:
            RuntimeError: memory did not suffice for one window, or the device failed (``devices.is_broken``).
        """
        passes: list[_Pass] = []
        with self._device.lock:
            start = 0
            while start < len(windows) and not stopping():
                size = self._micro_batch.fitting(len(windows) - start)
                part = slice(start, start + size)
                try:
                    passes.append(self._launch(windows[part], n_audio[part], size))
                except RuntimeError as error:
                    if not is_out_of_memory(error) or size == 1:
                        raise
                else:
                    start += size
                    if size == self._micro_batch.size:
                        self._micro_batch.passed()
                    continue
                # Not in the handler: there the error's traceback still holds the tensors of the pass.
                self._micro_batch.ran_out()
                self._device.release_memory()
        if not passes:
            return self._of_no_window()
        parts = [each.columns(self._device) for each in passes]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _of_no_window(self) -> dict[str, NDArray[Any]]:
        """Return empty columns of the right shapes, because a table that lacks some cannot be joined with the next."""
        traits, labels = self.settings.model.traits, self.settings.labels
        dims = {"embedding": traits.dim}
        if isinstance(self._features, Layered):
            inner = (traits.layer_dims[layer] for layer in self.settings.layers)
            dims |= zip(self._features.names, inner, strict=True)
        columns: dict[str, NDArray[Any]] = {name: np.empty((0, dim), np.float32) for name, dim in dims.items()}
        if labels is not None:
            columns |= {"labels": np.empty((0, labels.k), np.int64), "scores": np.empty((0, labels.k), np.float32)}
        return columns

    def _launch(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], size: int) -> "_Pass":
        """Launch one pass of ``size`` windows, of which the last ones may be silence."""
        slot = self._staging.put(windows, n_audio, size)
        masked = self.settings.mask_padding and bool((n_audio < windows.shape[1]).any())
        launched = _Pass(len(windows))

        def compute() -> None:
            with torch.inference_mode(), arithmetic(self.settings.precision):
                launched.on_device = self._forward(slot, size, masked=masked)

        def bring_back() -> None:
            for name, rows in launched.on_device.items():
                launched.on_host[name] = self._device.host_buffer(rows.shape, rows.dtype)
                launched.on_host[name].copy_(rows, non_blocking=True)

        computed = self._staging.use(slot, self._computing, compute)
        launched.done = self._device.submit(self._returning, bring_back, after=[computed])
        return launched

    def _forward(self, slot: Slot, size: int, *, masked: bool) -> dict[str, torch.Tensor]:
        x = slot.samples[:size]
        mask = None
        if masked:
            mask = torch.arange(x.shape[1], device=x.device) >= slot.n_audio[:size, None]
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


class _Pass:
    """One micro-batch on its way.

    The device's tensors are kept until they have been copied: torch knows only of the queue that they were made in, and
    would give their memory away.
    """

    def __init__(self, n_windows: int) -> None:
        self._n_windows = n_windows
        self.on_device: dict[str, torch.Tensor] = {}
        self.on_host: dict[str, torch.Tensor] = {}
        self.done: Event = None

    def columns(self, device: Device) -> dict[str, NDArray[Any]]:
        """Wait for the vectors; leave out those of the silence that filled the micro-batch up."""
        device.wait(self.done)
        return {name: rows[: self._n_windows].numpy() for name, rows in self.on_host.items()}


def _features(
    settings: Settings, device: Device, n_threads: int, *, fused_bias: bool
) -> Layered | Callable[[torch.Tensor, torch.Tensor | None], Features]:
    """What turns windows, and the mask of their padding, into features."""
    module = load(settings.model, settings.checkpoint)
    dtype = DTYPES[settings.precision]
    if settings.layers:
        return Layered(module.to(device.torch_device), settings.layers, dtype)
    kind = optimized_class(module, settings.model.architecture)
    if not device.is_gpu and issubclass(kind, OptimizedBeats | OptimizedEfficientNet):
        return Compiled(kind(module, torch.float32).eval(), settings.precision, n_threads)
    arranged = kind(module, dtype, fused_bias=fused_bias) if kind is OptimizedBeats else kind(module, dtype)
    return arranged.eval().to(device.torch_device)


def load_encoders(targets: Sequence[Settings], device: Device, n_threads: int) -> list[Encoder]:
    """Return one encoder for each target of a run, in one process.

    Raises:
        RequestError: weights that cannot be had or do not fit.
    """
    import_only_what({settings.model.architecture for settings in targets})
    return [Encoder(settings, device, n_threads) for settings in targets]
