"""Devices on which encoders run: memory, queues of work, and the errors of a GPU.

The encoder is written for an asynchronous device: the host submits work to queues and waits for events. The CPU
executes work at once. Tests use a simulated GPU (``benchmarks/simulated_gpu.py``).
"""

import re
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from embedding.encoding.precision import check_precision

Shape = Sequence[int]
# A point in a queue that is reached when all work submitted before it is finished: CUDA's event. None on a CPU.
Event = Any
Queue = Any

# First NVIDIA driver for each CUDA version that torch is built for (CUDA release notes, table "CUDA Toolkit and
# Corresponding Driver Versions").
MIN_DRIVER = {"12": "525", "13": "580"}
# A CUDA context and the libraries' kernels take about half a gigabyte per process, outside of torch's allocator.
CONTEXT_BYTES = 1 << 29


class GpuUnusableError(RuntimeError):
    """The GPU of this machine cannot be used, for a reason stated in one line; another machine's GPU may work."""


class Device(Protocol):
    """A device as the encoder uses it. A queue of the CUDA device is a CUDA stream.

    Attributes:
        name: Name for reports.
        is_gpu: True if micro-batches need fixed sizes and a warm-up.
        torch_device: Device of the parameters and of ``buffer``.
        lock: Held by a thread while it launches forward passes, so that the queues receive the passes in the order of
            the batches.
    """

    name: str
    is_gpu: bool
    torch_device: torch.device
    lock: threading.Lock

    def host_buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """Allocate memory of the host from which, and to which, queues can copy."""
        ...

    def buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """Allocate memory of the device."""
        ...

    def queue(self) -> Queue:
        """Return a new queue. A queue executes its work in order and does not wait for other queues."""
        ...

    def submit(self, queue: Queue, work: Callable[[], None], after: Sequence[Event] = ()) -> Event:
        """Add ``work`` to a queue.

        Args:
            queue: The queue.
            work: Function that launches the work.
            after: Events that have to be reached before the work starts.

        Returns:
            The event of the end of the work.
        """
        ...

    def wait(self, event: Event) -> None:
        """Block the calling thread until ``event`` is reached."""
        ...

    def release_memory(self) -> None:
        """Return memory that no tensor uses to the device."""
        ...


class Cpu:
    """The CPU, which executes work as soon as it is submitted."""

    name = "cpu"
    is_gpu = False
    torch_device = torch.device("cpu")

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def host_buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """Allocate memory."""
        return torch.empty(*shape, dtype=dtype)

    buffer = host_buffer

    def queue(self) -> Queue:
        """Return None: there is no queue."""
        return None

    def submit(self, queue: Queue, work: Callable[[], None], after: Sequence[Event] = ()) -> Event:
        """Execute ``work`` at once."""
        work()

    def wait(self, event: Event) -> None:
        """Return at once."""

    def release_memory(self) -> None:
        """Do nothing."""


