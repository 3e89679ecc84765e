"""The files of a probe.

OUTPUT/probes/NAME/weights.npz           weight [classes, dim], bias [classes], classes
OUTPUT/probes/NAME/predictions.parquet   one row per window of the test
OUTPUT/probes/NAME/split.parquet         one row per recording: a manifest that splits the same way again
OUTPUT/probes/NAME/probe.json            how good it is, and where it comes from; written last
"""

import hashlib
import io
import platform
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa

from embedding import storage
from embedding.errors import RequestError
from embedding.output.store import encode_json, encode_parquet
from embedding.probing.label_manifest import SPLIT
from embedding.probing.labelled_windows import COLUMNS
from embedding.probing.labels import TEST, TRAIN, Names, Truth
from embedding.probing.logistic_regression import MOST_ITERATIONS, C
from embedding.probing.metrics import Metrics
from embedding.probing.probe_result import Result, Side
from embedding.schema.vectors import column

FOLDER = "probes"
VERSIONED = ("avex-batch", "scikit-learn", "numpy")


def folder(root: str, name: str) -> str:
    """Return the folder of a probe."""
    return storage.child(storage.join(root, FOLDER), name)


def refuse_existing(root: str, name: str) -> None:
    """Refuse to replace a probe.

    Raises:
        RequestError: a probe of this name is there.
        OSError: the storage failed.
    """
    if any(storage.list_names(folder(root, name), "probe.json")):
        raise RequestError(
            f"--name: there is a probe {name!r} in {root} already: add --replace, or choose another --name"
        )


def write(result: Result) -> None:
    """Store a probe, in the place of one of the same name.

    Each file is replaced in one step, once all are made; probe.json, the last, has the digests of the others. Where
    the process dies between two files, the digests tell that they are of two probes: the same command again mends that.
    """
    where = folder(result.wanted.root, result.wanted.name)
    contents = {
        "weights.npz": _weights(result),
        "predictions.parquet": encode_parquet(_predictions(result)),
        "split.parquet": encode_parquet(_split(result)),
    }
    digests = {name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in contents.items()}
    about = described(result) | {"files": digests}
    contents["probe.json"] = encode_json(about)
    storage.write_together({storage.join(where, name): content for name, content in contents.items()})


def _weights(result: Result) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, weight=result.probe.weight, bias=result.probe.bias, classes=np.array(result.classes, str))
    return sink.getvalue()


def _predictions(result: Result) -> pa.Table:
    windows, labels = result.test.windows, result.labels
    return (
        windows.select(COLUMNS)
        .add_column(0, "file", pa.array(labels.files[result.test.recording], pa.string()))
        .append_column("labels", _lists(result.test.truth, labels.classes))
        .append_column("scores", column(result.scores.astype(np.float32)))
    )


def _split(result: Result) -> pa.Table:
    labels = result.labels
    return pa.table(
        {
            "file": pa.array(labels.files, pa.string()),
            result.wanted.column: _lists(labels.of_recordings(), labels.classes),
            SPLIT: pa.array(np.where(result.is_test, TEST, TRAIN)),
        }
    )


def _lists(truth: Truth, classes: Names) -> pa.ListArray:
    """The labels of each row of ``[rows, classes]``."""
    _, at = np.nonzero(truth)
    offsets = np.concatenate([[0], np.cumsum(truth.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(classes[at], pa.string()))


def described(result: Result) -> dict[str, Any]:
    """``probe.json``."""
    wanted, labels, probe = result.wanted, result.labels, result.probe
    return {
        "name": wanted.name,
        "classes": result.classes,  # of the rows of weight and bias
        "exclusive": probe.is_exclusive,
        "metrics": {"windows": result.of_windows.means(), "recordings": result.of_recordings.means()},
        "chance": {"windows": result.of_windows.chance(), "recordings": result.of_recordings.chance()},
        "by_class": _by_class(result),
        "left_out": {
            "rows_without_label": result.manifest.n_without_label,
            "rows_of_other_splits": result.manifest.n_of_other_splits,
            "recordings_not_stored": len(result.manifest.labels.files) - len(labels.files),
            "classes_not_stored": sorted(set(result.manifest.labels.classes) - set(labels.classes)),
        },
        "split": {
            "by": wanted.group or "file",
            "of": "the manifest" if labels.sides is not None else "a draw, stratified by label",
            "test_share": wanted.test_share,
            "seed": wanted.seed,
            TRAIN: _counts(result.train),
            TEST: _counts(result.test),
        },
        "fit": {
            "model": "logistic regression on standardised vectors",
            "C": C,
            "max_iterations": MOST_ITERATIONS,
            "converged": probe.has_converged,
        },
        "layer": wanted.layer,
        "labels": {"manifest": wanted.labels, "column": wanted.column},
        "settings": result.settings,
        "versions": {name: metadata.version(name) for name in VERSIONED} | {"python": platform.python_version()},
    }


def _counts(side: Side) -> dict[str, int]:
    return {"recordings": side.n_recordings, "windows": side.n_windows, "windows_used": len(side.windows)}


def _by_class(result: Result) -> list[dict[str, Any]]:
    """Return the measures of each class, None for a class that could not be learnt or measured."""
    return [
        {
            "class": name,
            "train_windows": int(result.train.truth[:, at].sum()),
            "test_windows": int(result.test.truth[:, at].sum()),
            "windows": _of_class(result.of_windows, at),
            "recordings": _of_class(result.of_recordings, at),
        }
        for at, name in enumerate(result.labels.classes)
    ]


def _of_class(metrics: Metrics, at: int) -> dict[str, float | None]:
    found = {"average_precision": metrics.average_precision[at], "roc_auc": metrics.roc_auc[at]}
    return {name: None if np.isnan(value) else float(value) for name, value in found.items()}
