"""Columns of manifests for recordings: the time when a recording began, and all others."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from embedding.listing.start_times import YEARS, recorded_at

# Columns that may say when a recording began, by whatever case; the first one that does counts.
TIME_COLUMNS = ("recorded_at", "datetime", "timestamp", "time")
# ISO 8601 with a time of day; a mere date says none.
_TIME = re.compile(r"\d{4}-?\d\d-?\d\d[T ]\d\d", re.ASCII)
# Of a column's values for a recording that is listed more than once.
_JOIN = "; "


@dataclass(frozen=True)
class Columns:
    """The columns of some manifests, without those of times; and when recordings began, by ``file``."""

    tables: list[pa.Table]
    starts: dict[str, datetime]

    @classmethod
    def of(cls, manifests: Iterable[pa.Table]) -> "Columns":
        """Return the columns of manifests that ``read_manifest`` has read."""
        tables, starts = [], {}
        for table in manifests:
            name, times = _time_column(table)
            said = dict.fromkeys(zip(table["file"].to_pylist(), times, strict=True))
            for file, time in said:
                if time is not None:  # two times for one recording are those of something in it
                    starts[file] = time if starts.get(file, time) == time else None
            tables.append(table if name is None else table.drop_columns(name))
        return cls(tables, {file: time for file, time in starts.items() if time is not None})

    def names_any(self, files: pa.ChunkedArray) -> bool:
        """Return whether a manifest has a row for any of ``files``."""
        return any(pc.any(pc.is_in(table["file"], files)).as_py() for table in self.tables)  # type: ignore[attr-defined]

    def recorded_at(self, file: str) -> datetime | None:
        """When a recording began, without a zone: as a manifest says, else as its name says; None if neither does."""
        return self.starts.get(file) or recorded_at(file)

    def values(self, files: list[str]) -> dict[str, list[str | None]]:
        """Each column's value for each of ``files``; of one listed several times what differs, joined by ``; ``."""
        wanted = pa.array(sorted(set(files)), pa.string())
        found: dict[str, dict[str, dict[str, None]]] = {}
        for table in self.tables:
            rows = table.filter(pc.is_in(table["file"], wanted))  # type: ignore[attr-defined]
            named = rows["file"].to_pylist()
            for name, column in zip(rows.column_names, rows.columns, strict=True):
                of_files = found.setdefault(name, {})
                for file, value in zip(named, column.to_pylist(), strict=True):
                    if value not in (None, ""):
                        of_files.setdefault(file, {})[str(value)] = None
        found.pop("file", None)
        return {
            name: [_JOIN.join(of_files[file]) if file in of_files else None for file in files]
            for name, of_files in found.items()
        }


def _time_column(table: pa.Table) -> tuple[str | None, list[datetime | None]]:
    """The name of the column that says when recordings began, and what it says; None and nulls if there is none."""
    for wanted in TIME_COLUMNS:
        for name in table.column_names:
            if name.lower() == wanted and table.column_names.count(name) == 1:
                try:
                    times = [_as_time(value) for value in _local(table[name]).to_pylist()]
                except ValueError:  # a column of something else
                    continue
                if any(times):
                    return name, times
    return None, [None] * len(table)


def _local(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Timestamps of a zone as that zone's clock shows them; anything else as it is."""
    if not pa.types.is_timestamp(column.type):
        return column
    clock = pc.local_timestamp(column) if column.type.tz else column  # type: ignore[attr-defined]
    return clock.cast(pa.timestamp("us"), safe=False)  # datetime has no nanoseconds


def _as_time(value: object) -> datetime | None:
    """``value`` as a time without its zone; None for nothing, and for that of a clock that was not set.

    Raises:
        ValueError: it is no time.
    """
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    if not _TIME.match(text):
        raise ValueError(f"{text!r} is no time of a day")
    time = datetime.fromisoformat(text).replace(tzinfo=None)
    return time if time.year in YEARS else None
