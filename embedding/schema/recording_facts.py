"""Facts about a recording: when and where it was made, and with which device, as one source states them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta

# Years of digital recorders. A clock that was not set says 1970 or 1980; nothing is known then.
YEARS = range(1990, 2101)
# Times of two sources that are nearer than this agree: recorders name a file before they open it.
AGREEING_S = 60
# A hundredth of a degree is a kilometre, more than the error of any receiver.
AGREEING_DEGREES = 0.01

_LIMITS = {"latitude": 90, "longitude": 180, "utc_offset_min": 14 * 60, "temperature_c": 150, "battery_v": 1000}
_MOST_CHARACTERS = 200


@dataclass(frozen=True)
class RecordingFacts:
    """The facts that one source states about a recording; None where it states nothing.

    Attributes:
        source: The source: ``guano``, ``audiomoth``, ``ixml``, ``bext``, ``name`` or ``manifest``.
        recorded_at: Start of the recording by the recorder's clock, without zone.
        utc_offset_min: Minutes by which that clock is ahead of UTC.
        latitude: Degrees, north is positive.
        longitude: Degrees, east is positive.
        recorder: Make, model and serial number.
        gain: Gain in the recorder's own words.
        temperature_c: Temperature in degrees Celsius.
        battery_v: Voltage of the battery.
    """

    source: str
    recorded_at: datetime | None = None
    utc_offset_min: int | None = None
    latitude: float | None = None
    longitude: float | None = None
    recorder: str | None = None
    gain: str | None = None
    temperature_c: float | None = None
    battery_v: float | None = None

    @classmethod
    def plausible(cls, source: str, **values: object) -> "RecordingFacts | None":
        """Return facts without values that are impossible; None where no value remains.

        Args:
            source: The source.
            values: Values of the other attributes. A time may have a zone, which becomes ``utc_offset_min``.
        """
        kept: dict[str, object] = {name: value for name, value in values.items() if _is_plausible(name, value)}
        time = kept.get("recorded_at")
        if isinstance(time, datetime) and (offset := time.utcoffset()) is not None:
            kept |= {"recorded_at": time.replace(tzinfo=None)}
            minutes = offset // timedelta(minutes=1)
            if _is_plausible("utc_offset_min", minutes):
                kept["utc_offset_min"] = minutes
        has_place = {"latitude", "longitude"} <= kept.keys()
        # Half a position is none, and receivers without a fix write zeros.
        if not has_place or not (kept["latitude"] or kept["longitude"]):
            kept = {name: value for name, value in kept.items() if name not in ("latitude", "longitude")}
        if "recorded_at" not in kept:
            kept.pop("utc_offset_min", None)
        for name in ("recorder", "gain"):
            if name in kept:
                kept[name] = " ".join(str(kept[name]).split())[:_MOST_CHARACTERS]
        return cls(source, **kept) if kept else None  # type: ignore[arg-type] — checked above

    def stated(self) -> dict[str, object]:
        """Return the values that are not None, with the source."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def contradiction(self, other: "RecordingFacts") -> str | None:
        """Return a sentence that says what the two sources state differently; None if they agree."""
        if self.recorded_at is not None and other.recorded_at is not None and not _is_same_time(self, other):
            return f"{self.source} says {_words(self)}, {other.source} says {_words(other)}"
        if self.latitude is not None and other.latitude is not None:
            assert self.longitude is not None
            assert other.longitude is not None
            apart = max(abs(self.latitude - other.latitude), abs(self.longitude - other.longitude))
            if apart > AGREEING_DEGREES:
                return (
                    f"{self.source} says {self.latitude:g} {self.longitude:g}, "
                    f"{other.source} says {other.latitude:g} {other.longitude:g}"
                )
        return None


def encode_facts(facts: Sequence[RecordingFacts]) -> str:
    """Return the facts that several sources state as JSON; empty where there are none."""
    if not facts:
        return ""
    stated = [each.stated() for each in facts]
    return json.dumps(stated, default=datetime.isoformat, ensure_ascii=False, separators=(",", ":"))


# Names of the facts, in the order of the columns of recordings.parquet.
FACT_NAMES = [field.name for field in fields(RecordingFacts) if field.name != "source"]


def _is_plausible(name: str, value: object) -> bool:
    if value is None or value == "":
        return False
    if isinstance(value, datetime):
        return value.year in YEARS
    if name in _LIMITS:
        return isinstance(value, int | float) and abs(value) <= _LIMITS[name]  # NaN is not
    return True


def _is_same_time(one: RecordingFacts, other: RecordingFacts) -> bool:
    """Return whether two times agree, as the clock shows them or as UTC.

    Names may be in UTC where the header has local time, so a time without zone agrees in either way.
    """
    readings = []
    for facts in (one, other):
        assert facts.recorded_at is not None
        as_utc = facts.recorded_at - timedelta(minutes=facts.utc_offset_min or 0)
        readings.append([as_utc] if facts.utc_offset_min is not None else [facts.recorded_at])
    if (one.utc_offset_min is None) != (other.utc_offset_min is None):
        known = 0 if one.utc_offset_min is not None else 1
        readings[known].append((one, other)[known].recorded_at)
    return any(abs((a - b).total_seconds()) <= AGREEING_S for a in readings[0] for b in readings[1])


def _words(facts: RecordingFacts) -> str:
    assert facts.recorded_at is not None
    words = f"{facts.recorded_at:%Y-%m-%d %H:%M:%S}"
    if facts.utc_offset_min is None:
        return words
    hours, minutes = divmod(abs(facts.utc_offset_min), 60)
    return f"{words} {'-' if facts.utc_offset_min < 0 else '+'}{hours:02}:{minutes:02}"
