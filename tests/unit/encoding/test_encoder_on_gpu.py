"""Encoder on a simulated GPU: order of the copies, shapes, precision, and memory that runs out."""

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedding.encoding.devices import Cpu, Device, GpuUnusableError, is_device_failure, is_out_of_memory
from embedding.encoding.encoder import Encoder
from embedding.encoding.micro_batch import MicroBatch
from embedding.encoding.staging_buffers import StagingBuffer, StagingRing
from simulated_gpu import SimulatedGpu
from tests.support.encoding import encode, make_encoder, relative_error, smallest_cosine, tone_windows
from tests.support.models import BEATS, EFFICIENTNET

MODELS = [BEATS, EFFICIENTNET]


@pytest.fixture(scope="module")
def encoder_of(shallow_checkpoints: dict[str, Path]) -> Callable[..., Encoder]:
    def load(model: str, device: Device, **options: object) -> Encoder:
        return make_encoder(shallow_checkpoints[model], model, device, **options)

    return load


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", [{}, {"pooling": "max"}, {"layers": "0,-1"}], ids=str)
def test_vectors_equal_those_of_a_cpu(
    model: str, options: dict[str, object], is_late: bool, encoder_of: Callable[..., Encoder]
) -> None:
    windows = tone_windows(11)
    expected = encode(encoder_of(model, Cpu(), **options), windows)
    encoder = encoder_of(model, SimulatedGpu(is_late=is_late), **options)
    encoder._micro_batch = MicroBatch(4)
    outputs = encode(encoder, windows)
    assert outputs.keys() == expected.keys()
    for name, values in outputs.items():
        assert values.shape == expected[name].shape
        assert relative_error(values, expected[name]) <= 1e-5, name


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_vectors_of_reduced_precision_point_in_the_direction_of_fp32_vectors(
    model: str, precision: str, encoder_of: Callable[..., Encoder]
) -> None:
    windows = tone_windows(5)
    exact = encode(encoder_of(model, Cpu()), windows)["embedding"]
    coarse = encode(encoder_of(model, SimulatedGpu(), precision=precision), windows)["embedding"]
    assert coarse.dtype == np.float32
    assert smallest_cosine(coarse, exact) >= 0.999
    assert relative_error(coarse, exact) > 1e-6


def test_vectors_of_masked_windows_equal_those_of_a_cpu(encoder_of: Callable[..., Encoder]) -> None:
    n_audio = np.array([16_000, 9_600, 6_400, 16_000, 3_200])
    windows = np.where(np.arange(16_000) < n_audio[:, None], tone_windows(5), 0).astype(np.float32)
    expected = encoder_of(BEATS, Cpu(), mask_padding=True).encode(windows, n_audio)["embedding"]
    encoder = encoder_of(BEATS, SimulatedGpu(is_late=True), mask_padding=True)
    encoder._micro_batch = MicroBatch(4)
    assert relative_error(encoder.encode(windows, n_audio)["embedding"], expected) <= 1e-5


# --- copies -----------------------------------------------------------------------------------------------------


