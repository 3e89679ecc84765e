"""A probe read back from its files, or from a .npz of another program. Everything that is read is checked."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding import storage
from embedding.config import did_you_mean
from embedding.errors import RequestError
from embedding.output import json_files
from embedding.output.json_files import ProbeRecord
from embedding.output.npz_files import MOST_BYTES, BadArraysError, read_arrays
from embedding.output.shard_reading import refuse_damage
from embedding.output.shard_schema import check_values
from embedding.probing.calibration import Calibration, probabilities
from embedding.probing.labels import Booleans, Floats
from embedding.probing.probe_files import PROBES_FOLDER, probe_folder
from embedding.schema.vectors import matrix

WEIGHTS_SUFFIX = ".npz"
_TRAIN_AGAIN = "train it again with jobs.probe --replace"


@dataclass(frozen=True)
class HeldOut:
    """The windows of a probe's test.

    Attributes:
        probability: ``[windows, classes]``, calibrated.
        truth: ``[windows, classes]``, the labels.
    """

    probability: Floats
    truth: Booleans


@dataclass(frozen=True)
class StoredProbe:
    """A probe that scores vectors as they are stored.

    Attributes:
        name: Name of the probe.
        digest: Hash of its weights.
        weight: ``[classes, dim]``, with the calibration.
        bias: ``[classes]``, with the calibration.
        classes: Names of the classes.
        is_exclusive: Each window has exactly one class; see ``logistic_regression.Probe``.
        layer: The inner layer whose vectors the probe scores; None for the output of the model.
        settings: Settings of the vectors that the probe was learnt from; None where they are not known.
        held_out: The windows of the test; None for a probe of another program.
    """

    name: str
    digest: str
    weight: Floats
    bias: Floats
    classes: list[str]
    is_exclusive: bool
    layer: str | None
    settings: dict[str, Any] | None
    held_out: HeldOut | None


def read_probe(root: str, name: str) -> StoredProbe:
    """Read a probe.

    Args:
        root: Directory or prefix of the output.
        name: Name of a probe of the output, or path or URI of a .npz with ``weight`` [classes, dim], ``bias`` [classes]
            and ``classes``, and optionally ``scale``, ``offset`` [classes] and ``exclusive``.

    Raises:
        OSError: The storage failed.
        RequestError: There is no such probe, or its files are damaged.
    """
    if name.endswith(WEIGHTS_SUFFIX):
        return _read_foreign(storage.normalise(name, "--probe"))
    if not name or "/" in name or name.startswith("."):
        raise RequestError(f"--probe: {name!r} is neither the name of a probe nor a {WEIGHTS_SUFFIX} file")
    folder = probe_folder(root, name)
    uri = storage.join(folder, "probe.json")
    try:
        content = storage.read_bytes(uri, json_files.MOST_BYTES)
    except FileNotFoundError:
        raise _unknown_probe(root, name) from None
    try:
        record = json_files.parse(ProbeRecord, content)
    except json_files.BadRecordError as error:
        raise RequestError(f"--probe: cannot read {uri}: {error}; {_TRAIN_AGAIN}") from error
    if lacking := {"weights.npz", "predictions.parquet"} - set(record.files):
        raise RequestError(f"--probe: {uri} has no digest of {min(lacking)}: {_TRAIN_AGAIN}")
    weights = _read_whole(storage.join(folder, "weights.npz"), record.files["weights.npz"])
    arrays = _read_arrays(storage.join(folder, "weights.npz"), weights)
    if arrays.classes != record.classes:
        raise RequestError(f"--probe: {folder} holds the files of two probes: {_TRAIN_AGAIN}")
    predictions = storage.join(folder, "predictions.parquet")
    held_out = _read_held_out(
        predictions, _read_whole(predictions, record.files["predictions.parquet"]), arrays, record.exclusive
    )
    return StoredProbe(
        name=name,
        digest=_digest(weights),
        weight=arrays.weight * arrays.calibration.scale[:, None],
        bias=arrays.calibration.apply(arrays.bias[None])[0],
        classes=arrays.classes,
        is_exclusive=record.exclusive,
        layer=record.layer,
        settings=record.settings,
        held_out=held_out,
    )


def _unknown_probe(root: str, name: str) -> RequestError:
    names = storage.list_folders(storage.join(root, PROBES_FOLDER))
    known = f"; there are {', '.join(names)}" if names else ": learn one with python -m jobs.probe"
    return RequestError(f"--probe: {root} has no probe {name!r}{did_you_mean(name, names)}{known}")


def _read_whole(uri: str, digest: str) -> bytes:
    """Return the content of a file of a probe, which must have a digest.

    Raises:
        RequestError: The file is missing, or is not the file that belongs to the probe.
    """
    try:
        content = storage.read_bytes(uri, MOST_BYTES)
    except FileNotFoundError:
        raise RequestError(f"--probe: {uri} is missing: {_TRAIN_AGAIN}") from None
    if _digest(content) != digest:
        raise RequestError(f"--probe: {uri} is damaged, or of another probe than probe.json: {_TRAIN_AGAIN}")
    return content


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Arrays:
    weight: Floats
    bias: Floats
    classes: list[str]
    calibration: Calibration
    is_exclusive: bool


def _read_foreign(uri: str) -> StoredProbe:
    """Read the .npz of another program."""
    try:
        content = storage.read_bytes(uri, MOST_BYTES)
    except OSError as error:
        raise RequestError(f"--probe: cannot read {uri}: {error.strerror or error}") from error
    arrays = _read_arrays(uri, content)
    return StoredProbe(
        name=uri.rpartition("/")[2].removesuffix(WEIGHTS_SUFFIX),
        digest=_digest(content),
        weight=arrays.weight * arrays.calibration.scale[:, None],
        bias=arrays.calibration.apply(arrays.bias[None])[0],
        classes=arrays.classes,
        is_exclusive=arrays.is_exclusive,
        layer=None,
        settings=None,
        held_out=None,
    )


def _read_arrays(uri: str, content: bytes) -> _Arrays:
    """Return the arrays of a .npz, checked.

    Raises:
        RequestError: The file is no .npz, or its arrays do not fit together.
    """
    try:
        arrays = read_arrays(content, ("weight", "bias", "classes"), ("scale", "offset", "exclusive"))
    except BadArraysError as error:
        raise RequestError(f"--probe: {uri}: {error}") from error
    weight, bias, classes = arrays["weight"], arrays["bias"], arrays["classes"]
    n = len(classes) if classes.ndim == 1 else 0
    scale, offset = arrays.get("scale", np.ones(n)), arrays.get("offset", np.zeros(n))
    if not n or weight.ndim != 2 or len(weight) != n or any(each.shape != (n,) for each in (bias, scale, offset)):
        shapes = f"weight {weight.shape}, bias {bias.shape}, classes {classes.shape}"
        raise RequestError(f"--probe: {uri} needs weight [classes, dim], bias [classes], classes; it has {shapes}")
    names = classes.tolist()
    if classes.dtype.kind != "U" or len(set(names)) < n:
        raise RequestError(f"--probe: {uri} needs names in 'classes', each once")
    exclusive = arrays.get("exclusive", np.False_)
    if exclusive.dtype != bool or exclusive.size != 1:
        raise RequestError(f"--probe: {uri} needs one truth value in 'exclusive'")
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        numbers = [each.astype(float) for each in (weight, bias, scale, offset) if each.dtype.kind in "fiu"]
        is_finite = len(numbers) == 4 and np.isfinite((numbers[0] * numbers[2][:, None]).astype(np.float32)).all()
        is_finite = is_finite and np.isfinite((numbers[1] * numbers[2] + numbers[3]).astype(np.float32)).all()
    if not is_finite:
        raise RequestError(f"--probe: {uri} holds weights that are no finite number")
    calibration = Calibration(numbers[2], numbers[3], np.ones(n, bool))
    return _Arrays(numbers[0], numbers[1], names, calibration, bool(exclusive.all()))


def _read_held_out(uri: str, content: bytes, arrays: _Arrays, is_exclusive: bool) -> HeldOut:
    """Return the windows of the test from ``predictions.parquet``."""
    schema = pa.schema({"labels": pa.list_(pa.string()), "scores": pa.list_(pa.float32(), len(arrays.classes))})
    with refuse_damage(uri, _TRAIN_AGAIN):
        table = pq.read_table(pa.BufferReader(content), columns=schema.names).select(schema.names).cast(schema)
        check_values(uri, table)
        labels, scores = table["labels"].combine_chunks(), matrix(table["scores"])
        rows = labels.value_parent_indices().to_numpy()
        names = labels.flatten().to_pylist()
        values = scores.astype(float)
    position = {name: at for at, name in enumerate(arrays.classes)}
    truth = np.zeros((len(table), len(arrays.classes)), bool)
    for row, name in zip(rows, names, strict=True):
        if name in position:  # a class of the test that could not be learnt has no score
            truth[row, position[name]] = True
    calibrated = arrays.calibration.apply(values)
    return HeldOut(probabilities(calibrated, is_exclusive=is_exclusive), truth)
