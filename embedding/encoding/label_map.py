"""Label maps: the labels of a classifier's outputs, fetched by the driver before any work starts.

A label map is JSON: label → number of the output. The label map of a model's own checkpoint is on the hub; the label
map of a ``--checkpoint`` is ``label_map.json`` in the folder of the checkpoint.
"""

import hashlib
import json
from dataclasses import dataclass

from safetensors import safe_open

from embedding import storage
from embedding.config import RANDOM_CHECKPOINT
from embedding.encoding.checkpoints import Checkpoint, fetch_hub_file, open_safetensors
from embedding.encoding.models import Model
from embedding.errors import RequestError

NAME = "label_map.json"
# Random weights have no labels: this many placeholders stand for labels in trials without a download.
N_RANDOM = 10
MAX_BYTES = 8 << 20  # a hundred thousand labels; parsed JSON takes thirty times the size of its text


@dataclass(frozen=True)
class LabelMap:
    """Labels of a classifier, and the number of labels that are predicted for each window.

    Attributes:
        k: Number of predicted labels per window: the k most likely ones.
        names: Label of each output of the classifier, by number.
    """

    k: int
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Hash of all labels in order."""
        return f"sha256:{hashlib.sha256(json.dumps(self.names).encode()).hexdigest()}"


def fetch_label_map(model: Model, checkpoint: Checkpoint, k: int) -> LabelMap:
    """Fetch the labels of a checkpoint's classifier.

    Args:
        model: The model, which ``models.check_fits`` has accepted.
        checkpoint: Weights of the model.
        k: Number of labels to predict per window.

    Raises:
        RequestError: The model has no classifier, or no matching label map of at least ``k`` labels.
    """
    if checkpoint.uri == RANDOM_CHECKPOINT:
        names = tuple(f"random label {i}" for i in range(N_RANDOM))
    else:
        names = parse_label_map(*_find(model, checkpoint))
        _check_safetensors(model, checkpoint, len(names))
    if k > len(names):
        raise RequestError(f"--predict: {model.name} has {len(names)} labels, fewer than {k}")
    return LabelMap(k, names)


def _find(model: Model, checkpoint: Checkpoint) -> tuple[str, bytes]:
    """Return the URI and the content of the label map."""
    if checkpoint.uri == model.checkpoint:
        return _read_from_hub(model, model.label_map)
    if checkpoint.is_on_hub:
        return _read_from_hub(model, _beside(checkpoint.uri))
    uri = _beside(storage.normalise(checkpoint.uri, "--checkpoint"))
    try:
        return uri, storage.read_bytes(uri, MAX_BYTES)
    except FileNotFoundError:
        if model.label_map is None:
            raise RequestError(
                f"--predict: {model.name} has no classifier, and there is no {NAME} beside --checkpoint "
                f"{checkpoint.uri}"
            ) from None
        return _read_from_hub(model, model.label_map)
    except OSError as error:
        raise RequestError(f"--predict: cannot read {uri}: {error.strerror or error}") from error


def _beside(uri: str) -> str:
    return f"{uri.rpartition('/')[0]}/{NAME}"


def _read_from_hub(model: Model, uri: str | None) -> tuple[str, bytes]:
    assert uri is not None, "models.check_fits refuses a model without a label map"
    return uri, storage.read_bytes(fetch_hub_file(model.name, uri, "label map"), MAX_BYTES)


def parse_label_map(uri: str, content: bytes) -> tuple[str, ...]:
    """Return the labels in the order of their numbers.

    Args:
        uri: URI of the label map, for error messages.
        content: JSON of labels and their numbers.

    Raises:
        RequestError: The content is no label map.
    """
    try:
        numbers = json.loads(content)
        names = {int(str(number)): label for label, number in numbers.items()}  # refuses 0.5 and true
        "".join(names.values()).encode()  # refuses half of a surrogate pair, which JSON allows
        is_complete = bool(names) and sorted(names) == list(range(len(numbers)))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):  # Python's JSON reads Infinity
        names, is_complete = {}, False
    if not is_complete:
        raise RequestError(f"--predict: {uri} is no label map: expected JSON of labels and their numbers 0, 1, 2 …")
    return tuple(names[i] for i in range(len(names)))


def _check_safetensors(model: Model, checkpoint: Checkpoint, n_labels: int) -> None:
    """Check the classifier by the header of a safetensors file; the encoder checks files of other formats."""
    assert checkpoint.path is not None
    if not checkpoint.path.endswith(".safetensors"):
        return
    with open_safetensors(checkpoint, "numpy") as tensors:
        check_classifier(model, checkpoint.uri, tensors, n_labels)


def check_classifier(model: Model, uri: str, tensors: "safe_open", n_labels: int) -> None:
    """Check that an open safetensors file has a classifier for ``model`` with one output per label.

    Args:
        model: The model whose features are classified.
        uri: URI of the checkpoint, for error messages.
        tensors: The open file.
        n_labels: Number of labels of the label map.

    Raises:
        RequestError: The file has no classifier, or one of other shapes.
    """
    name, dim = model.traits.classifier, model.traits.dim
    for part in ("weight", "bias"):
        if f"{name}.{part}" not in tensors.keys():  # noqa: SIM118 — safe_open is no dict
            raise RequestError(f"--predict: {uri} holds no classifier ({name}.{part})")
    weight, bias = (tensors.get_slice(f"{name}.{part}").get_shape() for part in ("weight", "bias"))
    if (weight[1:], bias) != ([dim], weight[:1]):
        raise RequestError(
            f"--predict: {uri} has a classifier of other shapes ({weight} and {bias}) than {model.name} needs "
            f"(n × {dim} and n)"
        )
    if weight[0] != n_labels:
        raise RequestError(f"--predict: {uri} has a classifier of {weight[0]} outputs, its label map {n_labels} labels")