class SumNetwork:
    """Stand-in for a network whose feature is the sum of a window, which shows whether the right window was read."""

    def __call__(self, windows: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        return windows.sum(1)[:, None, None].expand(-1, 1, 1280), None


@pytest.fixture
def summing_encoder(encoder_of: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Encoder]:
    monkeypatch.setattr("embedding.encoding.encoder._load_network", lambda *_, **__: SumNetwork())

    def make(device: SimulatedGpu, **options: object) -> Encoder:
        encoder = encoder_of(EFFICIENTNET, device, **options)
        encoder._micro_batch = MicroBatch(4)
        return encoder

    return make


def numbered_windows(n: int) -> np.ndarray:
    return np.repeat(np.arange(n, dtype=np.float32)[:, None], 100, axis=1)


def sums(encoder: Encoder, windows: np.ndarray) -> list[float]:
    return encode(encoder, windows)["embedding"][:, 0].tolist()


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
def test_a_buffer_is_not_overwritten_before_it_is_read(is_late: bool, summing_encoder: Callable[..., Encoder]) -> None:
    windows = numbered_windows(30)
    encoder = summing_encoder(SimulatedGpu(is_late=is_late))
    assert sums(encoder, windows) == (windows.sum(1)).tolist()
    assert sums(encoder, windows[::-1]) == (windows[::-1].sum(1)).tolist()
    assert len(encoder._staging._buffers) == 2


@pytest.mark.parametrize("event", ["copied", "used"])
def test_a_buffer_that_is_overwritten_too_early_changes_vectors_of_the_simulated_gpu(
    event: str, summing_encoder: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows that the test above can fail."""
    put = StagingRing.put

    def put_without_waiting(self: StagingRing, windows: Any, n_audio: Any, size: int) -> StagingBuffer:
        for buffer in self._buffers.values():
            setattr(buffer, event, None)
        return put(self, windows, n_audio, size)

    monkeypatch.setattr(StagingRing, "put", put_without_waiting)
    windows = numbered_windows(30)
    assert sums(summing_encoder(SimulatedGpu(is_late=True)), windows) != (windows.sum(1)).tolist()


def test_two_concurrent_threads_receive_the_vectors_of_their_own_windows(
    summing_encoder: Callable[..., Encoder],
) -> None:
    encoder = summing_encoder(SimulatedGpu(is_late=True))
    batches = [numbered_windows(n)[::-1] for n in range(5, 35)]
    results: dict[int, list[float]] = {}

    def work(first: int) -> None:
        for i in range(first, len(batches), 2):
            results[i] = sums(encoder, batches[i])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(len(batches))] == [windows.sum(1).tolist() for windows in batches]


def test_windows_of_another_length_are_encoded_correctly(summing_encoder: Callable[..., Encoder]) -> None:
    encoder = summing_encoder(SimulatedGpu(is_late=True))
    for length in (100, 50, 100):
        windows = numbered_windows(9)[:, :length]
        assert sums(encoder, windows) == windows.sum(1).tolist()


def test_a_buffer_of_the_device_is_not_released_while_it_is_read() -> None:
    """Otherwise torch would reuse the memory in the queue in which it was allocated, while another queue reads it."""
    device = SimulatedGpu(is_late=True)
    staging, queue = StagingRing(device), device.queue()
    small, large = numbered_windows(4), numbered_windows(8)
    buffers = [staging.put(small, np.full(4, 100), 4) for _ in range(2)]
    used = [staging.use(buffer, queue, lambda: None) for buffer in buffers]
    assert all(event in queue for event in used)
    for event in used:
        staging.put(large, np.full(8, 100), 8)
        assert event not in queue


def test_tensors_of_a_pass_are_kept_until_its_vectors_are_on_the_host(
    summing_encoder: Callable[..., Encoder],
) -> None:
    encoder = summing_encoder(SimulatedGpu())
    windows = numbered_windows(4)
    launched = encoder._launch(windows, np.full(4, 100), 4)
    assert launched.on_device.keys() == launched.on_host.keys() == {"embedding"}


# --- shapes and warm-up -----------------------------------------------------------------------------------------


def record_shapes(encoder: Encoder) -> list[tuple[int, ...]]:
    shapes, network = [], encoder._network

    def recording_network(windows: torch.Tensor, *mask: torch.Tensor | None) -> Any:
        shapes.append(tuple(windows.shape))
        return network(windows, *mask)

    encoder._network = recording_network
    return shapes


def test_batches_of_any_size_reach_the_network_in_at_most_four_shapes(summing_encoder: Callable[..., Encoder]) -> None:
    encoder = summing_encoder(SimulatedGpu())
    encoder._micro_batch = MicroBatch(64)
    shapes = record_shapes(encoder)
    for n in [256, *range(1, 200)]:
        assert sums(encoder, numbered_windows(n)) == numbered_windows(n).sum(1).tolist()
    assert len(set(shapes)) == 4


def test_no_shape_is_new_after_the_warm_up(summing_encoder: Callable[..., Encoder]) -> None:
    encoder = summing_encoder(SimulatedGpu())
    shapes = record_shapes(encoder)
    assert encoder.warm_up(64) > 0
    warm = set(shapes)
    size = encoder._micro_batch.size
    length = encoder.settings.windows.length
    assert {(n, length) for n in encoder._micro_batch.sizes} <= warm
    shapes.clear()
    windows = np.zeros((2 * size + 3, length), np.float32)
    encode(encoder, windows)
    assert set(shapes) <= warm


def test_the_warm_up_includes_masked_windows_and_does_nothing_on_a_cpu(encoder_of: Callable[..., Encoder]) -> None:
    encoder = encoder_of(BEATS, SimulatedGpu(), mask_padding=True)
    masks, network = [], encoder._network

    def recording_network(windows: torch.Tensor, mask: torch.Tensor | None) -> Any:
        masks.append(mask is not None)
        return network(windows[:1], None if mask is None else mask[:1])  # type: ignore[operator]

    encoder._network = recording_network  # type: ignore[assignment]
    encoder.warm_up(16)
    assert {True, False} == set(masks)
    on_cpu = encoder_of(BEATS, Cpu())
    shapes = record_shapes(on_cpu)
    on_cpu.warm_up(16)
    assert not shapes


# --- precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "is_allowed"), [("fp32", False), ("tf32", True), ("bf16", False), ("fp16", False)]
)
def test_only_precision_tf32_allows_tf32_in_a_pass_and_the_switches_are_restored(
    precision: str, is_allowed: bool, summing_encoder: Callable[..., Encoder]
) -> None:
    backends = torch.backends
    encoder = summing_encoder(SimulatedGpu(), precision=precision)
    flags, network = [], encoder._network

    def recording_network(*arguments: Any) -> Any:
        flags.append((backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32))
        return network(*arguments)

    encoder._network = recording_network
    windows = tone_windows(1)
    for before in ((False, True), (True, False)):
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before
        encode(encoder, windows)
        assert (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32) == before
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = False, True
    assert flags == [(is_allowed, is_allowed)] * 2


@pytest.mark.parametrize("model", MODELS)
def test_convolutions_of_ten_bits_exceed_the_error_bound_of_fp32(
    model: str, encoder_of: Callable[..., Encoder]
) -> None:
    """The bound detects TF32 convolutions, which are cuDNN's default."""
    windows = tone_windows(3)
    encoder = encoder_of(model, SimulatedGpu())
    exact = encode(encoder, windows)["embedding"]

    def round_input(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return ((inputs[0].view(torch.int32) & ~0x1FFF).view(torch.float32), *inputs[1:])

    for module in encoder._network.modules():  # type: ignore[union-attr]
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(round_input)
    assert relative_error(encode(encoder, windows)["embedding"], exact) > 1e-5


# --- memory that runs out ---------------------------------------------------------------------------------------

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
]
DEVICE_FAILURES = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR"),
    RuntimeError("CUDA driver error: unknown error"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    GpuUnusableError("this machine shows no GPU"),
]
BUGS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
    torch.AcceleratorError("CUDA error: invalid configuration argument"),
    torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("Expected all tensors to be on the same device"),
]


def test_errors_are_classified_by_their_message() -> None:
    for error in [*OUT_OF_MEMORY, *DEVICE_FAILURES, *BUGS]:
        assert is_out_of_memory(error) == (error in OUT_OF_MEMORY), error
        assert is_device_failure(error) == (error in DEVICE_FAILURES), error


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_tensors_of_a_failed_pass_are_freed_before_the_pass_of_half_the_size(
    error: RuntimeError, summing_encoder: Callable[..., Encoder]
) -> None:
    device = SimulatedGpu()
    encoder = summing_encoder(device)
    sizes, tensors = [], []

    def network_in_little_memory(windows: torch.Tensor, mask: torch.Tensor | None) -> Any:
        sizes.append(len(windows))
        assert all(tensor() is None for tensor in tensors), "activations of the failed pass still exist"
        if len(windows) > 2:
            activations = torch.zeros(8)
            tensors.append(weakref.ref(activations))
            raise type(error)(str(error))  # a new error, because `error` would keep its traceback and so the tensor
        return SumNetwork()(windows, mask)

    encoder._network = network_in_little_memory  # type: ignore[assignment]
    windows = numbered_windows(7)
    assert sums(encoder, windows) == windows.sum(1).tolist()
    assert sizes == [4, 2, 2, 2, 1]
    assert device.n_released == 1


def test_the_micro_batch_is_halved_when_pinned_memory_runs_out(summing_encoder: Callable[..., Encoder]) -> None:
    def allocate_little(shape: Any) -> None:
        if shape[0] > 2:
            raise torch.AcceleratorError("CUDA error: out of memory")

    encoder = summing_encoder(SimulatedGpu(on_buffer=allocate_little))
    windows = numbered_windows(7)
    assert sums(encoder, windows) == windows.sum(1).tolist()
    assert encoder._micro_batch.size == 2


@pytest.mark.parametrize("error", [*DEVICE_FAILURES, *BUGS], ids=str)
def test_other_errors_reach_the_caller(error: RuntimeError, summing_encoder: Callable[..., Encoder]) -> None:
    encoder = summing_encoder(SimulatedGpu())

    def fail(*_: object) -> Any:
        raise error

    encoder._network = fail
    with pytest.raises(type(error)) as raised:
        sums(encoder, numbered_windows(3))
    assert raised.value is error
