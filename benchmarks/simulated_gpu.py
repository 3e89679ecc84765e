"""GPU simulated on the CPU, which runs the code for CUDA on machines without a GPU.

``python benchmarks/simulated_gpu.py --input … --output …`` is ``python -m jobs.embed`` on simulated GPUs, for a Ray
that was started with ``num_gpus``. The environment variable FAULTS lists faults as JSON: [number of a GPU, FIRST or
null, message of the error, number of times].
"""

import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from embedding import pipeline
from embedding.encoding.devices import Shape
from embedding.planning.placement import Placement
from embedding.ray_runtime.gpus import own_gpu
from jobs.embed import main

FAULTS = "AVEX_BATCH_SIMULATED_FAULTS"
# Messages of faults that kill the process instead of raising torch's error: at any window, or at a window whose samples
# are all DEADLY.
KILL, KILL_AT_DEADLY = "SIGKILL", "SIGKILL at a deadly window"
DEADLY = 0.5
# Stands for the number of the GPU that is used first.
FIRST = "first"


@dataclass
class Work:
    """Piece of work in a queue, and the event of its end."""

    queue: "list[Work]"
    run: Callable[[], None]
    after: "Sequence[Work]"


@dataclass
class SimulatedGpu:
    """Queues, events and memory of a GPU, on tensors of the CPU.

    Attributes:
        is_late: True if work is executed only when a thread waits for its event, the latest time that CUDA permits;
            False if work is executed at once.
        on_buffer: Called with the shape of each buffer, of the host or the device, before its allocation.
        n_released: Number of calls of ``release_memory``.
    """

    is_late: bool = False
    on_buffer: Callable[[Shape], None] = lambda _: None
    name: str = "simulated GPU"
    is_gpu: bool = True
    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    lock: Any = field(default_factory=threading.Lock)
    n_released: int = 0
    _works: Any = field(default_factory=threading.RLock)

    def host_buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        self.on_buffer(shape)
        # Empty memory might contain the windows of an earlier buffer, which would hide an error in the copies.
        return torch.full(tuple(shape), 77, dtype=dtype)

    buffer = host_buffer

    def queue(self) -> list[Work]:
        return []

    def submit(self, queue: list[Work], work: Callable[[], None], after: Sequence[Work] = ()) -> Work:
        submitted = Work(queue, work, after)
        with self._works:
            queue.append(submitted)
            if not self.is_late:
                self.wait(submitted)
        return submitted

    def wait(self, event: Work) -> None:
        with self._works:
            while event in event.queue:
                first = event.queue[0]
                for earlier in first.after:
                    self.wait(earlier)
                event.queue.pop(0)
                first.run()

    def release_memory(self) -> None:
        self.n_released += 1


def error_of(message: str) -> RuntimeError:
    """Return the error that torch raises with a given message."""
    if message.startswith("CUDA out of memory"):
        return torch.OutOfMemoryError(message)
    is_runtime_error = message.startswith("CUDA error: ") and not message.startswith("CUDA error: CU")
    return torch.AcceleratorError(message) if is_runtime_error else RuntimeError(message)


class SimulatedStage(pipeline.EncodeStage):
    """The job's stage that encodes, on a simulated GPU with faults."""

    faults: tuple[tuple[str | None, str, int], ...] = ()
    folder: str = ""  # of files that mark faults that have happened, because some faults kill the process

    @staticmethod
    def open_gpu(placement: Placement, precisions: Sequence[str]) -> SimulatedGpu:
        return SimulatedGpu()

    def _load(self, placement: Placement, weights: pipeline.SharedWeights) -> Any:
        (number,) = own_gpu().numbers
        encoders: Any = super()._load(placement, weights)
        for encoder in encoders:
            encoder._network = self._with_faults(encoder._network, number)
        return encoders

    def _with_faults(self, network: Any, gpu: str) -> Callable[..., Any]:
        def network_with_faults(windows: torch.Tensor, *mask: torch.Tensor | None) -> Any:
            for faulty_gpu, message, times in self.faults:
                kills = message.startswith(KILL) and (message == KILL or (windows == DEADLY).all(1).any())
                if faulty_gpu not in (None, gpu) and not (faulty_gpu == FIRST and self._is_first(gpu)):
                    continue
                if message.startswith(KILL) and not kills:
                    continue
                if self._is_due(message, times):
                    if kills:
                        self._die()
                    raise error_of(message)
            return network(windows, *mask)

        return network_with_faults

    def _die(self) -> None:
        """Kill the process while it encodes two batches, unless batches are already encoded alone."""
        if not self._tries:
            with self._turns._changed:
                self._turns._changed.wait_for(lambda: len(self._turns.active) == 2, timeout=60)
        os.kill(os.getpid(), signal.SIGKILL)

    def _is_first(self, gpu: str) -> bool:
        """Return True if no other GPU was used in this run before ``gpu``."""
        first = Path(self.folder, FIRST)
        try:
            with first.open("x") as file:
                file.write(gpu)
        except FileExistsError:
            return first.read_text() == gpu
        return True

    def _is_due(self, message: str, times: int) -> bool:
        """Return True if a fault that happens ``times`` in a run happens now."""
        name = re.sub(r"\W+", "-", message)
        for at in range(times):
            try:
                Path(self.folder, f"{name}-{at}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False


def run() -> int:
    """Run the job on simulated GPUs."""
    SimulatedStage.faults = tuple(tuple(fault) for fault in json.loads(os.environ.get(FAULTS, "[]")))
    with tempfile.TemporaryDirectory() as folder:
        SimulatedStage.folder = folder
        pipeline.EncodeStage = SimulatedStage  # type: ignore[misc] — for this process and its workers
        return main()


if __name__ == "__main__":
    sys.exit(run())
