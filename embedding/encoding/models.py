"""avex models by name: sample rate, native window length, embedding size.

The properties of a model come from the specifications that are packaged with avex. They are read as files, because
importing avex takes 12–20 s of one core (avex imports all of its architectures) and only the actors need avex.
"""

import difflib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml

from embedding.config import ALL_LAYERS, LAST_LAYER, RANDOM_CHECKPOINT, EmbedConfig
from embedding.errors import RequestError


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
        can_quantize: True if most of the model's work consists of matrix products, which can be computed in int8.
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
    can_quantize: bool = False
    unused_tensors: tuple[str, ...] = ()
    unneeded_packages: tuple[str, ...] = ()


ARCHITECTURES = {
    # One 16-frame patch: 400 samples of the first frame and 15 hops of 160 (avex/models/beats/beats.py, _BatchedFbank).
    "beats": Architecture(
        768,
        400 + 15 * 160,
        layer_dims=(768,) * 13,
        can_mask=True,
        can_quantize=True,
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
        RequestError: The model does not support the pooling, the masking, the precision, the layers, the prediction or
            the length.
    """
    traits = model.traits
    if config.pooling == "cls" and not traits.has_cls:
        raise RequestError(f"--pooling: {model.name} has no CLS token; use mean or max")
    if config.mask_padding and not traits.can_mask:
        raise RequestError(f"--mask-padding: {model.name} takes no padding mask; only BEATs models do")
    if config.precision == "int8" and not traits.can_quantize:
        raise RequestError(f"--precision: only BEATs models compute in int8; use fp32 or bf16 for {model.name}")
    if config.precision == "int8" and (config.mask_padding or config.layers != LAST_LAYER):
        raise RequestError("--precision: int8 goes neither with --mask-padding nor with --layers; use fp32 or bf16")
    without_classifier = (None, (model.checkpoint,), (RANDOM_CHECKPOINT,))
    if config.predict and model.label_map is None and config.checkpoint in without_classifier:
        raise RequestError(f"--predict: {model.name} has no classifier; leave --predict out, or choose another --model")
    if config.layers != LAST_LAYER and config.mask_padding:
        raise RequestError("--mask-padding: inner layers (--layers) have no padding mask; leave one of both out")
    if window_samples < traits.min_samples:
        raise RequestError(
            f"--window-s: {model.name} needs windows of at least "
            f"{traits.min_samples / model.rate_hz * config.speed:g} s "
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
        return tuple(range(n_layers)) if layers == ALL_LAYERS else ()
    for layer in layers:
        if not -n_layers <= layer < n_layers:
            raise RequestError(
                f"--layers: {model.name} has no layer {layer}; they are 0 to {n_layers - 1}, or -1 to -{n_layers} from "
                "the end"
            )
    return tuple(sorted({layer % n_layers for layer in layers}))
