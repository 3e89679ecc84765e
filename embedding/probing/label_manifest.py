"""A manifest to labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.config import did_you_mean
from embedding.errors import RequestError
from embedding.listing.manifests import read_manifest
from embedding.probing.labels import TEST, TRAIN, Integers, Labels, Names

# Between several labels in one cell of text.
SEPARATOR = ";"
# Where a label begins and ends, in seconds from the start of the recording: our names, and Raven's.
TIMES = [("start_time", "end_time"), ("Begin Time (s)", "End Time (s)")]
SPLIT = "split"
# Of what a column says, in a message.
MOST_NAMES = 5


@dataclass(frozen=True)
class Manifest:
    """Labels of a manifest, and numbers of rows that are ignored."""

    labels: Labels
    n_without_label: int
    n_of_other_splits: int  # neither TRAIN nor TEST


def read_labels(uri: str, column: str, group: str | None) -> Manifest:
    """The labels in ``column``; recordings with the same ``group`` (a column) belong together.

    A row without a label is left out, unless labels are lists or have times: there it says that none was found.

    Raises:
        RequestError: the manifest cannot be read, or makes no sense.
    """
    table = read_manifest(uri, "--labels")
    for option, name in [("--column", column), ("--group", group)]:
        if name is not None and table.column_names.count(name) != 1:
            found = f"{', '.join(table.column_names)}){did_you_mean(name, table.column_names)}"
            raise RequestError(f"{option}: manifest {uri} needs one column {name!r} (it has: {found}")
    names = [_names(cell) for cell in table[column].to_pylist()]
    start_s, end_s, has_times = _times(table, uri)
    if has_times:
        names = [each or [] for each in names]
    has_split = SPLIT in table.column_names
    rows = pa.table(
        {
            "file": table["file"],
            "group": _text(table["file" if group is None else group]),
            "side": _text(table[SPLIT]) if has_split else pa.nulls(len(table), pa.string()),
            "names": pa.array(names, pa.list_(pa.string())),
            "start_s": start_s,
            "end_s": end_s,
        }
    )
    labelled = rows.filter(pc.field("names").is_valid())
    kept = labelled.filter(pc.field("side").isin([TRAIN, TEST])) if has_split else labelled
    if len(labelled) and set(kept["side"].unique().to_pylist()) not in ({None}, {TRAIN, TEST}):
        said = sorted(side or "nothing" for side in labelled["side"].unique().to_pylist())
        raise RequestError(
            f"--labels: column {SPLIT!r} of manifest {uri} has to say {TRAIN!r} and {TEST!r} (it says: "
            f"{', '.join(said[:MOST_NAMES])})"
        )
    labels = _labels(kept.sort_by("file"), uri, has_split=has_split)
    return Manifest(labels, len(rows) - len(labelled), len(labelled) - len(kept))


def _names(cell: Any) -> list[str] | None:
    """The labels in a cell; None where it holds nothing."""
    if isinstance(cell, list):
        return [str(name) for name in cell if name is not None]
    names = [name.strip() for name in str("" if cell is None else cell).split(SEPARATOR)]
    return [name for name in names if name] or None


def _times(table: pa.Table, uri: str) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """``[rows]``: where each label begins and ends, in seconds, and whether the manifest says it at all."""
    columns = next((pair for pair in TIMES if set(pair) & set(table.column_names)), None)
    if columns is None:
        return np.full(len(table), -np.inf), np.full(len(table), np.inf), False
    edges = []
    for name, throughout in zip(columns, (-np.inf, np.inf), strict=True):
        if table.column_names.count(name) != 1:
            raise RequestError(f"--labels: manifest {uri} needs both {' and '.join(columns)}, each once")
        try:
            seconds = _text(table[name]).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise RequestError(f"--labels: column {name!r} of manifest {uri} holds no seconds: {error}") from error
        edges.append(np.where(np.isnan(seconds), throughout, seconds))
    backward = np.flatnonzero(edges[0] > edges[1])
    if len(backward):
        file = table["file"][int(backward[0])]
        raise RequestError(f"--labels: manifest {uri} has a label of {file} that ends before it begins")
    return *edges, True


def _text(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if cell is None else str(cell).strip() for cell in column.to_pylist()], pa.string())


def _labels(rows: pa.Table, uri: str, *, has_split: bool) -> Labels:
    """Return the labels of rows that are in the order of their files."""
    files, recording = np.unique(_objects(rows["file"]), return_inverse=True)
    names = rows["names"].combine_chunks()
    row = names.value_parent_indices().to_numpy()
    classes, label = np.unique(_objects(names.flatten()), return_inverse=True)
    return Labels(
        files=files,
        groups=_of_recordings(rows["group"], files, recording, f"--group: manifest {uri}"),
        sides=_of_recordings(rows["side"], files, recording, f"--labels: manifest {uri}") if has_split else None,
        classes=classes,
        recording=recording[row],
        label=label,
        start_s=rows["start_s"].to_numpy()[row],
        end_s=rows["end_s"].to_numpy()[row],
    )


def _of_recordings(column: pa.ChunkedArray, files: Names, recording: Integers, where: str) -> Names:
    """``[recordings]``: what all rows of a recording say.

    Raises:
        RequestError: they say different things, or nothing.
    """
    said = _objects(column)
    found = np.empty(len(files), object)
    found[recording] = said
    is_silent = np.array([value is None for value in said], bool)
    wrong = np.flatnonzero(is_silent | (found[recording] != said))
    if len(wrong):
        at = wrong[0]
        told = "nothing" if is_silent[at] else f"{said[at]!r} and {found[recording[at]]!r}"
        raise RequestError(f"{where} says {told} of {files[recording[at]]}")
    return found


def _objects(column: pa.ChunkedArray | pa.Array) -> Names:
    return np.array(column.to_pylist(), object)
