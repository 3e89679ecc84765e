"""Start time, zone and position in the name of a recording: ``20250503_031300.WAV`` → 2025-05-03 03:13.

A time is by the recorder's own clock. Some recorders add its zone, and BAR its position; otherwise a time has no zone:
AudioMoth's clock is UTC unless it was set otherwise, and a Song Meter has the time zone that its owner chose. A name
that may not be a time has no time.
"""

import re
from datetime import UTC, datetime, timedelta, timezone

from embedding.schema.recording_facts import YEARS, RecordingFacts

# For a number of seconds since 1970: in the eight hex digits that the first AudioMoths wrote, from 2017 on, or in ten
# decimal digits. A clock may have been wrong by some years.
UNIX_YEARS = range(2010, 2036)

# With a letter or digit beside it a number is part of something longer. Two letters may follow a time: the T of
# AudioMoth's triggered recordings, and the Z of UTC.
_BEGIN, _END = r"(?<![0-9A-Za-z])", r"(?:[TZ](?![0-9A-Za-z])|(?![0-9A-Za-z]))"
# The zone of BAR, behind a time with T: +1000, -0700. Behind other times such a number may be a counter.
_ZONE = r"(?P<zone>[+-](?:0\d|1[0-4])[0-5]\d(?!\d))?"
_STAMPS = [
    # AudioMoth, Song Meter (with $ where a sound triggered it), Swift, BAR: 20250503_031300, 20250503T031300+1000.
    re.compile(rf"{_BEGIN}(\d{{4}})(\d\d)(\d\d)[_T$ -](\d\d)(\d\d)(\d\d)(?:\.\d+)?{_ZONE}{_END}", re.ASCII),
    # ISO 8601, with the characters that file systems take instead of colons: 2025-05-03T03-13-00, 2025-05-03 031300.
    re.compile(rf"{_BEGIN}(\d{{4}})-(\d\d)-(\d\d)[_T -](\d\d)[-_:.]?(\d\d)[-_:.]?(\d\d){_ZONE}{_END}", re.ASCII),
]
# BAR-LT writes start, end and position: S20240101T000000.123+1000_E20240101T005959.9+1000_-12.34+78.98.
_START_AND_END = re.compile(rf"S(\d{{4}})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(?:\.\d+)?{_ZONE}_E\d{{8}}T\d{{6}}", re.ASCII)
_POSITION = re.compile(
    r"\[([+-]?\d{1,2}\.\d+)[ ,]+?([+-]?\d{1,3}\.\d+)\]|_([+-]\d{1,2}\.\d+)([+-]\d{1,3}\.\d+)",
    re.ASCII,
)
# In capitals, as AudioMoth writes them, and with a letter: eight decimal digits may be the number of a collection, and
# lower case may be a commit.
_HEX = re.compile(r"(?=.*[A-F])[0-9A-F]{8}")
_DECIMAL = re.compile(r"\d{10}", re.ASCII)


def facts_of_name(file: str) -> RecordingFacts | None:
    """Return what the name of a recording says: start time, zone and position.

    Args:
        file: Path or URI; only the name counts, not the folders.

    Returns:
        None if the name says nothing, or has several different times.
    """
    name = file.rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    position = _POSITION.search(stem)
    latitude, longitude = (None, None) if position is None else [float(n) for n in position.groups() if n is not None]
    time = _time_of(stem)
    if time is None and position is None:
        return None
    return RecordingFacts.plausible("name", recorded_at=time, latitude=latitude, longitude=longitude)


def recorded_at(file: str) -> datetime | None:
    """Return the start time of a recording by the recorder's clock, without zone; None if its name has none.

    Args:
        file: Path or URI; only the name counts, not the folders.
    """
    facts = facts_of_name(file)
    return None if facts is None else facts.recorded_at


def _time_of(stem: str) -> datetime | None:
    base = 16 if _HEX.fullmatch(stem) else 10 if _DECIMAL.fullmatch(stem) else None
    if base is not None:
        time = datetime.fromtimestamp(int(stem, base), UTC)
        return time if time.year in UNIX_YEARS else None
    if match := _START_AND_END.search(stem):
        return _time(match)
    found = {time for stamp in _STAMPS for match in stamp.finditer(stem) if (time := _time(match))}
    return found.pop() if len(found) == 1 else None


def _time(match: re.Match[str]) -> datetime | None:
    has_t = match.string[match.start(4) - 1] == "T"
    zone = match["zone"] if has_t else None
    tzinfo = UTC if match.group().endswith("Z") else None
    if zone:
        ahead = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:]))
        tzinfo = timezone(-ahead if zone[0] == "-" else ahead)
    try:
        time = datetime(*map(int, match.groups()[:6]), tzinfo=tzinfo)  # type: ignore[arg-type, misc] — six numbers
    except ValueError:  # a month 13, for example
        return None
    return time if time.year in YEARS else None
