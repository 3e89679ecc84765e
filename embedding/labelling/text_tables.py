"""Tables in text files, as programs and spreadsheets write them: encodings, separators, decimal marks."""

import codecs
import csv
import io
import math

from embedding import storage
from embedding.errors import RequestError

MOST_BYTES = 1 << 30
_HEAD_BYTES = 64 << 10
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The separators of the first line are counted; a tab counts first, because Raven's names of columns have commas.
_SEPARATORS = ("\t", ";", ",")

Row = dict[str, str]


def read_text(uri: str, option: str) -> str:
    """Read a text file in UTF-8, UTF-16 or Latin-1.

    The encoding is that of the byte-order mark. Without a mark, text that is no UTF-8 is UTF-16 if every second byte of
    its beginning is zero, and otherwise Latin-1, in which any bytes are text.

    Args:
        uri: The file.
        option: The option that names the file; messages begin with it.

    Raises:
        RequestError: The file cannot be read, or is no text.
    """
    try:
        content = storage.read_bytes(uri, MOST_BYTES)
    except OSError as error:
        raise RequestError(f"{option}: cannot read {uri}: {error.strerror or error}") from error
    encoding = _encoding(content[:_HEAD_BYTES])
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise RequestError(f"{option}: {uri} is no text in {encoding.upper()}: {error.reason}") from error
        text = content.decode("latin-1")
    if "\0" in text:
        raise RequestError(f"{option}: {uri} is no text file")
    return text


def parse_table(text: str, uri: str, option: str) -> tuple[list[str], list[Row]]:
    """Return the names of the columns, and the rows, of a table whose first line names the columns.

    Args:
        text: Content of the file.
        uri: The file, for messages.
        option: The option that names the file; messages begin with it.

    Raises:
        RequestError: The text is no table.
    """
    separator = _separator(text)
    # Raven and Audacity do not quote: a quotation mark is one of the label.
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting)
    try:
        names = [name.strip() for name in next(rows, [])]
        table = [
            dict(zip(names, (cell.strip() for cell in row), strict=False)) for row in rows if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise RequestError(f"{option}: line {rows.line_num} of {uri}: {error}") from error
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise RequestError(f"{option}: {uri} has two columns {repeated[0]!r}")
    return names, table


def read_column_names(uri: str, option: str) -> list[str]:
    """Return the names in the first line of a table, whose other lines are not read.

    Args:
        uri: The file.
        option: The option that names the file; messages begin with it.

    Raises:
        RequestError: The file cannot be read.
    """
    try:
        with storage.open_stream(uri, _HEAD_BYTES) as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise RequestError(f"{option}: cannot read {uri}: {error.strerror or error}") from error
    first = head.decode(_encoding(head) or "utf-8", errors="replace").partition("\n")[0]
    return [name.strip().strip('"') for name in first.split(_separator(first))]


def _encoding(head: bytes) -> str | None:
    """Return the encoding that the first bytes of a file tell; None if they tell none."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    even, odd = head[:1024:2].count(0), head[1:1024:2].count(0)
    least = min(len(head), 1024) // 4
    if len(head) <= 3:
        return None
    return "utf-16-le" if odd > least else "utf-16-be" if even > least else None


def _separator(text: str) -> str:
    first = text.partition("\n")[0]
    return "\t" if "\t" in first else max(_SEPARATORS, key=first.count)


def parse_seconds(text: str) -> float | None:
    """Return a number of seconds; a comma may be the decimal mark. None for text that is no finite number."""
    try:
        seconds = float(text.replace(",", ".") if "." not in text else text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None
