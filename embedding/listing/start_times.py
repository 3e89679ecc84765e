"""When a recording began, as far as its name says: ``20250503_031300.WAV`` → 2025-05-03 03:13.

Times are those of the recorder's own clock and carry no zone, since names say none that can be relied on: AudioMoth's
is UTC unless it was set otherwise, a Song Meter's is what its owner chose. What is not surely a time is none.
"""

import re
from datetime import UTC, datetime

# Years of recorders with files; other numbers of that shape are something else.
YEARS = range(1990, 2101)
# Of the eight hex digits that the first AudioMoths wrote, from 2017 on; a clock may have been wrong by some years.
HEX_YEARS = range(2010, 2036)

# A letter or digit before or after makes it part of something longer, but for the T of AudioMoth's triggered
# recordings and the Z of UTC.
_BEGIN, _END = r"(?<![0-9A-Za-z])", r"(?:[TZ](?![0-9A-Za-z])|(?![0-9A-Za-z]))"
_STAMPS = [
    # AudioMoth, Song Meter (which has a $ where a sound triggered it), BAR: 20250503_031300, 20250503T031300.
    re.compile(rf"{_BEGIN}(\d{{4}})(\d\d)(\d\d)[_T$ -](\d\d)(\d\d)(\d\d){_END}", re.ASCII),
    # ISO 8601, with what file systems take for its colons: 2025-05-03T03-13-00, 2025-05-03 031300.
    re.compile(rf"{_BEGIN}(\d{{4}})-(\d\d)-(\d\d)[_T -](\d\d)[-_:.]?(\d\d)[-_:.]?(\d\d){_END}", re.ASCII),
]
# As AudioMoth writes them. Eight decimal digits may be the number of a collection, and lower case that of a commit.
_HEX = re.compile(r"(?=.*[A-F])[0-9A-F]{8}")


def recorded_at(file: str) -> datetime | None:
    """When the recording of this path or URI began; None where its name does not say, or says several times.

    Only the name itself counts, not its folders.
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
        time = datetime(*map(int, match.groups()))  # type: ignore[arg-type] — six of them
    except ValueError:  # a thirteenth month
        return None
    return time if time.year in YEARS else None
