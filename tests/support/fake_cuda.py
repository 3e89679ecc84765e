"""Forward pass on a fake GPU, on a machine without one: devices and shapes are checked, no number is computed.

``FakeTensorMode`` and ``TorchDispatchMode`` are not part of torch's public interface (torch 2.11), but no public
function shows the device of every tensor in a module. They are used in this file only.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

# One mode for all traces, because a tensor that a module keeps for its next pass has to belong to the same mode.
_FAKE_GPU = FakeTensorMode()


@dataclass
class Trace(TorchDispatchMode):
    """Operators of a pass, and their inputs and results.

    Attributes:
        operators: Names in the order of the calls.
        devices: Device types of all tensors.
        dtypes: Floating types of the tensors of each operator.
    """

    operators: list[str] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    dtypes: dict[str, set[torch.dtype]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.operators.append(str(func))
        self._record([args, kwargs or {}, result], self.dtypes.setdefault(str(func), set()))
        return result

    def _record(self, value: Any, dtypes: set[torch.dtype]) -> None:
        if isinstance(value, torch.Tensor):
            self.devices.add(value.device.type)
            if value.is_floating_point():
                dtypes.add(value.dtype)
        elif isinstance(value, dict):
            self._record(list(value.values()), dtypes)
        elif isinstance(value, list | tuple):
            for item in value:
                self._record(item, dtypes)


def trace(module: nn.Module, windows: torch.Tensor, padding: torch.Tensor | None) -> tuple[Trace, torch.Tensor]:
    """Run ``module`` with its parameters, its buffers and its inputs on a fake GPU.

    Autocast has no effect, because torch disables it on a machine without a GPU.

    Returns:
        The trace, and fake features.

    Raises:
        RuntimeError: An operator combined tensors of two devices, the module waited for a number from the GPU, or used
            a tensor that is neither a parameter nor a buffer.
    """
    with torch.inference_mode(), _FAKE_GPU, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA is not available", UserWarning)  # a warning of autocast

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")

        state = {name: fake(tensor) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
        inputs = (fake(windows), None if padding is None else fake(padding))
        with Trace() as recorded:
            features, _ = functional_call(module, state, inputs)
    return recorded, features
