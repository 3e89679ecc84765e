"""Lines in the user's terminal."""

import io

import pytest
from rich.console import Console

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


@pytest.mark.parametrize("has_widgets", [True, False])
def test_a_notebook_shows_bars_only_where_it_has_widgets(monkeypatch: pytest.MonkeyPatch, *, has_widgets: bool) -> None:
    monkeypatch.setattr("embedding.cli.terminal.find_spec", lambda _: object() if has_widgets else None)
    notebook = Terminal(Console(file=io.StringIO(), force_jupyter=True))
    assert notebook.shows_bars is has_widgets
    assert not Terminal(Console(file=io.StringIO())).shows_bars
