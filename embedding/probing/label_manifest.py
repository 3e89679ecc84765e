"""Labels as arrays, from a table in the form of a manifest."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding.config import did_you_mean
from embedding.errors import RequestError
from embedding.labelling.annotations import ABSENT, PRESENT, UNSURE, VERDICTS, Unmatched
from embedding.labelling.label_tables import VERDICT_COLUMN, LabelTable
from embedding.probing.labels import TEST, TRAIN, Booleans, Floats, Integers, Labels, Names, Stretches

# Between several labels in one cell of text.
SEPARATOR = ";"
# Columns with the start and end of a label, in seconds from the start of the recording: our names, and Raven's.
TIME_COLUMNS = [("start_time", "end_time"), ("Begin Time (s)", "End Time (s)")]
SPLIT_COLUMN = "split"
# Values of a column that a message names.
MAX_VALUES_SHOWN = 5


@dataclass(frozen=True)
class LabelManifest:
    """Labels of a manifest, and numbers of rows that are left out.

    Attributes:
        labels: The labels of all other rows.
        n_without_label: Rows without a label.
        n_other_splits: Rows whose split is neither TRAIN nor TEST.
        column: The column with labels.
        unmatched: Annotations whose recording is not among those of the output.
    """

    labels: Labels
    n_without_label: int
    n_other_splits: int
    column: str
    unmatched: Unmatched


def read_labels(source: LabelTable, uri: str, group: str | None) -> LabelManifest:
    """Read the labels of a table.

    Where a verdict is PRESENT, the label is learnt; where it is ABSENT, its absence is; and what is UNSURE is left out.

    A row without a label is left out. Where labels are lists or have times, such a row says that nothing was found in
    the recording, and stays.

    Args:
        source: The table.
        uri: Where it was read, for messages.
        group: A column; recordings with the same value are all for training or all for the test. None: each recording
            is a group.

    Raises:
        RequestError: The manifest cannot be read, or its columns make no sense.
    """
    table, column = source.table, source.column
    for option, name in [("--column", column), ("--group", group)]:
        if name is not None and table.column_names.count(name) != 1:
            found = f"{', '.join(table.column_names)}){did_you_mean(name, table.column_names)}"
            raise RequestError(f"{option}: manifest {uri} needs one column {name!r} (it has: {found}")
    names = [_read_cell(cell) for cell in table[column].to_pylist()]
    start_s, end_s, has_times = _read_times(table, uri)
    if has_times:
        names = [cell or [] for cell in names]
    has_split = SPLIT_COLUMN in table.column_names
    rows = pa.table(
        {
            "file": table["file"],
            "group": _text(table["file" if group is None else group]),
            "split": _text(table[SPLIT_COLUMN]) if has_split else pa.nulls(len(table), pa.string()),
            "names": pa.array(names, pa.list_(pa.string())),
            "start_s": start_s,
            "end_s": end_s,
            "verdict": _read_verdicts(table, uri),
        }
    )
    labelled = rows.filter(pc.field("names").is_valid())
    kept = labelled.filter(pc.field("split").isin([TRAIN, TEST])) if has_split else labelled
    if len(labelled) and set(kept["split"].unique().to_pylist()) not in ({None}, {TRAIN, TEST}):
        values = sorted(split or "nothing" for split in labelled["split"].unique().to_pylist())
        raise RequestError(
            f"--labels: column {SPLIT_COLUMN!r} of manifest {uri} has to say {TRAIN!r} and {TEST!r} (it says: "
            f"{', '.join(values[:MAX_VALUES_SHOWN])})"
        )
    labels = _make_labels(kept.sort_by("file"), uri, has_split=has_split, is_review=source.is_review)
    n_without_label, n_other_splits = len(rows) - len(labelled), len(labelled) - len(kept)
    return LabelManifest(labels, n_without_label, n_other_splits, column, source.unmatched)


def _read_cell(cell: Any) -> list[str] | None:
    """Return the labels in a cell; None for an empty cell."""
    if isinstance(cell, list):
        return [str(name) for name in cell if name is not None]
    names = [name.strip() for name in str("" if cell is None else cell).split(SEPARATOR)]
    return [name for name in names if name] or None


def _read_times(table: pa.Table, uri: str) -> tuple[Floats, Floats, bool]:
    """Return the start and end of each label in seconds, both ``[rows]``, and whether the manifest has times.

    Raises:
        RequestError: A column is missing or repeated, or its values make no sense.
    """
    columns = next((pair for pair in TIME_COLUMNS if set(pair) & set(table.column_names)), None)
    if columns is None:
        return np.full(len(table), -np.inf), np.full(len(table), np.inf), False
    edges = []
    for name, default_s in zip(columns, (-np.inf, np.inf), strict=True):
        if table.column_names.count(name) != 1:
            raise RequestError(f"--labels: manifest {uri} needs both {' and '.join(columns)}, each once")
        try:
            seconds = _text(table[name]).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise RequestError(f"--labels: column {name!r} of manifest {uri} holds no seconds: {error}") from error
        edges.append(np.where(np.isnan(seconds), default_s, seconds))
    backward = np.flatnonzero(edges[0] > edges[1])
    if len(backward):
        file = table["file"][int(backward[0])]
        raise RequestError(f"--labels: manifest {uri} has a label of {file} that ends before it begins")
    return *edges, True


def _read_verdicts(table: pa.Table, uri: str) -> pa.Array:
    """Return the verdict of each row; null where the table has none.

    Raises:
        RequestError: A verdict is none of VERDICTS.
    """
    if VERDICT_COLUMN not in table.column_names:
        return pa.nulls(len(table), pa.string())
    verdicts = _text(table[VERDICT_COLUMN]).fill_null(PRESENT)
    if other := set(verdicts.unique().to_pylist()) - set(VERDICTS):
        raise RequestError(
            f"--labels: column {VERDICT_COLUMN!r} of {uri} says {min(other)!r}, and may say {', '.join(VERDICTS)}"
        )
    return verdicts


def _text(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if cell is None else str(cell).strip() for cell in column.to_pylist()], pa.string())


def _make_labels(rows: pa.Table, uri: str, *, has_split: bool, is_review: bool) -> Labels:
    """Return the labels of rows that are in the order of their files."""
    files, recording = np.unique(_objects(rows["file"]), return_inverse=True)
    start_s, end_s = (rows[name].to_numpy() for name in ("start_s", "end_s"))
    verdict = _objects(rows["verdict"])
    names = rows["names"].combine_chunks()
    row = names.value_parent_indices().to_numpy()
    is_present = (verdict[row] != ABSENT) & (verdict[row] != UNSURE)
    row, name = row[is_present], _objects(names.flatten())[is_present]
    classes, label = np.unique(name, return_inverse=True)
    splits = _value_per_recording(rows["split"], files, recording, f"--labels: manifest {uri}") if has_split else None
    return Labels(
        files=files,
        groups=_value_per_recording(rows["group"], files, recording, f"--group: manifest {uri}"),
        splits=splits,
        classes=classes,
        recording=recording[row],
        label=label,
        start_s=start_s[row],
        end_s=end_s[row],
        reviewed=Stretches(recording, start_s, end_s) if is_review else None,
        unsure=_stretches_where(verdict == UNSURE, recording, start_s, end_s),
    )


def _stretches_where(selected: Booleans, recording: Integers, start_s: Floats, end_s: Floats) -> Stretches | None:
    return Stretches(recording[selected], start_s[selected], end_s[selected]) if selected.any() else None


def _value_per_recording(column: pa.ChunkedArray, files: Names, recording: Integers, source: str) -> Names:
    """Return the value that all rows of a recording have, as ``[recordings]``.

    Raises:
        RequestError: Rows of a recording have different values, or none.
    """
    values = _objects(column)
    by_recording = np.empty(len(files), object)
    by_recording[recording] = values
    is_missing = np.array([value is None for value in values], bool)
    wrong = np.flatnonzero(is_missing | (by_recording[recording] != values))
    if len(wrong):
        row = wrong[0]
        found = "nothing" if is_missing[row] else f"{values[row]!r} and {by_recording[recording[row]]!r}"
        raise RequestError(f"{source} says {found} for {files[recording[row]]}")
    return by_recording


def _objects(column: pa.ChunkedArray | pa.Array) -> Names:
    return np.array(column.to_pylist(), object)
