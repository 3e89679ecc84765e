"""The way of windows from the host to a device: reusable buffers that are filled while the device computes."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from embedding.encoding.devices import Device, Event

# While the device computes from one slot, the other one is filled.
N_SLOTS = 2


class Slot:
    """Room for one micro-batch on the host and on the device.

    Attributes:
        samples: on the device, float32 ``[size, length]``.
        n_audio: on the device, int64 ``[size]``: number of samples of each window that are audio, not padding.
    """

    def __init__(self, device: Device, size: int, length: int) -> None:
        self.size, self.length = size, length
        self._host_samples = device.host_buffer((size, length), torch.float32)
        self._host_n_audio = device.host_buffer((size,), torch.int64)
        self.samples, self.n_audio = self._host_samples, self._host_n_audio
        if device.is_gpu:
            self.samples = device.buffer((size, length), torch.float32)
            self.n_audio = device.buffer((size,), torch.int64)
        self.copied: Event = None  # the host's buffers have been read
        self.used: Event = None  # the device's buffers have been read

    def fill(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], size: int) -> None:
        """Write ``windows`` (``[n, length]``) into the host's buffers, and silence up to ``size`` windows."""
        n, length = windows.shape
        # The arrays are Arrow's and read-only, of which torch would warn; they are only read here.
        self._host_samples[:n].numpy()[...] = windows
        self._host_samples[n:size].zero_()
        self._host_n_audio[:n].numpy()[...] = n_audio
        self._host_n_audio[n:size] = length  # nothing to mask: a window of padding alone would have no mean

    def copy(self, size: int) -> None:
        """Copy the first ``size`` windows to the device."""
        if self.samples is not self._host_samples:
            self.samples[:size].copy_(self._host_samples[:size], non_blocking=True)
            self.n_audio[:size].copy_(self._host_n_audio[:size], non_blocking=True)


class Staging:
    """Slots taken in turn, and a queue of their own for the copies."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._queue = device.queue()
        self._slots: dict[int, Slot] = {}
        self._next = 0

    def put(self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], size: int) -> Slot:
        """Bring windows to the device; return the slot, whose ``copied`` says when they are there.

        Waits until the copy before the last one has read its buffer.

        Args:
            windows: float32 ``[n, length]``, n at most ``size``.
            n_audio: int64 ``[n]``.
            size: of the micro-batch; what is missing is silence.
        """
        slot = self._slot(size, windows.shape[1])
        if slot.copied is not None:
            self._device.wait(slot.copied)
        slot.fill(windows, n_audio, size)
        used = [] if slot.used is None else [slot.used]
        slot.copied = self._device.submit(self._queue, lambda: slot.copy(size), after=used)
        return slot

    def use(self, slot: Slot, queue: object, work: Callable[[], None]) -> Event:
        """Submit ``work`` that reads the slot's buffers on the device; return the event of its end."""
        slot.used = self._device.submit(queue, work, after=[slot.copied])
        return slot.used

    def _slot(self, size: int, length: int) -> Slot:
        """The next slot; it is made when it is first needed, and anew where it is too small."""
        at = self._next
        slot = self._slots.get(at)
        if slot is None or slot.size < size or slot.length != length:
            if slot is not None and slot.used is not None:
                # torch keeps memory of the device for the queue alone that it was made in, and ours is read by others.
                self._device.wait(slot.used)
            slot = self._slots[at] = Slot(self._device, size, length)
        self._next = (at + 1) % N_SLOTS
        return slot
