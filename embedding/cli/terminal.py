"""The terminal of the user: lines, warnings, and a count of finished items."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from embedding.redact import redact
from embedding.text import printable

LOG_EVERY_S = 10.0


@dataclass
class Terminal:
    """Prints one line per fact, without credentials, and without colour outside a terminal."""

    console: Console

    @property
    def shows_bars(self) -> bool:
        """True where a bar can move: in a terminal, and in a notebook that has widgets."""
        in_notebook = self.console.is_jupyter and find_spec("ipywidgets") is not None
        return self.console.is_terminal or in_notebook

    @classmethod
    def on_stdout(cls) -> "Terminal":
        """Return a terminal that prints to stdout."""
        return cls(Console(highlight=False, soft_wrap=True, emoji=False))

    @classmethod
    def on_stderr(cls) -> "Terminal":
        """Return a terminal that prints to stderr, for commands whose stdout is read by programs."""
        return cls(Console(highlight=False, soft_wrap=True, emoji=False, stderr=True))

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(printable(redact(line)), markup=False)

    def warn(self, line: str) -> None:
        """Print a line that the user should not miss."""
        self.console.print(printable(redact(line)), style="bold yellow", markup=False)

    @contextmanager
    def counting(self, noun: str, n: int) -> Iterator[Callable[[int], None]]:
        """Show the number of finished items while the block runs.

        Args:
            noun: The items, in the plural.
            n: Number of all items.

        Yields:
            A function that takes the number of items finished since its last call.
        """
        bar = Progress(MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn(noun), console=self.console)
        task = bar.add_task(noun, total=n)
        last_line_s = time.monotonic()

        def count(more: int) -> None:
            nonlocal last_line_s
            bar.advance(task, more)
            if not self.shows_bars and time.monotonic() - last_line_s >= LOG_EVERY_S:
                last_line_s = time.monotonic()
                self.say(f"{bar.tasks[0].completed:,.0f}/{n:,} {noun}")

        with bar if self.shows_bars else nullcontext():
            yield count
