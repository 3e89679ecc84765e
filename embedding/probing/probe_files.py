"""The files of a probe.

OUTPUT/probes/NAME/weights.npz           weight [classes, dim], bias, scale, offset [classes], classes
OUTPUT/probes/NAME/predictions.parquet   one row per window of the test
OUTPUT/probes/NAME/split.parquet         one row per recording: a manifest that splits the same way again
OUTPUT/probes/NAME/probe.json            metrics and origin; written last
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
from embedding.probing.calibration import calibrate_across, measure_reliability, probabilities
from embedding.probing.curves import confusions, precision_over_recall
from embedding.probing.label_manifest import SPLIT_COLUMN
from embedding.probing.labelled_windows import WINDOW_KEYS
from embedding.probing.labels import TEST, TRAIN, Booleans, Names
from embedding.probing.logistic_regression import MAX_ITERATIONS, C
from embedding.probing.metrics import Metrics
from embedding.probing.probe_result import ProbeResult, Subset
from embedding.schema.vectors import column

PROBES_FOLDER = "probes"
VERSIONED_PACKAGES = ("avex-batch", "scikit-learn", "numpy")


def probe_folder(root: str, name: str) -> str:
    """Return the folder of a probe."""
    return storage.child(storage.join(root, PROBES_FOLDER), name)


def refuse_existing(root: str, name: str) -> None:
    """Refuse to replace a probe.

    Raises:
        RequestError: A probe of this name exists.
        OSError: The storage failed.
    """
    if any(storage.list_names(probe_folder(root, name), "probe.json")):
        raise RequestError(
            f"--name: there is a probe {name!r} in {root} already: add --replace, or choose another --name"
        )


def write_probe(result: ProbeResult) -> None:
    """Store a probe, in place of a probe of the same name.

    Each file is replaced in one step, after the content of all files is made. probe.json, the last, has the digests of
    the other files. If the process dies between two files, the digests show that the files belong to two probes; the
    same command again repairs that.

    Raises:
        OSError: The storage failed.
    """
    folder = probe_folder(result.options.root, result.options.name)
    contents = {
        "weights.npz": _encode_weights(result),
        "predictions.parquet": encode_parquet(_make_predictions(result)),
        "split.parquet": encode_parquet(_make_split(result)),
    }
    digests = {name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in contents.items()}
    contents["probe.json"] = encode_json(_describe(result) | {"files": digests})
    storage.write_together({storage.join(folder, name): content for name, content in contents.items()})


def _encode_weights(result: ProbeResult) -> bytes:
    sink = io.BytesIO()
    np.savez(
        sink,
        weight=result.probe.weight,
        bias=result.probe.bias,
        scale=result.calibration.scale,
        offset=result.calibration.offset,
        classes=np.array(result.classes, str),
    )
    return sink.getvalue()


def _make_predictions(result: ProbeResult) -> pa.Table:
    test, labels = result.test, result.labels
    return (
        test.windows.select(WINDOW_KEYS)
        .add_column(0, "file", pa.array(labels.files[test.recording], pa.string()))
        .append_column("labels", _list_labels(test.truth, labels.classes))
        .append_column("scores", column(result.scores.astype(np.float32)))
    )


def _make_split(result: ProbeResult) -> pa.Table:
    labels = result.labels
    return pa.table(
        {
            "file": pa.array(labels.files, pa.string()),
            result.manifest.column: _list_labels(labels.label_recordings(), labels.classes),
            SPLIT_COLUMN: pa.array(np.where(result.is_test, TEST, TRAIN)),
        }
    )


def _list_labels(truth: Booleans, classes: Names) -> pa.ListArray:
    """Return the names of the labels in each row of ``truth``, ``[rows, classes]``."""
    _, label = np.nonzero(truth)
    offsets = np.concatenate([[0], np.cumsum(truth.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(classes[label], pa.string()))


def _describe(result: ProbeResult) -> dict[str, Any]:
    """Return the content of probe.json, except the digests."""
    options, labels, probe = result.options, result.labels, result.probe
    return {
        "name": options.name,
        "classes": result.classes,  # in the order of the rows of weight and bias
        "exclusive": probe.is_exclusive,
        "metrics": {"windows": result.window_metrics.means(), "recordings": result.recording_metrics.means()},
        "chance": {"windows": result.window_metrics.chance(), "recordings": result.recording_metrics.chance()},
        "by_class": _describe_classes(result),
        "curves": _curves(result),  # recall and precision of the test's windows
        "confusions": confusions(result.scores, result.test.truth[:, result.is_learnt]).tolist(),
        "left_out": {
            "rows_without_label": result.manifest.n_without_label,
            "rows_of_other_splits": result.manifest.n_other_splits,
            "annotations_of_unknown_recordings": result.manifest.unmatched.n_annotations,
            "recordings_not_stored": len(result.manifest.labels.files) - len(labels.files),
            "classes_not_stored": sorted(set(result.manifest.labels.classes) - set(labels.classes)),
        },
        "split": {
            "by": options.group or "file",
            "of": "the manifest" if labels.splits is not None else "a draw, stratified by label",
            "test_share": options.test_share,
            "seed": options.seed,
            TRAIN: _count(result.train),
            TEST: _count(result.test),
        },
        "fit": {
            "model": "logistic regression on standardised vectors",
            "C": C,
            "max_iterations": MAX_ITERATIONS,
            "converged": probe.has_converged,
        },
        "calibration": describe_calibration(result),
        "layer": options.layer,
        "labels": {"manifest": options.labels, "column": result.manifest.column},
        "settings": result.settings,
        "versions": {name: metadata.version(name) for name in VERSIONED_PACKAGES}
        | {"python": platform.python_version()},
    }


def _curves(result: ProbeResult) -> dict[str, list[tuple[float, float]]]:
    truth = result.test.truth[:, result.is_learnt]
    return {name: precision_over_recall(result.scores[:, at], truth[:, at]) for at, name in enumerate(result.classes)}


def describe_calibration(result: ProbeResult) -> dict[str, Any]:
    """Return the method of the calibration, and the reliability of the test's scores without and with it."""
    is_exclusive, calibration = result.probe.is_exclusive, result.calibration
    truth = result.test.truth[:, result.is_learnt]
    across = calibrate_across(result.scores, truth, result.test.recording, is_exclusive=is_exclusive)
    before, after = (
        measure_reliability(probabilities(scores, is_exclusive=is_exclusive), truth)
        for scores in (result.scores, across)
    )
    fitted = np.array(result.classes, object)[calibration.is_fitted].tolist()
    return {
        "method": "temperature" if is_exclusive else "Platt",
        "classes_fitted": fitted,
        "before": before.describe(),
        "after": after.describe(),  # on recordings that the calibration was not fitted on
    }


def _count(subset: Subset) -> dict[str, int]:
    return {"recordings": subset.n_recordings, "windows": subset.n_windows, "windows_used": len(subset.windows)}


def _describe_classes(result: ProbeResult) -> list[dict[str, Any]]:
    """Return counts and metrics of each class; metrics are None for a class that was not learnt or not measured."""
    return [
        {
            "class": name,
            "train_windows": int(result.train.truth[:, at].sum()),
            "test_windows": int(result.test.truth[:, at].sum()),
            "windows": _class_metrics(result.window_metrics, at),
            "recordings": _class_metrics(result.recording_metrics, at),
        }
        for at, name in enumerate(result.labels.classes)
    ]


def _class_metrics(metrics: Metrics, at: int) -> dict[str, float | None]:
    values = {"average_precision": metrics.average_precision[at], "roc_auc": metrics.roc_auc[at]}
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}
