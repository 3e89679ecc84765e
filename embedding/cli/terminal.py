"""What a person sees: a header, a progress bar in a terminal or a line every ten seconds in a log, a summary."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from embedding.redact import redact
from embedding.text import printable

LOG_EVERY_S = 10.0


@dataclass
class Terminal:
    """Prints for whoever watches. Output goes to stdout, one line per fact, no colour outside a terminal."""

    console: Console

    @classmethod
    def on_stdout(cls) -> "Terminal":
        return cls(Console(highlight=False, soft_wrap=True, emoji=False))

    @classmethod
    def on_stderr(cls) -> "Terminal":
        """Where what goes to stdout is for programs."""
        return cls(Console(highlight=False, soft_wrap=True, emoji=False, stderr=True))

    def say(self, line: str) -> None:
        self.console.print(printable(redact(line)), markup=False)

    def warn(self, line: str) -> None:
        self.console.print(printable(redact(line)), style="bold yellow", markup=False)

    @contextmanager
    def counting(self, what: str, n: int) -> Iterator[Callable[[int], None]]:
        """To show how many of ``n`` are done: call it with how many more."""
        bar = Progress(MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn(what), console=self.console)
        task = bar.add_task(what, total=n)
        last_line_s = time.monotonic()

        def count(more: int) -> None:
            nonlocal last_line_s
            bar.advance(task, more)
            if not self.console.is_terminal and time.monotonic() - last_line_s >= LOG_EVERY_S:
                last_line_s = time.monotonic()
                self.say(f"{bar.tasks[0].completed:,.0f}/{n:,} {what}")

        with bar if self.console.is_terminal else nullcontext():
            yield count
