"""The encoder as it runs on a GPU, on a simulated one: order of copies, shapes, precision, memory that runs out."""

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedding.config import make_config
from embedding.encoding.devices import Cpu, Device, GpuUnusableError, is_broken, is_out_of_memory
from embedding.encoding.encoder import Encoder
from embedding.encoding.micro_batch import MicroBatch
from embedding.encoding.settings import Settings
from embedding.encoding.staging_buffers import Slot, Staging
from simulated_gpu import SimulatedGpu
from tests.support.models import BEATS, EFFICIENTNET
from tests.unit.encoding.test_encoder import cosine, full, relative_error, some_windows

MODELS = [BEATS, EFFICIENTNET]


@pytest.fixture(scope="module")
def encoder_of(checkpoints: dict[str, Path]) -> Callable[..., Encoder]:
    def make(model: str, device: Device, **options: object) -> Encoder:
        request = {"input": "a", "output": "b", "model": model, "checkpoint": str(checkpoints[model]), "window_s": 1.0}
        return Encoder(Settings.of(make_config(request | options)), device, 2)

    return make


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", [{}, {"pooling": "max"}, {"layers": "0,-1"}], ids=str)
def test_vectors_are_those_of_the_cpu(
    model: str, options: dict[str, object], is_late: bool, encoder_of: Callable[..., Encoder]
) -> None:
    windows = some_windows(11)
    expected = encoder_of(model, Cpu(), **options).encode(windows, full(windows))
    encoder = encoder_of(model, SimulatedGpu(is_late=is_late), **options)
    encoder._micro_batch = MicroBatch(4)
    columns = encoder.encode(windows, full(windows))
    assert columns.keys() == expected.keys()
    for name, rows in columns.items():
        assert rows.shape == expected[name].shape
        assert relative_error(rows, expected[name]) <= 1e-5, name


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_points_the_same_way(model: str, precision: str, encoder_of: Callable[..., Encoder]) -> None:
    windows = some_windows(5)
    exact = encoder_of(model, Cpu()).encode(windows, full(windows))["embedding"]
    coarse = encoder_of(model, SimulatedGpu(), precision=precision).encode(windows, full(windows))["embedding"]
    assert coarse.dtype == np.float32
    assert cosine(coarse, exact) >= 0.999
    assert relative_error(coarse, exact) > 1e-6


def test_masked_padding_is_that_of_the_cpu(encoder_of: Callable[..., Encoder]) -> None:
    n_audio = np.array([16_000, 9_600, 6_400, 16_000, 3_200])
    windows = np.where(np.arange(16_000) < n_audio[:, None], some_windows(5), 0).astype(np.float32)
    expected = encoder_of(BEATS, Cpu(), mask_padding=True).encode(windows, n_audio)["embedding"]
    encoder = encoder_of(BEATS, SimulatedGpu(is_late=True), mask_padding=True)
    encoder._micro_batch = MicroBatch(4)
    assert relative_error(encoder.encode(windows, n_audio)["embedding"], expected) <= 1e-5


# --- copies -----------------------------------------------------------------------------------------------------


