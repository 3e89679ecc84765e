"""What a classifier's outputs mean: a model's label map, fetched by the driver before any work.

A label map is JSON, label → number of the output. It lies beside the weights: of a model's own on the hub, of a
``--checkpoint`` in the same folder, under the same name.
"""

import hashlib
import json
from dataclasses import dataclass

from safetensors import safe_open

from embedding import storage
from embedding.config import RANDOM_CHECKPOINT
from embedding.encoding.checkpoints import Checkpoint, fetch_hub_file, open_tensors
from embedding.encoding.models import Model
from embedding.errors import RequestError

NAME = "label_map.json"
# With random weights there is nothing to predict: these stand for labels in trials without a download.
N_RANDOM = 10
MOST_BYTES = 8 << 20  # a hundred thousand labels; JSON in memory takes thirty times its text


@dataclass(frozen=True)
class Labels:
    """The ``k`` most likely of ``names`` are told of each window; ``names[i]`` is what output ``i`` stands for."""

    k: int
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(json.dumps(self.names).encode()).hexdigest()}"


def fetch_labels(model: Model, checkpoint: Checkpoint, k: int) -> Labels:
    """The labels of a checkpoint's classifier.

    Raises:
        RequestError: the model has no classifier, or no label map that fits it; or fewer labels than ``k``.
    """
    if checkpoint.uri == RANDOM_CHECKPOINT:
        names = tuple(f"random label {i}" for i in range(N_RANDOM))
    else:
        names = _names(*_label_map(model, checkpoint))
        _check_classifier(model, checkpoint, len(names))
    if k > len(names):
        raise RequestError(f"--predict: {model.name} knows {len(names)} labels, fewer than {k}")
    return Labels(k, names)


def _label_map(model: Model, checkpoint: Checkpoint) -> tuple[str, bytes]:
    """Where it is, and its bytes."""
    if checkpoint.uri == model.checkpoint:
        return _of_hub(model, model.label_map)
    if checkpoint.is_of_hub:
        return _of_hub(model, _beside(checkpoint.uri))
    uri = _beside(storage.normalise(checkpoint.uri, "--checkpoint"))
    try:
        return uri, storage.read_bytes(uri, MOST_BYTES)
    except FileNotFoundError:
        if model.label_map is None:
            raise RequestError(
                f"--predict: {model.name} has no classifier, and there is no {NAME} beside --checkpoint "
                f"{checkpoint.uri}"
            ) from None
        return _of_hub(model, model.label_map)
    except OSError as error:
        raise RequestError(f"--predict: cannot read {uri}: {error.strerror or error}") from error


def _beside(uri: str) -> str:
    return f"{uri.rpartition('/')[0]}/{NAME}"


def _of_hub(model: Model, uri: str | None) -> tuple[str, bytes]:
    assert uri is not None, "check_fits has refused it"
    return uri, storage.read_bytes(fetch_hub_file(model.name, uri, "label map"), MOST_BYTES)


def _names(uri: str, content: bytes) -> tuple[str, ...]:
    try:
        numbers = json.loads(content)
        names = {int(str(number)): label for label, number in numbers.items()}  # neither 0.5 nor true is a number
        "".join(names.values()).encode()  # JSON may hold half a character
        is_whole = bool(names) and sorted(names) == list(range(len(numbers)))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):  # Python's JSON has an Infinity
        names, is_whole = {}, False
    if not is_whole:
        raise RequestError(f"--predict: {uri} is no label map: expected JSON of labels and their numbers from 0 on")
    return tuple(names[i] for i in range(len(names)))


def _check_classifier(model: Model, checkpoint: Checkpoint, n_labels: int) -> None:
    """Of a .safetensors file its header says it at once; of others the encoder finds out."""
    assert checkpoint.path is not None
    if not checkpoint.path.endswith(".safetensors"):
        return
    with open_tensors(checkpoint, "numpy") as tensors:
        refuse_misfit(model, checkpoint.uri, tensors, n_labels)


def refuse_misfit(model: Model, uri: str, tensors: "safe_open", n_labels: int) -> None:
    """Whether an open .safetensors file has a classifier of ``n_labels`` outputs.

    Raises:
        RequestError: it has none, or another one.
    """
    name, dim = model.traits.classifier, model.traits.dim
    for part in ("weight", "bias"):
        if f"{name}.{part}" not in tensors.keys():  # noqa: SIM118 — no dict
            raise RequestError(f"--predict: {uri} holds no classifier ({name}.{part})")
    weight, bias = (tensors.get_slice(f"{name}.{part}").get_shape() for part in ("weight", "bias"))
    if (weight[1:], bias) != ([dim], weight[:1]):
        raise RequestError(
            f"--predict: {uri} has a classifier of other shapes ({weight} and {bias}) than {model.name} needs "
            f"(n × {dim} and n)"
        )
    if weight[0] != n_labels:
        raise RequestError(f"--predict: {uri} has a classifier of {weight[0]} outputs, its label map {n_labels} labels")
