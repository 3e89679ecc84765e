"""Numbers and JSON as text for a terminal."""

import json

import pytest

from embedding.text import audio_length, duration, size, terminal_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (duration(44.6), "45 s"),
        (duration(372), "6 min 12 s"),
        (duration(11_100), "3 h 5 min"),
        (duration(-1), "0 s"),
        (audio_length(42), "42 s"),
        (audio_length(20_520), "5.7 h"),
        (size(732), "732 B"),
        (size(86.4e9), "86.4 GB"),
        (size(5e15), "5,000.0 TB"),
    ],
)
def test_quantities_have_a_suitable_unit(text: str, expected: str) -> None:
    assert text == expected


def test_json_for_a_terminal_has_the_same_value_without_control_characters() -> None:
    value = {"a\u202eb": ["é 🦉", "\x1b[31m", "\x9b1m", "\u2066"], "n": 1.5}
    for indent in (None, 2):
        text = terminal_json(value, indent)
        assert json.loads(text) == value
        assert "é 🦉" in text
        assert not set(text) & set("\x1b\x9b\u202e\u2066")
