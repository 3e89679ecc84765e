"""A terminal whose text a test can read, and counters to show in it."""

import io

from rich.console import Console

from embedding.cli.terminal import Terminal
from embedding.counters import Counters


def terminal_and_text(*, is_terminal: bool = False) -> tuple[Terminal, io.StringIO]:
    """Return a terminal, and the stream that it prints to."""
    text = io.StringIO()
    return Terminal(Console(file=text, force_terminal=is_terminal, width=120, highlight=False, soft_wrap=True)), text


def make_counters(**counts: float) -> Counters:
    """Return counters with these counts."""
    counters = Counters()
    counters.add("encode", 1.0, {}, **counts)
    return counters
