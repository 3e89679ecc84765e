"""Devices that encoders run on: memory, queues of work, and the errors of a GPU.

The encoder is written for a device that works on its own: the host submits work to queues and waits for events. The CPU
does each piece of work at once. Tests inject a simulated GPU (``benchmarks/simulated_gpu.py``).
"""

import re
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from embedding.encoding.precision import refuse_unable

Shape = Sequence[int]
# A point in a queue: everything submitted before it is done. CUDA's event; None where work is done at once.
Event = Any
Queue = Any

# The first NVIDIA driver for each CUDA version that torch is built for (CUDA release notes, table "CUDA Toolkit and
# Corresponding Driver Versions").
LEAST_DRIVER = {"12": "525", "13": "580"}
# A CUDA context and the libraries' kernels lie outside of torch's allocator: about half a gigabyte for each process.
CONTEXT_BYTES = 1 << 29


class GpuUnusableError(RuntimeError):
    """A GPU that this process cannot start on, explained in one line; another machine's may do."""


class Device(Protocol):
    """A device as the encoder uses it. A queue of the CUDA device is a CUDA stream.

    Attributes:
        name: for reports.
        is_gpu: whether micro-batches have fixed sizes and are warmed up.
        torch_device: device of parameters and of ``buffer``.
        lock: held by a thread while it launches passes: their order in the queues is the order of the batches.
    """

    name: str
    is_gpu: bool
    torch_device: torch.device
    lock: threading.Lock

    def host_buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the host that queues can copy from and to."""
        ...

    def buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the device."""
        ...

    def queue(self) -> Queue:
        """Return a new queue. Work of one queue is done in order; queues do not wait for each other."""
        ...

    def submit(self, queue: Queue, work: Callable[[], None], after: Sequence[Event] = ()) -> Event:
        """Add ``work`` to ``queue``, to begin once all events in ``after`` have come; return the event of its end."""
        ...

    def wait(self, event: Event) -> None:
        """Block the calling thread until ``event`` has come."""
        ...

    def release_memory(self) -> None:
        """Give memory that no tensor uses back to the device."""
        ...


class Cpu:
    """The processor, which does work as soon as it is submitted."""

    name = "cpu"
    is_gpu = False
    torch_device = torch.device("cpu")

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def host_buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype)

    buffer = host_buffer

    def queue(self) -> Queue:
        return None

    def submit(self, queue: Queue, work: Callable[[], None], after: Sequence[Event] = ()) -> Event:
        work()

    def wait(self, event: Event) -> None:
        pass

    def release_memory(self) -> None:
        pass


class Cuda:
    """The first NVIDIA GPU that this process sees."""

    is_gpu = True

    def __init__(self, precisions: Sequence[str], share: float = 1.0) -> None:
        """Start CUDA in this process.

        Args:
            precisions: the precisions that the encoders compute in.
            share: part of the GPU's memory that this process may take, above 0; 1 and more: all of it.

        Raises:
            GpuUnusableError: this process sees no GPU, or torch cannot use the driver or the GPU, which are too old.
            RequestError: the GPU cannot compute in one of ``precisions``.
        """
        try:
            torch.cuda.init()
            capability = torch.cuda.get_device_capability()
        except RuntimeError as error:
            if (explained := _start_explained(str(error))) is None:
                raise
            raise GpuUnusableError(explained) from error
        self.lock = threading.Lock()
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name()
        _refuse_too_old(self.name, capability)
        for precision in precisions:
            refuse_unable(precision, self.name, capability)
        if share < 1:
            total = torch.cuda.get_device_properties(self.torch_device).total_memory
            torch.cuda.set_per_process_memory_fraction(max(share / 2, share - CONTEXT_BYTES / total))

    def host_buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        # Pinned, or a copy would not be asynchronous. torch.tensor(array, pin_memory=True) always raises (torch 2.11).
        return torch.empty(*shape, dtype=dtype, pin_memory=True)

    def buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=self.torch_device)

    def queue(self) -> Queue:
        return torch.cuda.Stream(self.torch_device)

    def submit(self, queue: Queue, work: Callable[[], None], after: Sequence[Event] = ()) -> Event:
        with torch.cuda.stream(queue):
            for event in after:
                queue.wait_event(event)
            work()
            # Blocking: a thread that waits sleeps, and its core goes on decoding.
            done = torch.cuda.Event(blocking=True)
            done.record(queue)
        return done

    def wait(self, event: Event) -> None:
        event.synchronize()

    def release_memory(self) -> None:
        torch.cuda.empty_cache()


