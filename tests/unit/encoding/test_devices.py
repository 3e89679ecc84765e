"""The CUDA device, on a stand-in for torch.cuda: what is refused at its start, and what it asks of torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
import torch

from embedding.encoding import devices
from embedding.encoding.devices import CONTEXT_BYTES, Cpu, Cuda, GpuUnusableError, open_device
from embedding.errors import RequestError

T4, L4 = (7, 5), (8, 9)
GB = 1 << 30


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MagicMock]:
    """A machine with one GPU. Functions have the signatures that torch's have."""

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


def test_the_device_is_the_one_that_is_asked_for(cuda: Callable[..., MagicMock]) -> None:
    cuda()
    assert isinstance(open_device("cpu", ["bf16"]), Cpu)
    assert isinstance(open_device("cuda", ["bf16"]), Cuda)


def test_a_driver_too_old_is_one_line_with_both_versions(
    cuda: Callable[..., MagicMock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is that of torch 2.11 (c10/cuda/CUDAFunctions.cpp)."""
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
def test_a_machine_that_shows_no_gpu_is_one_line_with_what_to_do(message: str, cuda: Callable[..., MagicMock]) -> None:
    cuda(error=message)
    with pytest.raises(GpuUnusableError, match=r"shows this process no GPU.*NVIDIA_VISIBLE_DEVICES.*--device cpu"):
        Cuda(["fp32"])


def test_torch_says_on_this_machine_what_is_explained() -> None:
    """Not a stand-in: torch itself, where there is no driver."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(GpuUnusableError, match="shows this process no GPU"):
        Cuda(["fp32"])


def test_another_error_of_the_start_stays_what_it_is(cuda: Callable[..., MagicMock]) -> None:
    cuda(error="CUDA unknown error - this may be due to an incorrectly set up environment")
    with pytest.raises(RuntimeError, match="unknown error") as raised:
        Cuda(["fp32"])
    assert devices.is_broken(raised.value)


def test_a_gpu_without_kernels_is_one_line(cuda: Callable[..., MagicMock]) -> None:
    cuda((6, 1), "GTX 1080")
    with pytest.raises(
        GpuUnusableError, match=r"GTX 1080 of .* has compute capability 6\.1.* is built for 7\.5 and newer"
    ):
        Cuda(["fp32"])


@pytest.mark.parametrize(
    ("capability", "able", "unable"),
    [(T4, ["fp32", "fp16"], ["tf32", "bf16"]), (L4, ["fp32", "tf32", "bf16", "fp16"], [])],
)
def test_a_precision_that_a_gpu_cannot_do_is_refused(
    capability: tuple[int, int], able: list[str], unable: list[str], cuda: Callable[..., MagicMock]
) -> None:
    cuda(capability, "Tesla T4")
    Cuda(able)
    for precision in unable:
        with pytest.raises(
            RequestError, match=rf"--precision: Tesla T4 .* cannot compute in {precision}.*fp16 or fp32"
        ):
            Cuda([precision])


@pytest.mark.parametrize(("share", "fraction"), [(0.5, 0.5 - CONTEXT_BYTES / (24 * GB)), (0.01, 0.005)])
def test_an_encoder_that_shares_a_gpu_takes_its_part_of_the_memory(
    share: float, fraction: float, cuda: Callable[..., MagicMock]
) -> None:
    stand_in = cuda()
    Cuda(["fp32"], share)
    stand_in.set_per_process_memory_fraction.assert_called_once_with(pytest.approx(fraction))


def test_an_encoder_alone_on_its_gpu_takes_all_memory(cuda: Callable[..., MagicMock]) -> None:
    stand_in = cuda()
    for share in (1.0, 2.0):
        Cuda(["fp32"], share)
    stand_in.set_per_process_memory_fraction.assert_not_called()


def test_work_waits_for_events_and_its_own_event_follows_it(cuda: Callable[..., MagicMock]) -> None:
    """In this order: an event that is recorded before the work would come before the work is done."""
    stand_in = cuda()
    device, calls = Cuda(["fp32"]), []
    queue, before = device.queue(), MagicMock()
    stand_in.stream.side_effect = lambda stream: _block(calls, "enter" if stream is queue else "other stream")
    queue.wait_event.side_effect = lambda event: calls.append("wait" if event is before else "other event")
    stand_in.Event.return_value.record.side_effect = lambda stream: calls.append(
        "record" if stream is queue else "other stream"
    )
    done = device.submit(queue, lambda: calls.append("work"), after=[before])
    assert calls == ["enter", "wait", "work", "record", "leave"]
    # Blocking, or a thread that waits would take a core from decoding.
    stand_in.Event.assert_called_once_with(blocking=True)
    assert done is stand_in.Event.return_value
    device.wait(done)
    stand_in.Event.return_value.synchronize.assert_called_once_with()
    device.release_memory()
    stand_in.empty_cache.assert_called_once_with()


@contextmanager
def _block(calls: list[str], name: str) -> Iterator[None]:
    calls.append(name)
    yield
    calls.append("leave")


def test_the_hosts_memory_is_pinned_and_the_devices_is_on_the_device(
    cuda: Callable[..., MagicMock], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda()
    device, asked = Cuda(["fp32"]), []

    def empty(*shape: int, **options: Any) -> None:
        asked.append((shape, options))

    monkeypatch.setattr(torch, "empty", empty)
    device.host_buffer((4, 5), torch.float32)
    device.buffer((4, 5), torch.int64)
    assert asked == [
        ((4, 5), {"dtype": torch.float32, "pin_memory": True}),
        ((4, 5), {"dtype": torch.int64, "device": torch.device("cuda:0")}),
    ]
