"""Facts that a recorder wrote into a recording's file: GUANO, AudioMoth's comment, iXML and bext.

Sources: the GUANO specification 1.0; AudioMoth's firmware (the comment has had four forms since 2017); EBU Tech 3285
for bext; the iXML specification 2.10. What a source does not say stays unknown.
"""

import re
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from xml.etree import ElementTree

from embedding.schema.recording_facts import RecordingFacts

_AUDIOMOTH = re.compile(
    r"Recorded at (?P<time>\d\d:\d\d:\d\d)(?:\.\d+)? (?P<date>\d\d/\d\d/\d{4})"
    r"(?: \(UTC(?P<offset>[+-]\d{1,2}(?::\d\d)?)?(?P<zone>)\))?"
    r"(?: by (?P<recorder>[^()]+?))?"
    r"(?: during deployment (?P<deployment>\w+))?"
    r"(?: using \w+ microphone)?"
    r" (?:at|with) (?P<gain>gain setting \d|[a-z-]+ gain(?: setting)?)",
    re.ASCII,
)
# "battery state was less than 2.5V" gives a limit, which is no measurement.
_AUDIOMOTH_BATTERY = re.compile(r"battery (?:state )?was (?P<volts>\d+(?:\.\d+)?)V", re.ASCII)
_AUDIOMOTH_TEMPERATURE = re.compile(r"temperature was (?P<celsius>-?\d+(?:\.\d+)?)C", re.ASCII)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?", re.ASCII)


def find_recorder_facts(chunks: Mapping[bytes, bytes], comment: str) -> list[RecordingFacts]:
    """Return what each source in a recording's file states; the most trustworthy source comes first.

    Args:
        chunks: Chunks of the file, from ``read_chunks``.
        comment: The comment among the tags of the file, empty where there is none.
    """
    comment = comment or _comment_of_list(chunks.get(b"LIST", b""))
    found = [
        parse_guano(chunks.get(b"guan", b"")),
        parse_audiomoth_comment(comment),
        parse_ixml(chunks.get(b"iXML", b"")),
        parse_bext(chunks.get(b"bext", b"")),
    ]
    return [facts for facts in found if facts is not None]


def parse_guano(content: bytes) -> RecordingFacts | None:
    """Return the facts of a GUANO chunk: lines of ``Key: value`` in UTF-8."""
    fields: dict[str, str] = {}
    for line in content.decode(errors="replace").rstrip("\0").splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            fields.setdefault(key.strip().lower(), value.strip())
    if not fields:
        return None
    latitude, longitude = _position(fields.get("loc position", ""))
    volts = next((value for key, value in fields.items() if key.endswith(("battery voltage", "battery"))), "")
    maker = [fields.get(key, "") for key in ("make", "model", "serial")]
    return RecordingFacts.plausible(
        "guano",
        recorded_at=_iso_time(fields.get("timestamp", "")),
        latitude=latitude,
        longitude=longitude,
        recorder=" ".join(filter(None, maker)),
        gain=next((value for key, value in fields.items() if key.endswith("gain")), None),
        temperature_c=_number(fields.get("temperature int", "") or fields.get("temperature ext", "")),
        battery_v=_number(volts.removesuffix("V")),
    )


def parse_audiomoth_comment(comment: str) -> RecordingFacts | None:
    """Return the facts of a comment by AudioMoth: ``Recorded at 03:13:00 03/05/2025 (UTC+2) by AudioMoth 243B… ``."""
    match = _AUDIOMOTH.search(comment)
    if match is None:
        return None
    try:
        time = datetime.strptime(f"{match['date']} {match['time']}", "%d/%m/%Y %H:%M:%S")
    except ValueError:
        time = None
    # The first firmwares wrote no zone. Their clocks were set to UTC by default, but may have been set otherwise.
    if time is not None and match["zone"] is not None:
        time = time.replace(tzinfo=_zone(match["offset"]))
    battery, temperature = _AUDIOMOTH_BATTERY.search(comment), _AUDIOMOTH_TEMPERATURE.search(comment)
    return RecordingFacts.plausible(
        "audiomoth",
        recorded_at=time,
        recorder=match["recorder"],
        gain=match["gain"].removesuffix(" setting").removesuffix(" gain"),
        temperature_c=temperature and float(temperature["celsius"]),
        battery_v=battery and float(battery["volts"]),
    )


