"""Lines in the user's terminal."""

import pytest

from embedding.cli.terminal import Terminal
from embedding.errors import RequestError, print_error


def test_control_characters_in_names_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\nb\t\x1b[31m\x9b1m\u202e [bold]c[/bold] é 🦉.wav"
    expected = r"a\nb\t\x1b[31m\x9b1m\u202e [bold]c[/bold] é 🦉.wav"
    Terminal.on_stdout().say(name)
    Terminal.on_stdout().warn(name)
    print_error(RequestError(f"'{name}' is damaged"))
    printed = capsys.readouterr()
    assert printed.out == f"{expected}\n" * 2
    assert printed.err == f"avex-batch: '{expected}' is damaged\n".replace(r"\n", " ").replace(r"\t", " ")
