"""CUDA device on a stand-in for torch.cuda: refused GPUs, and the calls of torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
import torch

from embedding.encoding import devices
from embedding.encoding.devices import CONTEXT_BYTES, Cuda, GpuUnusableError
from embedding.errors import RequestError

T4, L4 = (7, 5), (8, 9)
GB = 1 << 30


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MagicMock]:
    """Simulate a machine with one GPU; the stand-in's functions have the signatures of torch's functions."""

    def make(capability: tuple[int, int] = L4, name: str = "NVIDIA L4", error: str | None = None) -> MagicMock:
        stand_in = MagicMock()
        for function in ("init", "get_device_capability", "get_device_name", "get_device_properties", "current_device"):
            setattr(stand_in, function, create_autospec(getattr(torch.cuda, function)))
        for function in ("set_per_process_memory_fraction", "empty_cache", "get_arch_list"):
            setattr(stand_in, function, create_autospec(getattr(torch.cuda, function)))
        stand_in.Stream, stand_in.Event = create_autospec(torch.cuda.Stream), create_autospec(torch.cuda.Event)
        stand_in.get_device_capability.return_value = capability
        stand_in.get_device_name.return_value = name
        stand_in.current_device.return_value = 0
        stand_in.get_arch_list.return_value = ["sm_75", "sm_80", "sm_90", "compute_90"]
        stand_in.get_device_properties.return_value = SimpleNamespace(total_memory=24 * GB)
        if error is not None:
            stand_in.init.side_effect = RuntimeError(error)
        monkeypatch.setattr(torch, "cuda", stand_in)
        return stand_in

    return make


def test_the_error_of_an_old_driver_states_both_versions(
    cuda: Callable[..., MagicMock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is the one of torch 2.11 (c10/cuda/CUDAFunctions.cpp)."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cuda(error="The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver.")
    with pytest.raises(
        GpuUnusableError, match=r"is for CUDA 12\.4, and this torch needs CUDA 13\.0: install driver 580 or"
    ):
        Cuda(["fp32"])


@pytest.mark.parametrize(
    "message",
    ["Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", "No CUDA GPUs are available"],
)
def test_the_error_of_a_machine_without_a_visible_gpu_states_a_remedy(
    message: str, cuda: Callable[..., MagicMock]
) -> None:
    cuda(error=message)
    with pytest.raises(GpuUnusableError, match=r"shows this process no GPU.*NVIDIA_VISIBLE_DEVICES.*--device cpu"):
        Cuda(["fp32"])


def test_the_error_of_torch_itself_is_explained() -> None:
    """Uses torch itself, without the stand-in."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(GpuUnusableError, match="shows this process no GPU"):
        Cuda(["fp32"])


def test_other_errors_of_the_start_are_not_changed(cuda: Callable[..., MagicMock]) -> None:
    cuda(error="CUDA unknown error - this may be due to an incorrectly set up environment")
    with pytest.raises(RuntimeError, match="unknown error") as raised:
        Cuda(["fp32"])
    assert devices.is_device_failure(raised.value)


def test_the_error_of_a_gpu_without_kernels_states_its_capability(cuda: Callable[..., MagicMock]) -> None:
    cuda((6, 1), "GTX 1080")
    with pytest.raises(
        GpuUnusableError, match=r"GTX 1080 of .* has compute capability 6\.1.* is built for 7\.5 and newer"
    ):
        Cuda(["fp32"])


@pytest.mark.parametrize(
    ("capability", "supported", "unsupported"),
    [(T4, ["fp32", "fp16"], ["tf32", "bf16"]), (L4, ["fp32", "tf32", "bf16", "fp16"], [])],
)
def test_a_precision_that_a_gpu_does_not_support_is_refused(
    capability: tuple[int, int], supported: list[str], unsupported: list[str], cuda: Callable[..., MagicMock]
) -> None:
    cuda(capability, "Tesla T4")
    Cuda(supported)
    for precision in unsupported:
        with pytest.raises(
            RequestError, match=rf"--precision: Tesla T4 .* cannot compute in {precision}.*fp16 or fp32"
        ):
            Cuda([precision])


@pytest.mark.parametrize(("share", "fraction"), [(0.5, 0.5 - CONTEXT_BYTES / (24 * GB)), (0.01, 0.005)])
def test_an_encoder_that_shares_a_gpu_is_limited_to_its_share_of_the_memory(
    share: float, fraction: float, cuda: Callable[..., MagicMock]
) -> None:
    stand_in = cuda()
    Cuda(["fp32"], share)
    stand_in.set_per_process_memory_fraction.assert_called_once_with(pytest.approx(fraction))


def test_an_encoder_alone_on_a_gpu_is_not_limited(cuda: Callable[..., MagicMock]) -> None:
    stand_in = cuda()
    for share in (1.0, 2.0):
        Cuda(["fp32"], share)
    stand_in.set_per_process_memory_fraction.assert_not_called()


def test_work_starts_after_its_events_and_before_its_own_event(cuda: Callable[..., MagicMock]) -> None:
    """The order matters: an event that is recorded before the work is reached before the work ends."""
    stand_in = cuda()
    device, calls = Cuda(["fp32"]), []
    queue, before = device.queue(), MagicMock()
    stand_in.stream.side_effect = lambda stream: _stream_block(calls, "enter" if stream is queue else "other stream")
    queue.wait_event.side_effect = lambda event: calls.append("wait" if event is before else "other event")
    stand_in.Event.return_value.record.side_effect = lambda stream: calls.append(
        "record" if stream is queue else "other stream"
    )
    done = device.submit(queue, lambda: calls.append("work"), after=[before])
    assert calls == ["enter", "wait", "work", "record", "leave"]
    # blocking=True, because a thread that polls would take a core from decoding.
    stand_in.Event.assert_called_once_with(blocking=True)
    assert done is stand_in.Event.return_value
    device.wait(done)
    stand_in.Event.return_value.synchronize.assert_called_once_with()
    device.release_memory()
    stand_in.empty_cache.assert_called_once_with()


@contextmanager
def _stream_block(calls: list[str], name: str) -> Iterator[None]:
    calls.append(name)
    yield
    calls.append("leave")


def test_memory_of_the_host_is_pinned_and_memory_of_the_device_is_on_the_device(
    cuda: Callable[..., MagicMock], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda()
    device, calls = Cuda(["fp32"]), []

    def empty(*shape: int, **options: Any) -> None:
        calls.append((shape, options))

    monkeypatch.setattr(torch, "empty", empty)
    device.host_buffer((4, 5), torch.float32)
    device.buffer((4, 5), torch.int64)
    assert calls == [
        ((4, 5), {"dtype": torch.float32, "pin_memory": True}),
        ((4, 5), {"dtype": torch.int64, "device": torch.device("cuda:0")}),
    ]