def parse_ixml(content: bytes) -> RecordingFacts | None:
    """Return the facts of an iXML chunk: the origination of its BEXT element, and its location."""
    try:  # of at most 256 KB; expat refuses entities that grow without end
        root = ElementTree.fromstring(content.rstrip(b"\0").strip())
    except (ElementTree.ParseError, ValueError, LookupError):
        return None

    def text(*names: str) -> str:
        return next((value.strip() for name in names if (value := root.findtext(f".//{name}"))), "")

    date, time = text("BWF_ORIGINATION_DATE"), text("BWF_ORIGINATION_TIME")
    latitude, longitude = _position(text("LOCATION_GPS"))
    return RecordingFacts.plausible(
        "ixml",
        recorded_at=_origination(date, time),
        latitude=latitude,
        longitude=longitude,
        recorder=text("BWF_ORIGINATOR"),
    )


def parse_bext(content: bytes) -> RecordingFacts | None:
    """Return the facts of a bext chunk: originator, and date and time of origination."""
    if len(content) < 346:
        return None
    _, originator, _, date, time = struct.unpack_from("256s32s32s10s8s", content)
    texts = [field.partition(b"\0")[0].decode("ascii", "replace").strip() for field in (originator, date, time)]
    return RecordingFacts.plausible("bext", recorded_at=_origination(*texts[1:]), recorder=texts[0])


def _comment_of_list(content: bytes) -> str:
    """Return the comment in a LIST chunk of a RIFF file that libsndfile does not show, as in a FLAC."""
    position = content.find(b"ICMT") if content[:4] == b"INFO" else -1
    if position < 0 or len(content) < position + 8:
        return ""
    length = int.from_bytes(content[position + 4 : position + 8], "little")
    return content[position + 8 : position + 8 + length].partition(b"\0")[0].decode(errors="replace")


def _iso_time(text: str) -> datetime | None:
    """Return a time in ISO 8601, with its zone if it has one; None for other texts, and for a date alone."""
    try:
        return datetime.fromisoformat(text) if re.search(r"\d[T ]\d", text) else None
    except ValueError:
        return None


def _origination(date: str, time: str) -> datetime | None:
    """Return the time of a date ``2025-05-03``, whose separator may be another one, and a time ``03:13:00``."""
    match = re.fullmatch(r"(\d{4})\D?(\d\d)\D?(\d\d)T(\d\d)\D?(\d\d)\D?(\d\d)", f"{date}T{time}", re.ASCII)
    try:
        return None if match is None else datetime(*map(int, match.groups()))  # type: ignore[arg-type] — six numbers
    except ValueError:
        return None


def _zone(offset: str | None) -> timezone | None:
    """Return the zone of ``+2``, ``-3:30`` or, for UTC, None; None for an offset that no zone has."""
    if offset is None:
        return UTC
    hours, _, minutes = offset[1:].partition(":")
    ahead = timedelta(hours=int(hours), minutes=int(minutes or 0))
    return timezone(-ahead if offset[0] == "-" else ahead) if ahead < timedelta(hours=24) else None


def _position(text: str) -> tuple[float | None, float | None]:
    """Return latitude and longitude of ``47.37 8.54`` or ``47.37, 8.54``."""
    numbers = re.split(r"[\s,;]+", text.strip())
    if len(numbers) < 2:
        return None, None
    return _number(numbers[0]), _number(numbers[1])


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text.strip()) else None
