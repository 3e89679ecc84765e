"""Format of a CSV file as a spreadsheet program saved it: encoding and delimiter, read from the first bytes."""

import codecs
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow.csv

_HEAD_BYTES = 64 << 10
_ENCODINGS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_DELIMITERS = (",", ";", "\t", "|")

HOW_TO_SAVE = "save it as CSV in UTF-8 with commas, semicolons or tabs between columns, or as Parquet"


@dataclass(frozen=True)
class CsvFormat:
    """Encoding and delimiter of a CSV file."""

    encoding: str
    delimiter: str

    @property
    def read_options(self) -> pyarrow.csv.ReadOptions:
        """Options for pyarrow."""
        return pyarrow.csv.ReadOptions(encoding=self.encoding)

    @property
    def parse_options(self) -> pyarrow.csv.ParseOptions:
        """Options for pyarrow; notes may contain line breaks."""
        return pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)


def detect_format(stream: BinaryIO) -> CsvFormat:
    """Return the format of a CSV file, and rewind the stream.

    The encoding is the one of the byte-order mark, otherwise UTF-8. The delimiter is the one that makes ``file`` a
    column of the first line, otherwise the comma.
    """
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    encoding = next((name for mark, name in _ENCODINGS.items() if head.startswith(mark)), "utf-8")
    first_line = head.decode(encoding, errors="replace").lstrip("\ufeff").partition("\n")[0]
    for delimiter in _DELIMITERS:
        if "file" in (name.strip().strip('"') for name in first_line.split(delimiter)):
            return CsvFormat(encoding, delimiter)
    return CsvFormat(encoding, ",")
