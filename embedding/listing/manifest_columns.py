"""Columns of manifests for recordings: the time when a recording began, and all others."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from embedding.listing.start_times import recorded_at
from embedding.schema.recording_facts import YEARS

# Names of columns with start times, in lower case; the first one that holds times is used.
TIME_COLUMNS = ("recorded_at", "datetime", "timestamp", "time")
# ISO 8601 with a time of day; a date alone is no start time.
_TIME = re.compile(r"\d{4}-?\d\d-?\d\d[T ]\d\d", re.ASCII)
# Between the values of a column for a recording that is listed more than once.
_SEPARATOR = "; "


@dataclass(frozen=True)
class ManifestColumns:
    """The columns of some manifests.

    Attributes:
        tables: The manifests, without their columns of start times.
        starts: Start time of each recording that has one, by ``file``; with a zone where the manifest has it.
        unreadable_times: Values of ``recorded_at`` that are no times.
    """

    tables: list[pa.Table]
    starts: dict[str, datetime]
    unreadable_times: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, manifests: Iterable[pa.Table]) -> "ManifestColumns":
        """Return the columns of manifests that ``read_manifest`` has read."""
        tables, starts, unreadable = [], {}, []
        for table in manifests:
            name, times = _find_times(table, unreadable)
            rows = () if name is None else zip(table["file"].to_pylist(), times, strict=True)
            for file, time in dict.fromkeys(rows):
                if time is not None:  # two times for one recording are times of events in it, not of its start
                    starts[file] = time if starts.get(file, time) == time else None
            tables.append(table if name is None else table.drop_columns(name))
        return cls(tables, {file: time for file, time in starts.items() if time is not None}, unreadable)

    def with_starts(self, recordings: pa.Table) -> "ManifestColumns":
        """Return the columns with the start times of other sources, where the manifests have none.

        Args:
            recordings: ``file``, ``recorded_at`` and ``recorded_at_from``; times that names give anyway are not kept.
        """
        others = recordings.filter(pc.field("recorded_at").is_valid() & (pc.field("recorded_at_from") != "name"))
        starts = dict(zip(others["file"].to_pylist(), others["recorded_at"].to_pylist(), strict=True))
        return ManifestColumns(self.tables, starts | self.starts, self.unreadable_times)

    def has_row_for_any(self, files: pa.ChunkedArray) -> bool:
        """Return whether a manifest has a row for any of ``files``."""
        return any(pc.any(pc.is_in(table["file"], files)).as_py() for table in self.tables)  # type: ignore[attr-defined]

    def recorded_at(self, file: str) -> datetime | None:
        """Return the start time of a recording, without a zone.

        A time in a manifest comes before a time in the name; None: there is neither.
        """
        time = self.starts.get(file)
        return recorded_at(file) if time is None else time.replace(tzinfo=None)

    def values(self, files: list[str]) -> dict[str, list[str | None]]:
        """Return the values of each column for ``files``.

        Different values for one recording are joined by ``; ``.
        """
        distinct_files = pa.array(sorted(set(files)), pa.string())
        columns: dict[str, dict[str, dict[str, None]]] = {}
        for table in self.tables:
            rows = table.filter(pc.is_in(table["file"], distinct_files))  # type: ignore[attr-defined]
            row_files = rows["file"].to_pylist()
            for name, column in zip(rows.column_names, rows.columns, strict=True):
                values_by_file = columns.setdefault(name, {})
                for file, value in zip(row_files, column.to_pylist(), strict=True):
                    if value not in (None, ""):
                        values_by_file.setdefault(file, {})[str(value)] = None
        columns.pop("file", None)
        return {
            name: [_SEPARATOR.join(values_by_file[file]) if file in values_by_file else None for file in files]
            for name, values_by_file in columns.items()
        }


def _find_times(table: pa.Table, unreadable: list[str]) -> tuple[str | None, list[datetime | None]]:
    """Return the name of the column with start times, and its times; None and nulls where there is no such column.

    A column of another name may hold something else, so it counts only if all of its values are times. In
    ``recorded_at`` other values are unknown, and are added to ``unreadable``.
    """
    for time_column in TIME_COLUMNS:
        for name in table.column_names:
            if name.lower() == time_column and table.column_names.count(name) == 1:
                others: list[str] = []
                try:
                    times = [_parse_or_note(value, others) for value in _in_microseconds(table[name]).to_pylist()]
                except (ValueError, OverflowError, pa.ArrowException):  # years that datetime does not have
                    continue
                if others and time_column != TIME_COLUMNS[0]:  # the column holds something else
                    continue
                unreadable += others if any(times) else []
                if any(times):
                    return name, times
    return None, [None] * len(table)


def _parse_or_note(value: object, others: list[str]) -> datetime | None:
    """Return a value as a time; None for another value, which is added to ``others``."""
    try:
        return _parse_time(value)
    except ValueError:
        others.append(str(value))
        return None


def _in_microseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return timestamps without nanoseconds, which datetime does not have; other columns stay as they are."""
    if not pa.types.is_timestamp(column.type):
        return column
    return column.cast(pa.timestamp("us", column.type.tz), safe=False)


def _parse_time(value: object) -> datetime | None:
    """Return a value as a time, with its zone if it has one.

    None for no value, and for a time of a clock that was not set.

    Raises:
        ValueError: The value is no time.
    """
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    if not _TIME.match(text):
        raise ValueError(f"{text!r} is not a date with a time of day")
    time = datetime.fromisoformat(text)
    return time if time.year in YEARS else None
