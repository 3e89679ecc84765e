"""avex models loaded with the weights of a checkpoint, which are checked."""

import functools
import sys
from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedding.encoding.checkpoints import RANDOM_SEED, Checkpoint, open_safetensors
from embedding.encoding.models import ARCHITECTURES, Model
from embedding.encoding.safe_tensors import as_safetensors
from embedding.errors import RequestError, root_cause
from embedding.quiet import logging_hidden

if TYPE_CHECKING:
    import torch
    from safetensors import safe_open
    from torch.overrides import TorchFunctionMode

# Number types of weights, by their names in safetensors. Integers and eight-bit floats are not accepted, because they
# are quantised and need their scales.
WEIGHT_TYPES = ("F32", "F16", "BF16", "F64")


def load(model: Model, checkpoint: Checkpoint) -> "torch.nn.Module":
    """Load an avex model that returns unpooled features, on the CPU and in evaluation mode.

    Args:
        model: The model.
        checkpoint: Weights of the model, on this machine.

    Raises:
        RequestError: The checkpoint does not consist of tensors only, or does not fit the model.
    """
    skip_unneeded_imports({model.architecture})
    import avex
    import torch

    spec = avex.get_model_spec(model.name)
    assert spec is not None, f"{model.name} is packaged with avex but not registered"
    avex_class = avex.get_model_class(model.architecture)
    assert avex_class is not None, f"avex did not register its {model.architecture} class"
    try:
        if checkpoint.path is None:
            torch.manual_seed(RANDOM_SEED)
            module = avex.build_model_from_spec(spec, "cpu", return_features_only=True, pretrained=False)
        else:
            with logging_hidden("avex"):  # avex warns that the class is registered already
                avex.register_model_class(_with_checks(avex_class, model.architecture))
            with as_safetensors(checkpoint) as path:
                with _without_random_weights():
                    module = avex.load_model(model.name, device="cpu", checkpoint_path=path, return_features_only=True)
                assert isinstance(module, torch.nn.Module)
                _check_missing(model, checkpoint, module)
                with open_safetensors(replace(checkpoint, path=path), "pt") as tensors:
                    _check_values(model, checkpoint, module, tensors)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        shapes = str(error).count("size mismatch")
        raise RequestError(
            f"--checkpoint: {checkpoint.uri} does not fit {model.name}: {shapes} tensors have another shape"
        ) from error
    except OSError as error:
        # Only EAT downloads from the hub at this point: its backbone's code and configuration.
        raise RequestError(
            f"--model: {model.name} needs its backbone from the Hugging Face hub: {root_cause(error)} — "
            "set HF_HOME to a cache that contains it"
        ) from error
    module.eval()  # load_model leaves dropout and layer drop enabled
    return module.requires_grad_(False)


def skip_unneeded_imports(architectures: Set[str]) -> None:
    """Make ``import avex`` skip the packages that none of ``architectures`` needs, as if they were not installed.

    avex imports all of its architectures, which takes 20 s of one core: 8 s for transformers and 4 s for torchvision
    (measured 2026-11-20; docs/decisions.md, "Models"). A process loads the models of one run only, so it does not need
    the skipped packages later.

    Args:
        architectures: Keys of ``ARCHITECTURES``.
    """
    if "avex" not in sys.modules:
        for package in set.intersection(*(set(ARCHITECTURES[name].unneeded_packages) for name in architectures)):
            sys.modules.setdefault(package, None)  # type: ignore[arg-type]


def _with_checks(avex_class: type, architecture: str) -> type:
    """Return a subclass that remembers the tensors missing in a checkpoint and does not download ImageNet weights.

    avex loads checkpoints with ``strict=False`` and only logs what matched, and builds its EfficientNet with
    ``pretrained=True`` whatever the specification says. A subclass can be registered through avex's public interface.
    """
    if hasattr(avex_class, "missing_tensors"):
        return avex_class

    class Checked(avex_class):
        name = architecture  # key of the class in avex's registry
        missing_tensors: tuple[str, ...] = ()

        @functools.wraps(avex_class.__init__)
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs | ({"pretrained": False} if architecture == "efficientnet" else {}))
            self.register_load_state_dict_post_hook(_remember_missing)

    return Checked


def _without_random_weights() -> "TorchFunctionMode":
    """Return a context in which models are built without random weights, because a checkpoint replaces all of them.

    Drawing BEATs' 90 million numbers takes a second (measured 2026-11-21).
    """
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    class WithoutRandomWeights(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in {Tensor.normal_, Tensor.uniform_} else func(*args, **kwargs or {})

    return WithoutRandomWeights()


def _remember_missing(module: Any, keys: Any) -> None:
    module.missing_tensors = tuple(keys.missing_keys)


def _check_missing(model: Model, checkpoint: Checkpoint, module: "torch.nn.Module") -> None:
    """Refuse a checkpoint that lacks a tensor of the model."""
    needed = [key for key in module.state_dict() if not key.startswith(model.traits.unused_tensors)]
    missing = set(module.missing_tensors).intersection(needed)  # type: ignore[arg-type] — see _remember_missing
    if missing:
        raise RequestError(
            f"--checkpoint: {checkpoint.uri} does not fit {model.name}: {len(needed) - len(missing)} of {len(needed)} "
            f"tensors matched (missing, for one: {min(missing)})"
        )


def _check_values(model: Model, checkpoint: Checkpoint, module: "torch.nn.Module", tensors: "safe_open") -> None:
    """Refuse weights that are not of WEIGHT_TYPES or not finite in float32.

    avex would cast integers to floats, and accept NaN and infinity.
    """
    import torch

    stored = set(tensors.keys())
    for name, values in module.state_dict().items():
        if name not in stored or name.startswith(model.traits.unused_tensors) or not values.is_floating_point():
            continue
        kind = tensors.get_slice(name).get_dtype()
        if kind not in WEIGHT_TYPES:
            raise RequestError(
                f"--checkpoint: {checkpoint.uri} stores {name} as {kind}; expected one of {', '.join(WEIGHT_TYPES)}"
            )
        if not torch.isfinite(values).all():
            raise RequestError(
                f"--checkpoint: {checkpoint.uri} has weights that are NaN or infinite in float32 ({name}), so that no "
                "vector would be finite"
            )
