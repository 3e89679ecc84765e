"""Staging buffers, through which windows are copied to a device: one is filled while the device computes another."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from embedding.encoding.devices import Device, Event

# While the device computes the windows of one buffer, the other buffer is filled.
N_BUFFERS = 2


class StagingBuffer:
    """Memory for one micro-batch on the host and on the device.

    Attributes:
        size: Number of windows for which there is memory.
        length: Number of samples per window.
        samples: On the device, float32 ``[size, length]``.
        n_audio: On the device, int64 ``[size]``: number of samples of each window that are audio, not padding.
        copied: Event after which the host's memory may be overwritten; None before the first copy.
        used: Event after which the device's memory may be overwritten; None before the first use.
    """

    def __init__(self, device: Device, size: int, length: int) -> None:
        self.size, self.length = size, length
        self._host_samples = device.host_buffer((size, length), torch.float32)
        self._host_n_audio = device.host_buffer((size,), torch.int64)
        self.samples, self.n_audio = self._host_samples, self._host_n_audio
        if device.is_gpu:
            self.samples = device.buffer((size, length), torch.float32)
            self.n_audio = device.buffer((size,), torch.int64)
        self.copied: Event = None
        self.used: Event = None

    def fill(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], size: int) -> None:
        """Write a micro-batch of ``size`` windows into the host's memory; missing windows are silence.

        Args:
            windows: ``[n, length]``, n at most ``size``.
            n_audio: ``[n]``.
            size: Size of the micro-batch.
        """
        n, length = windows.shape
        # NumPy copies, because the arrays are Arrow's and read-only: torch would warn about tensors that share them.
        self._host_samples[:n].numpy()[...] = windows
        self._host_samples[n:size].zero_()
        self._host_n_audio[:n].numpy()[...] = n_audio
        self._host_n_audio[n:size] = length  # no sample is masked: the mean over padding alone is undefined

    def copy(self, size: int) -> None:
        """Copy the first ``size`` windows to the device."""
        if self.samples is not self._host_samples:
            self.samples[:size].copy_(self._host_samples[:size], non_blocking=True)
            self.n_audio[:size].copy_(self._host_n_audio[:size], non_blocking=True)


class StagingRing:
    """Ring of staging buffers, with a queue of its own for the copies."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._queue = device.queue()
        self._buffers: dict[int, StagingBuffer] = {}
        self._next = 0

    def put(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], size: int) -> StagingBuffer:
        """Copy a micro-batch to the device through the next buffer of the ring.

        Waits until the previous copy from that buffer has read the host's memory.

        Args:
            windows: float32 ``[n, length]``, n at most ``size``.
            n_audio: int64 ``[n]``.
            size: Size of the micro-batch; missing windows are silence.

        Returns:
            The buffer; its event ``copied`` is reached when the windows are on the device.
        """
        buffer = self._next_buffer(size, windows.shape[1])
        if buffer.copied is not None:
            self._device.wait(buffer.copied)
        buffer.fill(windows, n_audio, size)
        used = [] if buffer.used is None else [buffer.used]
        buffer.copied = self._device.submit(self._queue, lambda: buffer.copy(size), after=used)
        return buffer

    def use(self, buffer: StagingBuffer, queue: object, work: Callable[[], None]) -> Event:
        """Submit work that reads a buffer's memory on the device.

        Args:
            buffer: The buffer.
            queue: Queue for the work.
            work: Function that launches the work.

        Returns:
            The event of the end of the work.
        """
        buffer.used = self._device.submit(queue, work, after=[buffer.copied])
        return buffer.used

    def _next_buffer(self, size: int, length: int) -> StagingBuffer:
        """Return the next buffer; allocate it if it does not exist, is too small or has another length."""
        at = self._next
        buffer = self._buffers.get(at)
        if buffer is None or buffer.size < size or buffer.length != length:
            if buffer is not None and buffer.used is not None:
                # torch keeps a tensor's memory only for the queue in which the tensor was allocated, but another queue
                # reads the buffer.
                self._device.wait(buffer.used)
            buffer = self._buffers[at] = StagingBuffer(self._device, size, length)
        self._next = (at + 1) % N_BUFFERS
        return buffer