class Sums:
    """In the place of a network: a window's sum. Whatever window is read by mistake shows."""

    def __call__(self, windows: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        return windows.sum(1)[:, None, None].expand(-1, 1, 1280), None


@pytest.fixture
def summing(encoder_of: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Encoder]:
    monkeypatch.setattr("embedding.encoding.encoder._features", lambda *_, **__: Sums())

    def make(device: SimulatedGpu, **options: object) -> Encoder:
        encoder = encoder_of(EFFICIENTNET, device, **options)
        encoder._micro_batch = MicroBatch(4)
        return encoder

    return make


def numbered_windows(n: int) -> np.ndarray:
    return np.repeat(np.arange(n, dtype=np.float32)[:, None], 100, axis=1)


def sums(encoder: Encoder, windows: np.ndarray) -> list[float]:
    return encoder.encode(windows, full(windows))["embedding"][:, 0].tolist()


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
def test_a_buffer_is_not_written_to_before_it_was_read(is_late: bool, summing: Callable[..., Encoder]) -> None:
    windows = numbered_windows(30)
    encoder = summing(SimulatedGpu(is_late=is_late))
    assert sums(encoder, windows) == (windows.sum(1)).tolist()
    assert sums(encoder, windows[::-1]) == (windows[::-1].sum(1)).tolist()
    assert len(encoder._staging._slots) == 2


@pytest.mark.parametrize("forgotten", ["copied", "used"])
def test_the_simulated_device_notices_a_buffer_written_too_early(
    forgotten: str, summing: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the test above one that can fail."""
    put = Staging.put

    def hasty(self: Staging, windows: Any, n_audio: Any, size: int) -> Slot:
        for slot in self._slots.values():
            setattr(slot, forgotten, None)
        return put(self, windows, n_audio, size)

    monkeypatch.setattr(Staging, "put", hasty)
    windows = numbered_windows(30)
    assert sums(summing(SimulatedGpu(is_late=True)), windows) != (windows.sum(1)).tolist()


def test_two_threads_at_once_get_each_their_own_vectors(summing: Callable[..., Encoder]) -> None:
    encoder = summing(SimulatedGpu(is_late=True))
    batches = [numbered_windows(n)[::-1] for n in range(5, 35)]
    results: dict[int, list[float]] = {}

    def work(first: int) -> None:
        for at in range(first, len(batches), 2):
            results[at] = sums(encoder, batches[at])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[at] for at in range(len(batches))] == [windows.sum(1).tolist() for windows in batches]


def test_windows_of_another_length_get_buffers_of_their_own(summing: Callable[..., Encoder]) -> None:
    encoder = summing(SimulatedGpu(is_late=True))
    for length in (100, 50, 100):
        windows = numbered_windows(9)[:, :length]
        assert sums(encoder, windows) == windows.sum(1).tolist()


def test_buffers_of_the_device_are_not_given_up_while_they_are_read() -> None:
    """torch gives their memory to whoever asks next in the queue that they were made in, and others read them."""
    device = SimulatedGpu(is_late=True)
    staging, queue = Staging(device), device.queue()
    small = [staging.put(numbered_windows(4), full(numbered_windows(4)), 4) for _ in range(2)]
    used = [staging.use(slot, queue, lambda: None) for slot in small]
    assert all(event in queue for event in used)
    for event in used:
        staging.put(numbered_windows(8), full(numbered_windows(8)), 8)
        assert event not in queue


def test_a_passs_tensors_are_kept_until_its_vectors_are_back(summing: Callable[..., Encoder]) -> None:
    encoder = summing(SimulatedGpu())
    windows = numbered_windows(4)
    launched = encoder._launch(windows, full(windows), 4)
    assert launched.on_device.keys() == launched.on_host.keys() == {"embedding"}


# --- shapes and warm-up -----------------------------------------------------------------------------------------


def record_shapes(encoder: Encoder) -> list[tuple[int, ...]]:
    shapes, features = [], encoder._features

    def recording(windows: torch.Tensor, *mask: torch.Tensor | None) -> Any:
        shapes.append(tuple(windows.shape))
        return features(windows, *mask)

    encoder._features = recording
    return shapes


def test_ragged_batches_reach_the_model_in_at_most_four_shapes(summing: Callable[..., Encoder]) -> None:
    encoder = summing(SimulatedGpu())
    encoder._micro_batch = MicroBatch(64)
    shapes = record_shapes(encoder)
    for n in [256, *range(1, 200)]:
        assert sums(encoder, numbered_windows(n)) == numbered_windows(n).sum(1).tolist()
    assert len(set(shapes)) == 4


def test_warm_up_lets_every_shape_pass_once_so_that_none_is_new_later(
    summing: Callable[..., Encoder],
) -> None:
    encoder = summing(SimulatedGpu())
    shapes = record_shapes(encoder)
    assert encoder.warm_up(64) > 0
    warm = set(shapes)
    size = encoder._micro_batch.size
    assert {(each, encoder.settings.windows.length) for each in encoder._micro_batch.sizes} <= warm
    shapes.clear()
    windows = np.zeros((2 * size + 3, encoder.settings.windows.length), np.float32)
    encoder.encode(windows, full(windows))
    assert set(shapes) <= warm


def test_warm_up_passes_masked_windows_too_and_costs_a_cpu_nothing(encoder_of: Callable[..., Encoder]) -> None:
    encoder = encoder_of(BEATS, SimulatedGpu(), mask_padding=True)
    masks, features = [], encoder._features

    def recording(windows: torch.Tensor, mask: torch.Tensor | None) -> Any:
        masks.append(mask is not None)
        return features(windows[:1], None if mask is None else mask[:1])  # type: ignore[operator]

    encoder._features = recording  # type: ignore[assignment]
    encoder.warm_up(16)
    assert {True, False} == set(masks)
    on_cpu = encoder_of(BEATS, Cpu())
    shapes = record_shapes(on_cpu)
    on_cpu.warm_up(16)
    assert not shapes


# --- precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "allows"), [("fp32", False), ("tf32", True), ("bf16", False), ("fp16", False)])
def test_tf32_is_off_in_a_pass_unless_asked_for_and_put_back_afterwards(
    precision: str, allows: bool, summing: Callable[..., Encoder]
) -> None:
    backends = torch.backends
    encoder = summing(SimulatedGpu(), precision=precision)
    flags, features = [], encoder._features

    def recording(*arguments: Any) -> Any:
        flags.append((backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32))
        return features(*arguments)

    encoder._features = recording
    windows = some_windows(1)
    for before in ((False, True), (True, False)):
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before
        encoder.encode(windows, full(windows))
        assert (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32) == before
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = False, True
    assert flags == [(allows, allows)] * 2


@pytest.mark.parametrize("model", MODELS)
def test_convolutions_of_ten_bits_are_further_off_than_fp32_may_be(
    model: str, encoder_of: Callable[..., Encoder]
) -> None:
    """TF32 convolutions, cuDNN's default, would be noticed by the bound."""
    windows = some_windows(3)
    encoder = encoder_of(model, SimulatedGpu())
    exact = encoder.encode(windows, full(windows))["embedding"]

    def rounded(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return ((inputs[0].view(torch.int32) & ~0x1FFF).view(torch.float32), *inputs[1:])

    for module in encoder._features.modules():  # type: ignore[union-attr]
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(rounded)
    assert relative_error(encoder.encode(windows, full(windows))["embedding"], exact) > 1e-5


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
BROKEN = [
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


def test_errors_are_told_apart() -> None:
    for error in [*OUT_OF_MEMORY, *BROKEN, *BUGS]:
        assert is_out_of_memory(error) == (error in OUT_OF_MEMORY), error
        assert is_broken(error) == (error in BROKEN), error


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_memory_that_runs_out_is_free_before_half_as_many_windows_go_through(
    error: RuntimeError, summing: Callable[..., Encoder]
) -> None:
    device = SimulatedGpu()
    encoder = summing(device)
    sizes, held = [], []

    def limited(windows: torch.Tensor, mask: torch.Tensor | None) -> Any:
        sizes.append(len(windows))
        assert not [each for each in held if each() is not None], "activations of the failed pass are still there"
        if len(windows) > 2:
            activations = torch.zeros(8)
            held.append(weakref.ref(activations))
            raise type(error)(str(error))  # a new one: `error` itself would keep its traceback, and that the tensor
        return Sums()(windows, mask)

    encoder._features = limited  # type: ignore[assignment]
    windows = numbered_windows(7)
    assert sums(encoder, windows) == windows.sum(1).tolist()
    assert sizes == [4, 2, 2, 2, 1]
    assert device.n_released == 1


def test_pinned_memory_that_runs_out_halves_the_micro_batch(summing: Callable[..., Encoder]) -> None:
    def limited(shape: Any) -> None:
        if shape[0] > 2:
            raise torch.AcceleratorError("CUDA error: out of memory")

    encoder = summing(SimulatedGpu(on_buffer=limited))
    windows = numbered_windows(7)
    assert sums(encoder, windows) == windows.sum(1).tolist()
    assert encoder._micro_batch.size == 2


@pytest.mark.parametrize("error", [*BROKEN, *BUGS], ids=str)
def test_other_errors_end_the_batch(error: RuntimeError, summing: Callable[..., Encoder]) -> None:
    encoder = summing(SimulatedGpu())

    def failing(*_: object) -> Any:
        raise error

    encoder._features = failing
    with pytest.raises(type(error)) as raised:
        sums(encoder, numbered_windows(3))
    assert raised.value is error