def open_device(kind: str, precisions: Sequence[str], share: float = 1.0) -> Device:
    """Return the device that encoders of this process run on.

    Args:
        kind: ``cpu`` or ``cuda``.
        precisions: the precisions that the encoders compute in.
        share: part of a GPU that this process may take.

    Raises:
        GpuUnusableError: there is no such device here, or it is too old.
        RequestError: the device cannot compute in one of ``precisions``.
    """
    return Cuda(precisions, share) if kind == "cuda" else Cpu()


def _refuse_too_old(gpu: str, capability: tuple[int, int]) -> None:
    """Refuse a GPU for which torch has no kernels: its first pass would end in "no kernel image is available"."""
    built_for = [int(arch.removeprefix("sm_")) for arch in torch.cuda.get_arch_list() if re.fullmatch(r"sm_\d+", arch)]
    if built_for and 10 * capability[0] + capability[1] < min(built_for):
        least = min(built_for)
        raise GpuUnusableError(
            f"{gpu} of {socket.gethostname()} has compute capability {capability[0]}.{capability[1]}, and this torch "
            f"({torch.__version__}) is built for {least // 10}.{least % 10} and newer: use other GPUs, or --device cpu"
        )


def _start_explained(message: str) -> str | None:
    """Return one line for an error of CUDA's start that a person can mend; None for any other error."""
    host, needed = socket.gethostname(), str(torch.version.cuda)
    if found := re.search(r"too old \(found version (\d+)\)", message):
        version = int(found[1])
        return (
            f"the NVIDIA driver of {host} is for CUDA {version // 1000}.{version % 1000 // 10}, and this torch needs "
            f"CUDA {needed}: install driver {LEAST_DRIVER.get(needed.partition('.')[0], 'of that version')} or newer, "
            "or use --device cpu"
        )
    if "no NVIDIA driver" in message or "No CUDA GPUs are available" in message:
        return (
            f"{host} shows this process no GPU: install the NVIDIA driver; a container needs NVIDIA's runtime and "
            "NVIDIA_VISIBLE_DEVICES; or use --device cpu"
        )
    return None


# --- errors of a pass --------------------------------------------------------------------------------------------

# CUDA, cuBLAS, cuDNN and cuFFT each report memory that ran out in words of their own; cuDNN, which then has no room for
# any of its algorithms, also says that it cannot find an engine.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|ALLOC_FAILED|ALLOCATION_FAILED|cudaErrorMemoryAllocation|unable to find an engine"
)
# Mistakes of a program, which every GPU would report. torch writes "CUDA error: " before the status of cuBLAS, too
# (ATen/cuda/Exceptions.h).
_BUG = re.compile(
    r"INVALID_VALUE|NOT_SUPPORTED|BAD_PARAM|invalid (argument|configuration|device function|resource handle)"
    r"|no kernel image|device-side assert"
)
# Hardware faults and faults of the driver. Afterwards the process cannot use the GPU any more.
_BROKEN = re.compile(
    r"CUDA error|CUDA driver error|CUDA-capable device|CUDA unknown error|Triton Error \[CUDA\]|NVML"
    r"|(CUDNN_STATUS|CUBLAS_STATUS|CUSOLVER_STATUS|CUFFT)_"
    r"(EXECUTION_FAILED|EXEC_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)"
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a pass failed for want of memory, of the device or pinned memory of the host."""
    return isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def is_broken(error: RuntimeError) -> bool:
    """Return whether a pass failed because the device did, or its connection to this process."""
    if isinstance(error, GpuUnusableError):
        return True
    if is_out_of_memory(error) or _BUG.search(str(error)):
        return False
    return isinstance(error, torch.AcceleratorError) or _BROKEN.search(str(error)) is not None
