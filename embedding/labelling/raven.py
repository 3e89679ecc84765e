"""Selection tables of Raven: text with tabs between columns, one row per selection and view.

A table belongs to one recording, whose name is part of the table's name; or its columns Begin File or Begin Path name
the recordings. In a table over several recordings Begin Time counts from the start of the first, and File Offset from
the start of the selection's own (Raven Pro 1.6 manual, "Selection tables and measurements").
"""

import re
from collections.abc import Iterator

from embedding.errors import RequestError
from embedding.labelling.annotations import Annotation
from embedding.labelling.text_tables import Row, parse_seconds

BEGIN, END = "Begin Time (s)", "End Time (s)"
OFFSET, SELECTION = "File Offset (s)", "Selection"
# Columns that name the recording, the most precise first.
FILE_COLUMNS = ("Begin Path", "Begin File")
# Names of the column with the label, as people and programs call it, in the order in which they are looked for.
LABEL_COLUMNS = (
    *("Annotation", "Species", "Label", "Call Type", "Species Code", "Common Name"),
    *("Code", "ID", "Type", "Tag", "Notes"),
)
# Columns that Raven writes itself; all others are of the user.
_OWN_COLUMN = re.compile(
    r"Selection|View|Channel|(Begin|End|Low|High|Delta|Peak|Center|Avg|Max|Min|Inband|Agg|RMS|Energy|Length|Leq|File|"
    r"Dur|Freq|BW|Bandwidth|Occupied|Sample|Time|Score|Confidence)\b.*",
    re.IGNORECASE,
)
# The end of the name of a table: Raven's own, and that of BirdNET-Analyzer.
_SUFFIX = re.compile(r"(\.Table\.\d+)?(\.BirdNET)?(\.selections?(\.table)?)?\.(txt|tsv)$", re.IGNORECASE)


def is_raven(names: list[str]) -> bool:
    """Return whether columns of these names are those of a selection table."""
    return {BEGIN, END} <= set(names)


def find_label_column(names: list[str], rows: list[Row], column: str | None, uri: str) -> str:
    """Return the name of the column with the labels.

    Args:
        names: Names of the columns.
        rows: The rows.
        column: The column that the user names; None: the one column of the user, or one with a usual name.
        uri: The table, for messages.

    Raises:
        RequestError: There is no such column, or several may be meant.
    """
    own = [name for name in names if name and not _OWN_COLUMN.fullmatch(name)]
    by_name = {name.lower(): name for name in names}
    if column is not None:
        if column.lower() in by_name:
            return by_name[column.lower()]
        raise RequestError(f"--column: {uri} has no column {column!r} (it has: {', '.join(own or names)})")
    filled = [name for name in own if any(row.get(name) for row in rows)] or own
    usual = [by_name[name.lower()] for name in LABEL_COLUMNS if by_name.get(name.lower()) in filled]
    if len(filled) == 1 or usual:
        return usual[0] if usual else filled[0]
    found = f"which of {', '.join(filled)} has the labels?" if filled else f"it has: {', '.join(names)}"
    raise RequestError(f"--column: name the column of {uri} with the labels; {found}")


def read_raven(names: list[str], rows: list[Row], column: str, uri: str) -> Iterator[Annotation]:
    """Yield the annotations of a selection table.

    A table without selections says that nothing was found in its recording. A selection with several views (waveform,
    spectrogram) is one annotation. A row without a label says that something was selected and not
    named: it is UNSURE, and nothing is learnt from it.

    Args:
        names: Names of the columns.
        rows: The rows.
        column: The column with the labels.
        uri: The table.

    Raises:
        RequestError: A time is no number, or a selection ends before it begins.
    """
    own_name = _SUFFIX.sub("", uri)  # with its folders, which tell recordings of one name apart
    if not rows:  # somebody has searched the recording
        yield Annotation(own_name, None, None, None)
    seen = set()
    for number, row in enumerate(rows, start=2):
        named = next((row[name] for name in FILE_COLUMNS if row.get(name)), None)
        file = named or own_name
        start_s, end_s = (parse_seconds(row.get(name, "")) for name in (BEGIN, END))
        if start_s is None or end_s is None:
            raise RequestError(f"--labels: line {number} of {uri} has no number in {BEGIN!r} or {END!r}")
        if end_s < start_s:
            raise RequestError(f"--labels: line {number} of {uri} ends before it begins")
        if named and (offset_s := parse_seconds(row.get(OFFSET, ""))) is not None:
            start_s, end_s = offset_s, offset_s + end_s - start_s
        label = row.get(column) or None
        key = (file, row.get(SELECTION) or number, start_s, end_s, label)
        if key not in seen:
            seen.add(key)
            yield Annotation(file, start_s, end_s, label, "present" if label else "unsure")
