"""avex models by name: sample rate, native window length, embedding size, and loading with a checkpoint.

The properties of a model come from the specifications that are packaged with avex. They are read as files, because
importing avex takes 12–20 s of one core (avex imports all of its architectures) and only the actors need avex.
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
from embedding.encoding.checkpoints import RANDOM_SEED, Checkpoint, open_safetensors
from embedding.errors import RequestError, root_cause
from embedding.quiet import logging_hidden

if TYPE_CHECKING:
    import torch
    from safetensors import safe_open
    from torch.overrides import TorchFunctionMode


# Number types of weights, by their names in safetensors. Integers and eight-bit floats are not accepted, because they
# are quantised and need their scales.
WEIGHT_TYPES = ("F32", "F16", "BF16", "F64")
# Largest ratio of a checkpoint's content to its file. torch.save does not compress, but a tensor that two layers share
# is counted twice.
MAX_UNPACKED_RATIO = 4
# Errors of torch.load and zipfile for files that are no checkpoint (seen: KeyError for a text, IndexError for zeros).
_NO_CHECKPOINT = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, EOFError, ValueError),
    *(LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError),
)


@dataclass(frozen=True)
class Architecture:
    """Properties of an architecture, which avex's code defines and not a model's specification.

    Attributes:
        dim: Length of a pooled vector.
        min_samples: Length of the shortest window that has one token or one frame.
        layer_dims: Length of the pooled vector of each layer of avex's ``get_model_layers()``.
        classifier: Name of the classifier in the checkpoint of a supervised model.
        classifier_pooling: Pooling of the features that the classifier takes.
        has_cls: True if the first token is a CLS token.
        can_mask: True if the model takes a padding mask.
        unused_tensors: Prefixes of tensors that a checkpoint may lack: ``return_features_only`` never reads them, or
            they are constants.
        unneeded_packages: Packages that only other architectures import.
    """

    dim: int
    min_samples: int
    layer_dims: tuple[int, ...]
    classifier: str = "classifier"
    classifier_pooling: str = "mean"
    has_cls: bool = False
    can_mask: bool = False
    unused_tensors: tuple[str, ...] = ()
    unneeded_packages: tuple[str, ...] = ()


ARCHITECTURES = {
    # One 16-frame patch: 400 samples of the first frame and 15 hops of 160 (avex/models/beats/beats.py, _BatchedFbank).
    "beats": Architecture(
        768,
        400 + 15 * 160,
        layer_dims=(768,) * 13,
        can_mask=True,
        unused_tensors=("backbone.predictor.", "backbone.fbank."),
        unneeded_packages=("transformers", "torchvision"),
    ),
    # torch.stft pads by reflection, by half of its transform of 800 samples, and needs more audio than the padding.
    "efficientnet": Architecture(
        1280,
        401,
        layer_dims=(32, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320, 1280),
        classifier="model.classifier.1",
        unused_tensors=("model.classifier.",),
        unneeded_packages=("transformers",),
    ),
    # One 25 ms frame; the processor pads the rest to 1024 frames itself.
    "eat_hf": Architecture(768, 400, layer_dims=(768,) * 12, classifier_pooling="cls", has_cls=True),
}


@dataclass(frozen=True)
class Model:
    """One avex model.

    Attributes:
        name: avex's name of the model.
        architecture: Key of ``ARCHITECTURES``.
        rate_hz: Sample rate of the model's audio.
        native_s: Length of the windows in the model's training.
        checkpoint: URI of the model's own weights, ``hf://owner/repo/file``.
        label_map: URI of the label map of the model's classifier; None if the model has no classifier.
    """

    name: str
    architecture: str
    rate_hz: int
    native_s: float
    checkpoint: str
    label_map: str | None

    @property
    def traits(self) -> Architecture:
        """Properties of the model's architecture."""
        return ARCHITECTURES[self.architecture]


def _specs_folder() -> Path:
    return Path(str(metadata.distribution("avex").locate_file("avex/api/configs/official_models")))


def model_names() -> list[str]:
    """Return the names of all models for which avex has a specification."""
    return sorted(path.stem for path in _specs_folder().glob("*.yml"))


