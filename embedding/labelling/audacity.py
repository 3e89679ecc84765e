"""Label tracks of Audacity: lines of start, end and label with tabs between them, without names of columns.

A second line with a backslash gives the frequencies of the label above, and is passed over (Audacity manual,
"Importing and Exporting Labels"). The name of the recording is the name of the track without suffix.
"""

import re
from collections.abc import Iterator

from embedding.errors import RequestError
from embedding.labelling.annotations import Annotation
from embedding.labelling.text_tables import parse_seconds

# Not str.splitlines, which breaks lines at characters that labels in Windows-1252 may have.
_LINE_END = re.compile(r"\r\n|\r|\n")


def is_audacity(text: str) -> bool:
    """Return whether the first line of a text is one of a label track."""
    cells = next((line for line in _LINE_END.split(text) if line.strip()), "").split("\t")
    return len(cells) in (2, 3) and all(parse_seconds(cell) is not None for cell in cells[:2])


def read_audacity(text: str, uri: str) -> Iterator[Annotation]:
    """Yield the annotations of a label track.

    A label without text is UNSURE, and an empty track says that nothing was found.

    Args:
        text: Content of the file.
        uri: The file.

    Raises:
        RequestError: A line is none of a label track.
    """
    file = uri.rpartition(".")[0]  # with its folders, which tell recordings of one name apart
    if not text.strip():  # somebody has searched the recording
        yield Annotation(file, None, None, None)
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        cells = [*line.split("\t", 2), ""][:3]
        start_s, end_s = parse_seconds(cells[0]), parse_seconds(cells[1])
        if start_s is None or end_s is None or end_s < start_s:
            raise RequestError(f"--labels: line {number} of {uri} is no start, end and label with tabs between them")
        label = cells[2].strip() or None
        yield Annotation(file, start_s, end_s, label, "present" if label else "unsure")
