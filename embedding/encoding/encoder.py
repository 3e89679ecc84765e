"""Encoder: a loaded model on a device, which turns windows into vectors. It depends on torch, not on Ray."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedding.encoding import micro_batch
from embedding.encoding.classifier import Classifier
from embedding.encoding.devices import Device, Event, is_out_of_memory
from embedding.encoding.layer_outputs import ModelWithLayerOutputs
from embedding.encoding.micro_batch import MicroBatch
from embedding.encoding.model_loading import load
from embedding.encoding.openvino_graph import OpenvinoModel
from embedding.encoding.optimized import Features, OptimizedBeats, OptimizedEfficientNet, optimized_class
from embedding.encoding.precision import DTYPES, float32_products_in
from embedding.encoding.settings import Settings
from embedding.encoding.staging_buffers import StagingBuffer, StagingRing
from embedding.encoding.token_pooling import pool

# Passes per size in the search for the fastest size. The first pass also plans and allocates: the fastest pass counts.
N_TIMED_PASSES = 3


class Encoder:
    """A loaded model on a device.

    Forward passes are launched without waiting for their results: while the device computes one micro-batch, the next
    is copied to the device and the vectors of the previous one are copied back. Two threads may call ``encode`` at the
    same time: the windows of one call are then copied to the device while the vectors of the other become a table.

    Attributes:
        settings: Settings that determine the vectors.
    """

    def __init__(self, settings: Settings, device: Device, n_threads: int, *, fused_bias: bool = False) -> None:
        """Load the weights onto ``device``.

        Args:
            settings: Settings that determine the vectors.
            device: Device that computes.
            n_threads: Threads of the CPU that torch may use.
            fused_bias: Compute BEATs' position bias inside the attention kernel of a GPU. Off in the job, because it
                was never measured on a GPU.

        Raises:
            RequestError: The weights cannot be loaded or do not fit the model.
        """
        torch.set_num_threads(n_threads)
        self.settings = settings
        self._device = device
        self._network = _load_network(settings, device, n_threads, fused_bias=fused_bias)
        self._classifier = None
        if settings.label_map is not None:
            classifier = Classifier(settings.model, settings.checkpoint, settings.label_map)
            self._classifier = classifier.to(device.torch_device)
        self._staging = StagingRing(device)
        self._compute_queue, self._return_queue = device.queue(), device.queue()
        cpu_size = micro_batch.size_on_cpu(settings.model.architecture)
        self._micro_batch = MicroBatch(micro_batch.FIRST_ON_GPU if device.is_gpu else cpu_size)

    def warm_up(self, batch_size: int) -> float:
        """Find the fastest micro-batch for batches of ``batch_size`` windows, and compute one pass of each size.

        On a GPU the first pass of each shape plans, compiles and allocates. A CPU needs no warm-up.

        Returns:
            Time of the warm-up in seconds.
        """
        began = time.perf_counter()
        if self._device.is_gpu:
            length = self.settings.windows.length
            noise = np.random.default_rng(0).normal(0, 0.1, (batch_size, length)).astype(np.float32)
            fastest = micro_batch.find_fastest_size(lambda size: self._time_pass(noise[:size]), batch_size)
            self._micro_batch = MicroBatch(fastest)
            for size in self._micro_batch.sizes:
                self.encode(noise[:size], np.full(size, length))
                if self.settings.mask_padding:
                    self.encode(noise[:size], np.full(size, length // 2))
            self._device.release_memory()
        return time.perf_counter() - began

    def _time_pass(self, windows: NDArray[np.float32]) -> float | None:
        """Return the time of a pass of all ``windows`` in seconds; None if memory runs out."""
        n_audio = np.full(len(windows), windows.shape[1])
        self._micro_batch = MicroBatch(len(windows))
        times_s = []
        for _ in range(N_TIMED_PASSES):
            began = time.perf_counter()
            self.encode(windows, n_audio)
            times_s.append(time.perf_counter() - began)
        return min(times_s) if self._micro_batch.size == len(windows) else None

    def encode(
        self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, NDArray[Any]]:
        """Compute the outputs of windows.

        Args:
            windows: float32 ``[n, length]``.
            n_audio: ``[n]``, number of samples of each window that are audio, not padding; used by ``mask_padding``.
            stopping: Checked before each pass; once it returns True, the remaining windows are not encoded.

        Returns:
            Outputs by name: ``embedding``, the pooled vectors, float32 ``[n, dim]``; the pooled vectors of each stored
            inner layer, under the layer's name; and with predictions ``labels``, the numbers of the most likely labels,
            and ``scores``, both ``[n, k]``.

        Raises:
            RuntimeError: Memory is too small for one window, or the device failed (``devices.is_device_failure``).
        """
        passes: list[_Pass] = []
        with self._device.lock:
            start = 0
            while start < len(windows) and not stopping():
                size = self._micro_batch.size_for(len(windows) - start)
                part = slice(start, start + size)
                try:
                    passes.append(self._launch(windows[part], n_audio[part], size))
                except RuntimeError as error:
                    if not is_out_of_memory(error) or size == 1:
                        raise
                else:
                    start += size
                    if size == self._micro_batch.size:
                        self._micro_batch.count_pass()
                    continue
                # Outside of the handler, in which the error's traceback still references the tensors of the pass.
                self._micro_batch.shrink()
                self._device.release_memory()
        if not passes:
            return self._empty_outputs()
        parts = [launched.outputs(self._device) for launched in passes]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _empty_outputs(self) -> dict[str, NDArray[Any]]:
        """Return outputs of no window in the right shapes, because tables with other columns cannot be concatenated."""
        traits, label_map = self.settings.model.traits, self.settings.label_map
        dims = {"embedding": traits.dim}
        if isinstance(self._network, ModelWithLayerOutputs):
            layer_dims = (traits.layer_dims[layer] for layer in self.settings.layers)
            dims |= zip(self._network.names, layer_dims, strict=True)
        outputs: dict[str, NDArray[Any]] = {name: np.empty((0, dim), np.float32) for name, dim in dims.items()}
        if label_map is not None:
            k = label_map.k
            outputs |= {"labels": np.empty((0, k), np.int64), "scores": np.empty((0, k), np.float32)}
        return outputs

    def _launch(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], size: int) -> "_Pass":
        """Launch a pass of ``size`` windows; windows beyond ``windows`` are silence."""
        buffer = self._staging.put(windows, n_audio, size)
        masked = self.settings.mask_padding and bool((n_audio < windows.shape[1]).any())
        launched = _Pass(len(windows))

        def compute() -> None:
            with torch.inference_mode(), float32_products_in(self.settings.precision):
                launched.on_device = self._forward(buffer, size, masked=masked)

        def copy_back() -> None:
            for name, values in launched.on_device.items():
                launched.on_host[name] = self._device.host_buffer(values.shape, values.dtype)
                launched.on_host[name].copy_(values, non_blocking=True)

        computed = self._staging.use(buffer, self._compute_queue, compute)
        launched.done = self._device.submit(self._return_queue, copy_back, after=[computed])
        return launched

    def _forward(self, buffer: StagingBuffer, size: int, *, masked: bool) -> dict[str, torch.Tensor]:
        x = buffer.samples[:size]
        mask = None
        if masked:
            mask = torch.arange(x.shape[1], device=x.device) >= buffer.n_audio[:size, None]
        if isinstance(self._network, ModelWithLayerOutputs):
            (features, layers), padded = self._network(x), None
        else:
            (features, padded), layers = self._network(x, mask), {}
        outputs = {
            name: pool(unpooled.float(), self.settings.pooling, padded)
            for name, unpooled in {"embedding": features, **layers}.items()
        }
        if self._classifier is not None:
            outputs["labels"], outputs["scores"] = self._classifier(features.float(), padded)
        return outputs


class _Pass:
    """One launched micro-batch.

    The device's tensors are kept until they are copied to the host: torch keeps their memory only for the queue in
    which they were allocated, and would reuse it while another queue copies them.
    """

    def __init__(self, n_windows: int) -> None:
        self._n_windows = n_windows
        self.on_device: dict[str, torch.Tensor] = {}
        self.on_host: dict[str, torch.Tensor] = {}
        self.done: Event = None

    def outputs(self, device: Device) -> dict[str, NDArray[Any]]:
        """Wait for the outputs, and drop those of the silence that fills the micro-batch."""
        device.wait(self.done)
        return {name: values[: self._n_windows].numpy() for name, values in self.on_host.items()}


def _load_network(
    settings: Settings, device: Device, n_threads: int, *, fused_bias: bool
) -> ModelWithLayerOutputs | Callable[[torch.Tensor, torch.Tensor | None], Features]:
    """Load the model; the result takes windows and the mask of their padding, and returns unpooled features."""
    module = load(settings.model, settings.checkpoint)
    dtype = DTYPES[settings.precision]
    if settings.layers:
        return ModelWithLayerOutputs(module.to(device.torch_device), settings.layers, dtype)
    model_class = optimized_class(module, settings.model.architecture)
    if not device.is_gpu and issubclass(model_class, OptimizedBeats | OptimizedEfficientNet):
        return OpenvinoModel(model_class(module, torch.float32).eval(), settings.precision, n_threads)
    is_beats = model_class is OptimizedBeats
    model = model_class(module, dtype, fused_bias=fused_bias) if is_beats else model_class(module, dtype)
    return model.eval().to(device.torch_device)
