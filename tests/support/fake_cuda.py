"""A forward pass as on a GPU, on a machine that has none: devices and shapes are checked, no number is computed.

``FakeTensorMode`` and ``TorchDispatchMode`` are not torch's public interface (torch 2.11); nothing public shows the
device of every tensor inside a module. They are used here only.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

# One for all traces: what a module keeps from one pass to the next has to fit the next one.
_ON_GPU = FakeTensorMode()


@dataclass
class Trace(TorchDispatchMode):
    """Operators that a pass called, and the tensors that they took or made.

    Attributes:
        operators: names, in order.
        devices: kinds of devices of all tensors.
        dtypes: for each operator, the floating types of its tensors.
    """

    operators: list[str] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    dtypes: dict[str, set[torch.dtype]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.operators.append(str(func))
        self._look_at([args, kwargs or {}, result], self.dtypes.setdefault(str(func), set()))
        return result

    def _look_at(self, value: Any, dtypes: set[torch.dtype]) -> None:
        if isinstance(value, torch.Tensor):
            self.devices.add(value.device.type)
            if value.is_floating_point():
                dtypes.add(value.dtype)
        elif isinstance(value, dict):
            self._look_at(list(value.values()), dtypes)
        elif isinstance(value, list | tuple):
            for each in value:
                self._look_at(each, dtypes)


def trace(module: nn.Module, windows: torch.Tensor, padding: torch.Tensor | None) -> tuple[Trace, torch.Tensor]:
    """Run ``module`` with its parameters and buffers, and with its inputs, on a GPU that does not exist.

    Autocast does nothing here: torch disables it where there is no GPU.

    Returns:
        The trace, and the features without numbers.

    Raises:
        RuntimeError: tensors of two devices met, the module waited for a number from the GPU, or used a tensor that
            is neither parameter nor buffer.
    """
    with torch.inference_mode(), _ON_GPU, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA is not available", UserWarning)  # autocast says so, see above

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")

        state = {name: fake(tensor) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
        inputs = (fake(windows), None if padding is None else fake(padding))
        with Trace() as operations:
            features, _ = functional_call(module, state, inputs)
    return operations, features
