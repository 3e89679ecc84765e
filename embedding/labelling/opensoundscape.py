"""Tables of opensoundscape: annotations with a row each, or clips with a column of 0 and 1 for each class."""

from collections.abc import Iterator

from embedding.errors import RequestError
from embedding.labelling.annotations import ABSENT, PRESENT, UNSURE, Annotation
from embedding.labelling.text_tables import Row, parse_seconds

FILE, START, END = "file", "start_time", "end_time"
AUDIO_FILE, ANNOTATION = "audio_file", "annotation"
# Columns of BoxedAnnotations.to_csv beside the label.
_BOX_COLUMNS = {"annotation_file", "annotation_id", "low_f", "high_f"}
# Written for classes that are there, are not, or are not known.
_VERDICTS = {"1": PRESENT, "1.0": PRESENT, "true": PRESENT, "0": ABSENT, "0.0": ABSENT, "false": ABSENT}
_UNKNOWN = ("", "nan", "none")


def is_boxes(names: list[str]) -> bool:
    """Return whether columns are those of ``BoxedAnnotations.to_csv``."""
    return {AUDIO_FILE, ANNOTATION, START, END} <= set(names)


def class_columns(names: list[str], rows: list[Row]) -> list[str]:
    """Return the columns of classes of a table of clips; none if the table is no such table."""
    if not {FILE, START, END} <= set(names):
        return []
    others = [name for name in names if name and name not in (FILE, START, END)]
    known = {*_VERDICTS, *_UNKNOWN}
    holds_verdicts = all(row.get(name, "").lower() in known for row in rows for name in others)
    return others if rows and holds_verdicts else []


def read_boxes(rows: list[Row], uri: str) -> Iterator[Annotation]:
    """Yield the annotations of a table of boxes; a row without a label is UNSURE.

    Args:
        rows: The rows.
        uri: The table, for messages.

    Raises:
        RequestError: A time is no number, or an annotation ends before it begins.
    """
    for number, row in enumerate(rows, start=2):
        label = row.get(ANNOTATION, "")
        label = None if label.lower() in _UNKNOWN else label
        yield Annotation(row.get(AUDIO_FILE, ""), *_times(row, number, uri), label, PRESENT if label else UNSURE)


def read_clips(rows: list[Row], classes: list[str], uri: str) -> Iterator[Annotation]:
    """Yield an annotation for each clip and class.

    Args:
        rows: The rows.
        classes: The columns of classes.
        uri: The table, for messages.

    Raises:
        RequestError: A time is no number, or a clip ends before it begins.
    """
    for number, row in enumerate(rows, start=2):
        start_s, end_s = _times(row, number, uri)
        for name in classes:
            verdict = _VERDICTS.get(row.get(name, "").lower(), UNSURE)
            yield Annotation(row.get(FILE, ""), start_s, end_s, name, verdict)


def _times(row: Row, number: int, uri: str) -> tuple[float, float]:
    start_s, end_s = parse_seconds(row.get(START, "")), parse_seconds(row.get(END, ""))
    if start_s is None or end_s is None or end_s < start_s:
        raise RequestError(f"--labels: line {number} of {uri} needs start_time and end_time in seconds, in this order")
    return start_s, end_s
