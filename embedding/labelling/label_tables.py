"""Labels from any source as one table in the form of a manifest.

| source | recognised by |
| --- | --- |
| our manifests, .csv and .parquet | a column ``file`` and the column of labels |
| tables of clips of opensoundscape | ``file``, ``start_time``, ``end_time`` and columns of 0 and 1 |
| annotations of opensoundscape | ``audio_file``, ``annotation``, ``start_time``, ``end_time`` |
| selection tables of Raven | ``Begin Time (s)``, ``End Time (s)`` |
| label tracks of Audacity | lines of two numbers and a text |
| other formats | ``--label-format``, read by crowsetta |

A source is a file, a folder with its subfolders, a glob pattern, or an ``s3://`` prefix.
"""

import glob
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embedding import storage
from embedding.errors import RequestError
from embedding.labelling import audacity, opensoundscape, raven
from embedding.labelling.annotations import Annotation, RecordingNames, Unmatched, match_recordings
from embedding.labelling.crowsetta_formats import read_with_crowsetta
from embedding.labelling.text_tables import parse_table, read_column_names, read_text
from embedding.listing.manifests import read_manifest
from embedding.storage import s3

DEFAULT_COLUMN = "label"
VERDICT_COLUMN = "verdict"
TEXT_SUFFIXES = (".txt", ".csv", ".tsv")
NOTHING_UNMATCHED = Unmatched(0, [])


@dataclass(frozen=True)
class LabelTable:
    """Labels, one row each.

    Attributes:
        table: The columns of a manifest.
        column: The column with labels.
        unmatched: Annotations whose recording is not among those of the output. Rows of a manifest are all in the
            table, because a manifest names its recordings exactly.
        is_review: Nothing is known outside of the stretches that rows name: clips were judged one by one. Otherwise
            people have searched each recording, and where there is no row there is no label.
    """

    table: pa.Table
    column: str
    unmatched: Unmatched
    is_review: bool


def read_label_table(
    uri: str, column: str | None, label_format: str | None, stored_files: Callable[[], Iterable[str]]
) -> LabelTable:
    """Read labels.

    Args:
        uri: Absolute path, glob pattern or URI of the source.
        column: The column with labels; None: the usual one of the format.
        label_format: A format of crowsetta; None: the format is recognised.
        stored_files: Returns the recordings of the output; called only where annotations name recordings loosely.

    Raises:
        RequestError: The source cannot be read, or is none of labels.
        OSError: The storage failed.
    """
    files = _find_files(uri, any_suffix=label_format is not None)
    if label_format is None and len(files) == 1 and (manifest := _read_as_manifest(files[0], column)) is not None:
        return manifest
    parts = [(file, *_read_annotations(file, column, label_format)) for file in files]
    if len({is_review for _, is_review, part in parts if part}) > 1:
        raise RequestError(f"--labels: {uri} holds tables of judged clips beside annotations: read one kind at a time")
    found = [(file, annotation) for file, _, part in parts for annotation in part]
    annotations, unmatched = match_recordings(found, RecordingNames(stored_files()))
    if not annotations:
        reason = str(unmatched) if unmatched.files else "it has no annotations"
        raise RequestError(f"--labels: nothing in {uri} can be used: {reason}")
    table = pa.table(
        {
            "file": [each.file for each in annotations],
            "start_time": pa.array([each.start_s for each in annotations], pa.float64()),
            "end_time": pa.array([each.end_s for each in annotations], pa.float64()),
            # Lists, because text would be split at semicolons.
            DEFAULT_COLUMN: pa.array([each.label and [each.label] for each in annotations], pa.list_(pa.string())),
            VERDICT_COLUMN: [each.verdict for each in annotations],
        }
    )
    if set(table[VERDICT_COLUMN].unique().to_pylist()) == {"present"}:
        table = table.drop_columns(VERDICT_COLUMN)
    return LabelTable(table, DEFAULT_COLUMN, unmatched, any(is_review for _, is_review, part in parts if part))


def _find_files(uri: str, *, any_suffix: bool) -> list[str]:
    """Return the files of a source, in order.

    Raises:
        RequestError: There are none.
    """
    if storage.is_s3(uri):
        if uri.lower().endswith((*TEXT_SUFFIXES, ".parquet")):
            return [uri]
        bucket = uri.removeprefix(s3.SCHEME).partition("/")[0]
        found = [f"{s3.SCHEME}{bucket}/{key}" for key, _, _ in s3.list_objects(storage.join(uri, ""))]
    elif Path(uri).is_dir():
        found = [str(Path(folder, name)) for folder, _, names in os.walk(uri) for name in names]
    elif Path(uri).is_file() or not glob.has_magic(uri):
        return [uri]
    else:
        matches = glob.glob(uri, recursive=True)  # noqa: PTH207 — the pattern is absolute
        found = [path for path in matches if Path(path).is_file()]
    files = sorted(file for file in found if any_suffix or file.lower().endswith(TEXT_SUFFIXES))
    files = [file for file in files if not file.rpartition("/")[2].startswith(".")]
    if not files:
        raise RequestError(f"--labels: there is no {', '.join(TEXT_SUFFIXES)} file in {uri}")
    return files


def _read_as_manifest(uri: str, column: str | None) -> LabelTable | None:
    """Return the labels of one of our manifests; None if the file is another table."""
    name = column or DEFAULT_COLUMN
    if uri.lower().endswith(".csv"):
        if not {"file", name} <= set(read_column_names(uri, "--labels")):
            names, rows = parse_table(read_text(uri, "--labels"), uri, "--labels")
            is_other = opensoundscape.is_boxes(names) or raven.is_raven(names)
            if is_other or opensoundscape.class_columns(names, rows):
                return None
    elif not uri.lower().endswith(".parquet"):
        return None
    table = read_manifest(uri, "--labels")
    return LabelTable(table, name, NOTHING_UNMATCHED, is_review=VERDICT_COLUMN in table.column_names)


def _read_annotations(uri: str, column: str | None, label_format: str | None) -> tuple[bool, list[Annotation]]:
    """Return whether a file holds judged clips, and its annotations.

    Raises:
        RequestError: The file has none of the formats.
    """
    if label_format is not None:
        return False, list(read_with_crowsetta(uri, label_format))
    text = read_text(uri, "--labels")
    if audacity.is_audacity(text) or not text.strip():
        return False, list(audacity.read_audacity(text, uri))
    names, rows = parse_table(text, uri, "--labels")
    if raven.is_raven(names):
        # A table without selections may have no column for labels.
        label_column = raven.find_label_column(names, rows, column, uri) if rows else ""
        return False, list(raven.read_raven(names, rows, label_column, uri))
    if opensoundscape.is_boxes(names):
        return False, list(opensoundscape.read_boxes(rows, uri))
    if classes := opensoundscape.class_columns(names, rows):
        return True, list(opensoundscape.read_clips(rows, classes, uri))
    if {"file", column or DEFAULT_COLUMN} <= set(names):
        raise RequestError(f"--labels: {uri} is a manifest beside other files: name one manifest")
    raise RequestError(
        f"--labels: {uri} is no manifest with a column 'file', no table of Raven or opensoundscape, and no label track "
        f"of Audacity (its first line: {', '.join(names)[:120]!r})"
    )