class Cuda:
    """The first NVIDIA GPU that is visible to this process."""

    is_gpu = True

    def __init__(self, precisions: Sequence[str], share: float = 1.0) -> None:
        """Start CUDA in this process.

        Args:
            precisions: Precisions in which the encoders compute.
            share: Part of the GPU's memory that this process may use, above 0; 1 or more for all memory.

        Raises:
            GpuUnusableError: No GPU is visible to this process, or the driver or the GPU is too old for torch.
            RequestError: The GPU cannot compute in one of ``precisions``.
        """
        try:
            torch.cuda.init()
            capability = torch.cuda.get_device_capability()
        except RuntimeError as error:
            if (explanation := _explain_start_error(str(error))) is None:
                raise
            raise GpuUnusableError(explanation) from error
        self.lock = threading.Lock()
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name()
        _check_kernels(self.name, capability)
        for precision in precisions:
            check_precision(precision, self.name, capability)
        if share < 1:
            total = torch.cuda.get_device_properties(self.torch_device).total_memory
            torch.cuda.set_per_process_memory_fraction(max(share / 2, share - CONTEXT_BYTES / total))

    def host_buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """Allocate pinned memory of the host."""
        # Only copies from and to pinned memory are asynchronous. torch.tensor(array, pin_memory=True) always raises
        # (torch 2.11).
        return torch.empty(*shape, dtype=dtype, pin_memory=True)

    def buffer(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """Allocate memory of the GPU."""
        return torch.empty(*shape, dtype=dtype, device=self.torch_device)

    def queue(self) -> Queue:
        """Return a new CUDA stream."""
        return torch.cuda.Stream(self.torch_device)

    def submit(self, queue: Queue, work: Callable[[], None], after: Sequence[Event] = ()) -> Event:
        """Launch ``work`` in the stream after the events; return the event of its end."""
        with torch.cuda.stream(queue):
            for event in after:
                queue.wait_event(event)
            work()
            # blocking=True: a waiting thread sleeps, so that its core is free for decoding.
            done = torch.cuda.Event(blocking=True)
            done.record(queue)
        return done

    def wait(self, event: Event) -> None:
        """Block the calling thread until ``event`` is reached."""
        event.synchronize()

    def release_memory(self) -> None:
        """Return memory that no tensor uses to the GPU."""
        torch.cuda.empty_cache()


def _check_kernels(gpu: str, capability: tuple[int, int]) -> None:
    """Refuse a GPU for which torch has no kernels; its first pass would fail with "no kernel image is available"."""
    built_for = [int(arch.removeprefix("sm_")) for arch in torch.cuda.get_arch_list() if re.fullmatch(r"sm_\d+", arch)]
    if built_for and 10 * capability[0] + capability[1] < min(built_for):
        minimum = min(built_for)
        raise GpuUnusableError(
            f"{gpu} of {socket.gethostname()} has compute capability {capability[0]}.{capability[1]}, and this torch "
            f"({torch.__version__}) is built for {minimum // 10}.{minimum % 10} and newer: use other GPUs, or "
            "--device cpu"
        )


def _explain_start_error(message: str) -> str | None:
    """Return one line with a remedy for a known error of CUDA's start; None for any other error."""
    host, needed = socket.gethostname(), str(torch.version.cuda)
    if found := re.search(r"too old \(found version (\d+)\)", message):
        version = int(found[1])
        return (
            f"the NVIDIA driver of {host} is for CUDA {version // 1000}.{version % 1000 // 10}, and this torch needs "
            f"CUDA {needed}: install driver {MIN_DRIVER.get(needed.partition('.')[0], 'of that version')} or newer, "
            "or use --device cpu"
        )
    if "no NVIDIA driver" in message or "No CUDA GPUs are available" in message:
        return (
            f"{host} shows this process no GPU: install the NVIDIA driver; a container needs NVIDIA's runtime and "
            "NVIDIA_VISIBLE_DEVICES; or use --device cpu"
        )
    return None


# --- errors of a forward pass ------------------------------------------------------------------------------------

# CUDA, cuBLAS, cuDNN and cuFFT report exhausted memory in different words. cuDNN also reports that it cannot find an
# engine, because none of its algorithms has enough memory.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|ALLOC_FAILED|ALLOCATION_FAILED|cudaErrorMemoryAllocation|unable to find an engine"
)
# Bugs of the program, which every GPU would report. torch writes "CUDA error: " also before a status of cuBLAS
# (ATen/cuda/Exceptions.h).
_BUG = re.compile(
    r"INVALID_VALUE|NOT_SUPPORTED|BAD_PARAM|invalid (argument|configuration|device function|resource handle)"
    r"|no kernel image|device-side assert"
)
# Failures of the hardware and of the driver. Afterwards the process cannot use the GPU any more.
_DEVICE_FAILURE = re.compile(
    r"CUDA error|CUDA driver error|CUDA-capable device|CUDA unknown error|Triton Error \[CUDA\]|NVML"
    r"|(CUDNN_STATUS|CUBLAS_STATUS|CUSOLVER_STATUS|CUFFT)_"
    r"(EXECUTION_FAILED|EXEC_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)"
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return True if a pass failed because memory of the device, or pinned memory of the host, is exhausted."""
    return isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def is_device_failure(error: RuntimeError) -> bool:
    """Return True if a pass failed because the device, or its connection to this process, failed."""
    if isinstance(error, GpuUnusableError):
        return True
    if is_out_of_memory(error) or _BUG.search(str(error)):
        return False
    return isinstance(error, torch.AcceleratorError) or _DEVICE_FAILURE.search(str(error)) is not None