def find_model(name: str) -> Model:
    """Read the specification of a model.

    Args:
        name: avex's name of the model.

    Raises:
        RequestError: The model does not exist, and the message suggests the most similar name; or its architecture is
            not supported.
    """
    names = model_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise RequestError(f"--model: no avex model {name!r}; did you mean {close[0]!r}? (all: {', '.join(names)})")
    packaged = yaml.safe_load((_specs_folder() / f"{name}.yml").read_text(encoding="utf-8"))
    spec = packaged["model_spec"]
    if spec["name"] not in ARCHITECTURES:
        raise RequestError(f"--model: {name} is a {spec['name']}, which this version does not support")
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
    """Check that the model supports the options.

    Args:
        model: The model.
        config: Options of this model.
        window_samples: Length of the windows in samples at the model's rate.

    Raises:
        RequestError: The model does not support the pooling, the masking, the layers, the prediction or the length.
    """
    traits = model.traits
    if config.pooling == "cls" and not traits.has_cls:
        raise RequestError(f"--pooling: {model.name} has no CLS token; use mean or max")
    if config.mask_padding and not traits.can_mask:
        raise RequestError(f"--mask-padding: {model.name} takes no padding mask; only BEATs models do")
    without_classifier = (None, (model.checkpoint,), (RANDOM_CHECKPOINT,))
    if config.predict and model.label_map is None and config.checkpoint in without_classifier:
        raise RequestError(f"--predict: {model.name} has no classifier; leave --predict out, or choose another --model")
    if config.layers != LAST and config.mask_padding:
        raise RequestError("--mask-padding: inner layers (--layers) have no padding mask; leave one of both out")
    if window_samples < traits.min_samples:
        raise RequestError(
            f"--window-s: {model.name} needs windows of at least {traits.min_samples / model.rate_hz:g} s "
            f"({traits.min_samples} samples at {model.rate_hz} Hz)"
        )


def layer_numbers(model: Model, layers: str | tuple[int, ...]) -> tuple[int, ...]:
    """Resolve the option ``--layers``.

    Args:
        model: The model.
        layers: ``all``, ``last``, or indices into avex's ``get_model_layers()``, negative ones from the end.

    Returns:
        Indices from 0, in order; none for ``last``.

    Raises:
        RequestError: The model has no such layer.
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


@contextmanager
def as_safetensors(checkpoint: Checkpoint) -> Iterator[str]:
    """Provide a safetensors file with the tensors of a checkpoint; a temporary file for other formats.

    avex opens other formats with ``weights_only=False``, which runs any code in a pickle. Here these files are read as
    tensors only.

    Args:
        checkpoint: Weights on this machine, not random ones.

    Raises:
        RequestError: The file is damaged, contains code or no tensors, or unpacks to far more than its size.
    """
    import torch
    from safetensors.torch import save_file

    assert checkpoint.path is not None
    if checkpoint.path.endswith(".safetensors"):
        with open_safetensors(checkpoint, "pt"):
            pass
        yield checkpoint.path
        return
    n_bytes = Path(checkpoint.path).stat().st_size
    try:
        _check_unpacked_size(checkpoint, _unpacked_bytes(checkpoint.path), n_bytes)
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
    _check_unpacked_size(checkpoint, sum(value.numel() * value.element_size() for value in tensors.values()), n_bytes)
    tensors = {name: value.clone().contiguous() for name, value in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "tensors.safetensors")
        save_file(tensors, path)
        yield path


def _unpacked_bytes(path: str) -> int:
    """Return the unpacked size of a zip file, the format of torch.save, in bytes; 0 for older formats."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as packed:
        return sum(entry.file_size for entry in packed.infolist())


def _check_unpacked_size(checkpoint: Checkpoint, n_bytes: int, n_file_bytes: int) -> None:
    """Refuse a file with far more content than its size: compressed, or with tensors that are views of few numbers."""
    if n_bytes > MAX_UNPACKED_RATIO * n_file_bytes:
        raise RequestError(
            f"--checkpoint: {checkpoint.uri} unpacks {n_file_bytes:,} bytes to {n_bytes:,}, more than weights do; save "
            "it as .safetensors"
        )
