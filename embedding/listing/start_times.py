"""Start time of a recording, read from its name: ``20250503_031300.WAV`` → 2025-05-03 03:13.

A time is in the recorder's own clock and has no time zone: AudioMoth's clock is UTC unless it was set otherwise, and a
Song Meter has the time zone that its owner chose. A name that may not be a time has no time.
"""

import re
from datetime import UTC, datetime

# Years of digital recorders; numbers of the same form with another year are not times.
YEARS = range(1990, 2101)
# For the eight hex digits that the first AudioMoths wrote, from 2017 on; a clock may have been wrong by some years.
HEX_YEARS = range(2010, 2036)

# With a letter or digit beside it a number is part of something longer. Two letters may follow a time: the T of
# AudioMoth's triggered recordings, and the Z of UTC.
_BEGIN, _END = r"(?<![0-9A-Za-z])", r"(?:[TZ](?![0-9A-Za-z])|(?![0-9A-Za-z]))"
_STAMPS = [
    # AudioMoth, Song Meter (with $ where a sound triggered it), BAR: 20250503_031300, 20250503T031300.
    re.compile(rf"{_BEGIN}(\d{{4}})(\d\d)(\d\d)[_T$ -](\d\d)(\d\d)(\d\d){_END}", re.ASCII),
    # ISO 8601, with the characters that file systems take instead of colons: 2025-05-03T03-13-00, 2025-05-03 031300.
    re.compile(rf"{_BEGIN}(\d{{4}})-(\d\d)-(\d\d)[_T -](\d\d)[-_:.]?(\d\d)[-_:.]?(\d\d){_END}", re.ASCII),
]
# In capitals, as AudioMoth writes them, and with a letter: eight decimal digits may be the number of a collection, and
# lower case may be a commit.
_HEX = re.compile(r"(?=.*[A-F])[0-9A-F]{8}")


def recorded_at(file: str) -> datetime | None:
    """Return the start time of a recording, without time zone.

    Args:
        file: Path or URI; only the name counts, not the folders.

    Returns:
        None if the name has no time, or several different times.
    """
    name = file.rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    if _HEX.fullmatch(stem):
        time = datetime.fromtimestamp(int(stem, 16), UTC).replace(tzinfo=None)
        return time if time.year in HEX_YEARS else None
    found = {time for stamp in _STAMPS for match in stamp.finditer(stem) if (time := _time(match))}
    return found.pop() if len(found) == 1 else None


def _time(match: re.Match[str]) -> datetime | None:
    try:
        time = datetime(*map(int, match.groups()))  # type: ignore[arg-type] — six numbers
    except ValueError:  # a month 13, for example
        return None
    return time if time.year in YEARS else None
