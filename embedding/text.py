"""Formatting of durations, sizes, counts and names for users."""

import json
import re
from collections.abc import Mapping
from typing import Any

# Control characters that terminals obey (C0, C1), and characters that change the direction of text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def duration(seconds: float) -> str:
    """Return a text like ``45 s``, ``6 min 12 s`` or ``3 h 5 min``."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def audio_length(seconds: float) -> str:
    """Return seconds of audio as a text like ``42 s`` or ``5.7 h``."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 360 else f"{seconds:,.0f} s"


def clock(seconds: float) -> str:
    """Return a position in a recording as a text like ``0:07.5`` or ``1:02:03.0``."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def size(n_bytes: float) -> str:
    """Return a text like ``732 B`` or ``86.4 GB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:,.0f} {unit}" if unit == "B" else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError


def plural(n: int, noun: str) -> str:
    """Return a text like ``1 window`` or ``2,060 windows``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def printable(line: str) -> str:
    """Return ``line`` with line breaks, tabs and other control characters as Python escapes; names may contain them."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], line)


def terminal_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON with all control characters escaped, so that a terminal shows it unchanged.

    Args:
        value: The value.
        indent: Spaces per level; None: one line.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "\n".join(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))


def describe_agreement(agreement: Mapping[str, float]) -> str:
    """Return a text like ``least cosine with fp32 0.999872, median 0.999914 (8 windows)``.

    Args:
        agreement: Fields of ``agreement.Agreement``.
    """
    return (
        f"least cosine with fp32 {agreement['least']:.6f}, median {agreement['median']:.6f} "
        f"({plural(int(agreement['windows']), 'window')})"
    )
