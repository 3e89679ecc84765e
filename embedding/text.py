"""Numbers and names as text for a reader: lengths of time, sizes, counts."""

import json
import re
from typing import Any

# Codes that terminals obey (C0, C1), and those that turn the direction of what follows.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def duration(seconds: float) -> str:
    """``45 s``, ``6 min 12 s``, ``3 h 5 min``."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def audio_length(seconds: float) -> str:
    """Seconds of audio in the unit people count it in: ``42 s``, ``5.7 h``."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 360 else f"{seconds:,.0f} s"


def clock(seconds: float) -> str:
    """A place in a recording: ``0:07.5``, ``1:02:03.0``."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def size(n_bytes: float) -> str:
    """``732 B``, ``86.4 GB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:,.0f} {unit}" if unit == "B" else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError


def plural(n: int, noun: str) -> str:
    """Return a count with its noun: ``1 window``, ``2,060 windows``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def printable(line: str) -> str:
    """Return a line whose control characters, which names may contain, are written as Python writes them."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], line)


def terminal_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that a terminal shows as it is: characters that a terminal obeys are escaped.

    Args:
        value: the value.
        indent: spaces for each level; None: one line.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "\n".join(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))
