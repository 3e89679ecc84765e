"""avex models by name: sample rate, native length, embedding size; loaded with the weights of a checkpoint.

What a model is comes from the specifications packaged with avex. They are read as files, because importing avex
costs 12–20 s of one core (it imports every architecture it knows) and only the actors need it.
"""

import difflib
import functools
import pickle
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from embedding.config import ALL, LAST, RANDOM_CHECKPOINT, EmbedConfig
from embedding.encoding.checkpoints import RANDOM_SEED, Checkpoint, open_tensors
from embedding.errors import RequestError, root_cause

if TYPE_CHECKING:
    import torch
    from safetensors import safe_open
    from torch.overrides import TorchFunctionMode


# Types of numbers in a checkpoint, by their names in safetensors, that are weights without further knowledge: integers
# and eight-bit floats need the scales that they were quantised with.
WEIGHT_TYPES = ("F32", "F16", "BF16", "F64")
# torch.save does not compress; a tensor that two layers share is counted for both.
MOST_TIMES = 4
# Errors of torch.load and zipfile for bytes that are no checkpoint (seen: KeyError for a text, IndexError for zeros).
_NO_CHECKPOINT = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, EOFError, ValueError),
    *(LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError),
)


@dataclass(frozen=True)
class Architecture:
    """What avex's code, rather than a model's specification, decides.

    ``dim``: length of a pooled vector. ``min_samples``: the shortest window that yields one token or one frame.
    ``unused``: tensors that ``return_features_only`` never reads or that are constants, which a checkpoint may lack.
    ``not_needed``: packages that only other architectures import.
    ``layer_dims``: lengths of the vectors of each of avex's ``get_model_layers()``.
    ``classifier``: its name in a checkpoint of a supervised model; ``classified``: how what it sees is pooled.
    """

    dim: int
    min_samples: int
    layer_dims: tuple[int, ...]
    classifier: str = "classifier"
    classified: str = "mean"
    has_cls: bool = False
    can_mask: bool = False
    unused: tuple[str, ...] = ()
    not_needed: tuple[str, ...] = ()


ARCHITECTURES = {
    # One 16-frame patch: 400 samples of the first frame and 15 hops of 160 (avex/models/beats/beats.py, _BatchedFbank).
    "beats": Architecture(
        768,
        400 + 15 * 160,
        layer_dims=(768,) * 13,
        can_mask=True,
        unused=("backbone.predictor.", "backbone.fbank."),
        not_needed=("transformers", "torchvision"),
    ),
    # torch.stft pads by reflection, half its 800-sample transform, and needs more audio than that.
    "efficientnet": Architecture(
        1280,
        401,
        layer_dims=(32, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320, 1280),
        classifier="model.classifier.1",
        unused=("model.classifier.",),
        not_needed=("transformers",),
    ),
    # One 25 ms frame; the processor pads the rest to 1024 frames itself.
    "eat_hf": Architecture(768, 400, layer_dims=(768,) * 12, classified="cls", has_cls=True),
}


@dataclass(frozen=True)
class Model:
    """One avex model. ``rate_hz`` is what its audio must be resampled to, ``native_s`` the window it was trained on."""

    name: str
    architecture: str
    rate_hz: int
    native_s: float
    checkpoint: str  # where its own weights lie, hf://owner/repo/file
    label_map: str | None  # likewise what its classifier's outputs mean; None if it has no classifier

    @property
    def traits(self) -> Architecture:
        return ARCHITECTURES[self.architecture]


def _specs_folder() -> Path:
    return Path(str(metadata.distribution("avex").locate_file("avex/api/configs/official_models")))


def model_names() -> list[str]:
    """Every model avex ships a specification for, by name."""
    return sorted(path.stem for path in _specs_folder().glob("*.yml"))


def find_model(name: str) -> Model:
    """The model of that name.

    Raises:
        RequestError: no such model; the message names the nearest.
    """
    names = model_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise RequestError(f"--model: no avex model {name!r}; did you mean {close[0]!r}? (all: {', '.join(names)})")
    packaged = yaml.safe_load((_specs_folder() / f"{name}.yml").read_text(encoding="utf-8"))
    spec = packaged["model_spec"]
    if spec["name"] not in ARCHITECTURES:
        raise RequestError(f"--model: {name} is a {spec['name']}, which this version does not know how to pool")
    audio = spec["audio_config"]
    return Model(
        name,
        spec["name"],
        int(audio["sample_rate"]),
        float(audio["target_length_seconds"]),
        packaged["checkpoint_path"],
        packaged.get("class_mapping_path"),
    )


