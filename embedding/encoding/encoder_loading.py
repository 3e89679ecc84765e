"""Encoders of a run's targets: graphs on CPUs, torch on GPUs and for what graphs cannot compute."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedding.encoding.cpu_encoder import CpuEncoder
from embedding.encoding.graph_files import can_use_graph, open_graph_files
from embedding.encoding.settings import Settings
from embedding.errors import RequestError

if TYPE_CHECKING:
    from embedding.encoding.devices import Device
    from embedding.encoding.encoder import Encoder


def load_encoders(
    targets: Sequence[Settings], n_threads: int, gpu: "Device | None" = None, *, keeps_times: bool = True
) -> "list[CpuEncoder | Encoder]":
    """Load one encoder per target of a run into this process.

    Args:
        targets: Settings of the targets.
        n_threads: Threads of the CPU that an encoder may use.
        gpu: Device that computes; None for the CPU.
        keeps_times: Keep the times of passes on the CPU for later encoders.

    Raises:
        RequestError: The weights cannot be loaded or do not fit the model.
    """
    from_graphs = (
        {}
        if gpu
        else {
            number: _from_graph(settings, n_threads, keeps_times=keeps_times) for number, settings in enumerate(targets)
        }
    )
    with_torch = [settings for number, settings in enumerate(targets) if from_graphs.get(number) is None]
    torch_encoders = iter(_load_with_torch(with_torch, n_threads, gpu) if with_torch else [])
    return [from_graphs.get(number) or next(torch_encoders) for number in range(len(targets))]


def _from_graph(settings: Settings, n_threads: int, *, keeps_times: bool) -> CpuEncoder | None:
    """Return an encoder that computes a graph; None if torch has to compute.

    Raises:
        RequestError: There is no graph, and torch does not compute in the precision.
    """
    if not can_use_graph(settings):
        return None
    try:
        files = open_graph_files(settings.model, settings.checkpoint)
        reason = f"{settings.checkpoint.uri} has other layers than the published models"
    except OSError as error:  # the cache cannot be written; loading with torch is slower, and needs no cache
        files = None
        reason = f"the prepared model cannot be kept ({error}); set XDG_CACHE_HOME to a folder that can be written"
    if files is not None and files.has_graph:
        return CpuEncoder(settings, files, n_threads, keeps_times=keeps_times)
    if settings.precision == "int8":
        raise RequestError(f"--precision: int8 is not possible: {reason}")
    return None


def _load_with_torch(targets: Sequence[Settings], n_threads: int, gpu: "Device | None") -> "list[Encoder]":
    from embedding.encoding.devices import Cpu
    from embedding.encoding.encoder import Encoder
    from embedding.encoding.model_loading import skip_unneeded_imports

    skip_unneeded_imports({settings.model.architecture for settings in targets})
    return [Encoder(settings, gpu or Cpu(), n_threads) for settings in targets]