def check_fits(model: Model, config: EmbedConfig, window_samples: int) -> None:
    """Whether the model can do what is asked of it.

    Raises:
        RequestError: pooling, masking or a window length it has no meaning for.
    """
    traits = model.traits
    if config.pooling == "cls" and not traits.has_cls:
        raise RequestError(f"--pooling: {model.name} has no CLS token; use mean or max")
    if config.mask_padding and not traits.can_mask:
        raise RequestError(f"--mask-padding: {model.name} takes no padding mask; only BEATs models do")
    own_or_none = (None, (model.checkpoint,), (RANDOM_CHECKPOINT,))
    if config.predict and model.label_map is None and config.checkpoint in own_or_none:
        raise RequestError(f"--predict: {model.name} has no classifier; leave --predict out, or choose another --model")
    if config.layers != LAST and config.mask_padding:
        raise RequestError("--mask-padding: inner layers (--layers) say nothing of what was padding; leave one out")
    if window_samples < traits.min_samples:
        raise RequestError(
            f"--window-s: {model.name} needs windows of at least {traits.min_samples / model.rate_hz:g} s "
            f"({traits.min_samples} samples at {model.rate_hz} Hz)"
        )


def layer_numbers(model: Model, layers: str | tuple[int, ...]) -> tuple[int, ...]:
    """Which of avex's ``get_model_layers()`` are asked for, from 0, in order; none for ``last``.

    Raises:
        RequestError: it has no such layer.
    """
    n_layers = len(model.traits.layer_dims)
    if isinstance(layers, str):
        return tuple(range(n_layers)) if layers == ALL else ()
    for layer in layers:
        if not -n_layers <= layer < n_layers:
            raise RequestError(
                f"--layers: {model.name} has no layer {layer}; they are 0 to {n_layers - 1}, or -1 to -{n_layers} from "
                "the end"
            )
    return tuple(sorted({layer % n_layers for layer in layers}))


def load(model: Model, checkpoint: Checkpoint) -> "torch.nn.Module":
    """The avex model on the CPU, in evaluation mode, returning its unpooled features.

    Raises:
        RequestError: the weights are not tensors only, or do not fit the model.
    """
    import_only_what({model.architecture})
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
            avex.register_model_class(_counting(avex_class, model.architecture))
            with tensors_only(checkpoint) as path:
                with _unset_weights():
                    module = avex.load_model(model.name, device="cpu", checkpoint_path=path, return_features_only=True)
                assert isinstance(module, torch.nn.Module)
                _refuse_misfit(model, checkpoint, module)
                with open_tensors(replace(checkpoint, path=path), "pt") as tensors:
                    _refuse_values(model, checkpoint, module, tensors)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        shapes = str(error).count("size mismatch")
        raise RequestError(
            f"--checkpoint: {checkpoint.uri} does not fit {model.name}: {shapes} tensors have another shape"
        ) from error
    except OSError as error:
        # Only EAT asks the hub for anything here: its backbone's code and configuration.
        raise RequestError(
            f"--model: {model.name} needs its backbone from the Hugging Face hub: {root_cause(error)} — "
            "set HF_HOME to a cache that holds it"
        ) from error
    module.eval()  # load_model leaves dropout and layer drop on
    return module.requires_grad_(False)


def import_only_what(architectures: Set[str]) -> None:
    """Let ``import avex`` pass over other architectures, as it does where what they need is not installed.

    It imports every architecture it knows: 20 s of one core, of which 8 are transformers and 4 torchvision (measured
    2026-11-20; docs/decisions.md, "Models"). A process loads the models of one run, so nothing misses them.
    """
    if "avex" not in sys.modules:
        for package in set.intersection(*(set(ARCHITECTURES[name].not_needed) for name in architectures)):
            sys.modules.setdefault(package, None)  # type: ignore[arg-type]


def _counting(avex_class: type, architecture: str) -> type:
    """``avex_class``, remembering what a checkpoint left unset, and never downloading ImageNet weights first.

    avex loads with ``strict=False`` and only logs what matched; and its EfficientNet is built with
    ``pretrained=True`` whatever the specification says. Its registry of classes is the public way in.
    """

    if hasattr(avex_class, "unset_tensors"):
        return avex_class

    class Counting(avex_class):
        name = architecture  # the key register_model_class files it under
        unset_tensors: tuple[str, ...] = ()

        @functools.wraps(avex_class.__init__)
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs | ({"pretrained": False} if architecture == "efficientnet" else {}))
            self.register_load_state_dict_post_hook(_remember_unset)

    return Counting


def _unset_weights() -> "TorchFunctionMode":
    """Models are built without random weights: a checkpoint's replace them all, or are refused.

    Drawing BEATs' 90 million numbers takes a second (measured 2026-11-21).
    """
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    class Unset(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in {Tensor.normal_, Tensor.uniform_} else func(*args, **kwargs or {})

    return Unset()


def _remember_unset(module: Any, keys: Any) -> None:
    module.unset_tensors = tuple(keys.missing_keys)


def _refuse_misfit(model: Model, checkpoint: Checkpoint, module: "torch.nn.Module") -> None:
    needed = [key for key in module.state_dict() if not key.startswith(model.traits.unused)]
    unset = set(module.unset_tensors).intersection(needed)  # type: ignore[arg-type] — see _remember_unset
    if unset:
        raise RequestError(
            f"--checkpoint: {checkpoint.uri} does not fit {model.name}: {len(needed) - len(unset)} of {len(needed)} "
            f"tensors matched (missing, for one: {min(unset)})"
        )


def _refuse_values(model: Model, checkpoint: Checkpoint, module: "torch.nn.Module", tensors: "safe_open") -> None:
    """Refuse numbers that are no weights: avex casts integers to floats, and takes NaN and infinity as they are.

    Raises:
        RequestError: a weight is stored in a type other than those of WEIGHT_TYPES, or is not finite in float32.
    """
    import torch

    stored = set(tensors.keys())
    for name, values in module.state_dict().items():
        if name not in stored or name.startswith(model.traits.unused) or not values.is_floating_point():
            continue
        kind = tensors.get_slice(name).get_dtype()
        if kind not in WEIGHT_TYPES:
            raise RequestError(
                f"--checkpoint: {checkpoint.uri} stores {name} as {kind}; expected one of {', '.join(WEIGHT_TYPES)}"
            )
        if not torch.isfinite(values).all():
            raise RequestError(
                f"--checkpoint: {checkpoint.uri} has weights that are NaN or infinite in float32 ({name}), with which "
                "no vector would be finite"
            )


@contextmanager
def tensors_only(checkpoint: Checkpoint) -> Iterator[str]:
    """A safetensors file with the checkpoint's tensors.

    avex opens other formats with ``weights_only=False``, which runs whatever code a pickle holds. They are read here
    as tensors only, and handed on as safetensors.
    """
    import torch
    from safetensors.torch import save_file

    assert checkpoint.path is not None
    if checkpoint.path.endswith(".safetensors"):
        with open_tensors(checkpoint, "pt"):
            pass
        yield checkpoint.path
        return
    n_bytes = Path(checkpoint.path).stat().st_size
    try:
        _refuse_larger(checkpoint, _unpacked_bytes(checkpoint.path), n_bytes)
        content = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    except _NO_CHECKPOINT as error:
        raise RequestError(
            f"--checkpoint: {checkpoint.uri} cannot be read as tensors only (code in a checkpoint is never run); "
            "save it as .safetensors"
        ) from error
    for wrapper in ("model_state_dict", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise RequestError(f"--checkpoint: {checkpoint.uri} holds no named tensors")
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    _refuse_larger(checkpoint, sum(value.numel() * value.element_size() for value in tensors.values()), n_bytes)
    tensors = {name: value.clone().contiguous() for name, value in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "tensors.safetensors")
        save_file(tensors, path)
        yield path


def _unpacked_bytes(path: str) -> int:
    """Return the bytes of everything in a zip file, which is what torch.save writes; 0 for older formats."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as packed:
        return sum(each.file_size for each in packed.infolist())


def _refuse_larger(checkpoint: Checkpoint, n_bytes: int, n_file_bytes: int) -> None:
    """Refuse a file that holds more than its size, compressed or by tensors that are views of a few numbers.

    Raises:
        RequestError: ``n_bytes`` of content are more than MOST_TIMES the file.
    """
    if n_bytes > MOST_TIMES * n_file_bytes:
        raise RequestError(
            f"--checkpoint: {checkpoint.uri} unpacks {n_file_bytes:,} bytes to {n_bytes:,}, more than weights do; save "
            "it as .safetensors"
        )
