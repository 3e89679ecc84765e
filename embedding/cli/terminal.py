"""What a person sees: a header, a progress bar in a terminal or a line every ten seconds in a log, a summary."""

import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from embedding.output.counters import Balance, Counters
from embedding.planning.placement import ClusterResources, Placement
from embedding.redact import redact
from embedding.stopping import GRACE_S

LOG_EVERY_S = 10.0
# Without a window for so long it is said what the run may be waiting for.
QUIET_S = 60.0
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
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def printable(line: str) -> str:
    """``line`` with line ends, tabs and what else a terminal obeys as Python writes them: names may hold any of it."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], line)


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

    def progress(self, n_recordings: int, audio_s: float) -> "Watch":
        """To show a run over ``n_recordings`` that hold about ``audio_s`` seconds of audio."""
        return Watch(self, n_recordings, audio_s)

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


def describe(tally: Counters, audio_s: float, elapsed_s: float) -> str:
    """``2,060 windows · 5.7 h of audio · 184 × real time · 2 failed · 3 min left``."""
    parts = [plural(tally.windows_encoded, "window"), f"{audio_length(tally.audio_encoded_s)} of audio"]
    if tally.audio_encoded_s and elapsed_s:
        parts.append(f"{tally.audio_encoded_s / elapsed_s:,.0f} × real time")
    if tally.failed:
        parts.append(f"{tally.failed:,} failed")
    if tally.audio_encoded_s and elapsed_s:
        left_s = max(0.0, audio_s - tally.audio_encoded_s) / (tally.audio_encoded_s / elapsed_s)
        parts.append(f"{duration(left_s)} left")
    return " · ".join(parts)


class Watch:
    """Shows the tally of a run: call it with each new one."""

    def __init__(self, terminal: Terminal, n_recordings: int, audio_s: float) -> None:
        self._terminal = terminal
        self._n_recordings = n_recordings
        self._audio_s = audio_s
        self._began_s = time.monotonic()
        self._last_line_s = self._began_s
        self._n_actors = 0
        self._n_windows = 0
        self._heard_s = self._said_quiet_s = self._began_s
        self._is_stopping = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if terminal.console.is_terminal:
            self._bar = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                console=terminal.console,
            )
            self._task = self._bar.add_task("starting Ray and loading the model", total=n_recordings)

    def __enter__(self) -> "Watch":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def starting(self, placement: Placement) -> None:
        self._n_actors = placement.n_actors
        self._terminal.say(f"{plural(placement.n_actors, 'actor')} on {placement.device} · loading the model")
        if placement.may_wait:
            self._terminal.say("Ray has not so many yet: it begins with what there is, and waits for its autoscaler")

    def stopping(self, asked_by: str) -> None:
        """Say once that the run ends early."""
        if not self._is_stopping:
            self._is_stopping = True
            self._terminal.say(f"{asked_by}: shards in flight may land, {GRACE_S:.0f} s at most; again stops at once")

    def __call__(self, tally: Counters, look: Callable[[], ClusterResources]) -> None:
        """Show ``tally``; ``look`` at the cluster only if nothing moves."""
        self._say_if_quiet(tally, look)
        if not tally.windows_encoded and not tally.failed:
            return
        # Speed counts from the first window: start-up would make the first minute's estimate absurd.
        encoding_s = tally.encoding_s(time.monotonic() - self._began_s)
        text = describe(tally, self._audio_s, encoding_s)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=tally.recordings, description=text)
        elif time.monotonic() - self._last_line_s >= LOG_EVERY_S:
            self._last_line_s = time.monotonic()
            self._terminal.say(f"{tally.recordings:,}/{self._n_recordings:,} recordings · {text}")

    def _say_if_quiet(self, tally: Counters, look: Callable[[], ClusterResources]) -> None:
        now_s = time.monotonic()
        if tally.windows_encoded != self._n_windows:
            self._n_windows, self._heard_s = tally.windows_encoded, now_s
        if now_s - max(self._heard_s, self._said_quiet_s) < QUIET_S:
            return
        self._said_quiet_s = now_s
        cluster = look()
        self._terminal.say(
            f"no window for {duration(now_s - self._heard_s)}: {min(tally.encoders, self._n_actors)} of "
            f"{plural(self._n_actors, 'encoder')} have loaded; Ray has {cluster.n_cpus:g} CPUs and "
            f"{cluster.n_gpus:g} GPUs on {plural(cluster.n_nodes, 'node')}"
        )


def summarise(
    terminal: Terminal, books: Balance, tally: Counters, wall_s: float, output: str, *, model: str = ""
) -> None:
    """The end of a run: what was done, where it lies, how to read it; with several models, of ``model``."""
    done = [f"{books.embedded:,} embedded"]
    if books.changed:
        done.append(f"{books.changed:,} of them changed since and done anew")
    if books.unchanged:
        done.append(f"{books.unchanged:,} touched, with the same audio as before")
    if books.failed:
        kinds = ", ".join(f"{kind} {failure['recordings']:,}" for kind, failure in books.failures.items())
        done.append(f"{books.failed:,} failed ({kinds})")
    terminal.say(
        f"{model and f'{model} '}done in {duration(wall_s)}: {', '.join(done)} · "
        f"{plural(tally.windows_written, 'window')} in {plural(tally.shards, 'shard')}"
    )
    again = [plural(n, what.replace("_", " ").removesuffix("s")) for what, n in tally.done_again.items() if n]
    if again:
        terminal.say(f"  done again after losses: {', '.join(again)}")
    if books.windows_stored:
        folder = f"{output}/embeddings"
        terminal.say(f"  {in_duckdb(f'{folder}/*.parquet')}")
        terminal.say(f"  {_command('python', f'import pandas; print(pandas.read_parquet({folder!r}))')}")
    failures = f"failures: {output}/failures/ · " if books.failed else ""
    terminal.say(f"  {failures}report: {output}/report.json")


def in_duckdb(files: str) -> str:
    """A command that shows some rows of Parquet files, to be pasted into a shell."""
    name = files.replace("'", "''")
    return _command("duckdb", f"select * from '{name}' limit 5")


def _command(program: str, text: str) -> str:
    """``program -c text``; in double quotes where it can be, as those leave single ones in it readable."""
    return f"{program} -c {shlex.quote(text)}" if set(text) & set('"$`\\!') else f'{program} -c "{text}"'


def complain(error: Exception) -> None:
    """One line on stderr."""
    print(f"avex-batch: {printable(' '.join(redact(str(error)).split()))}", file=sys.stderr)  # noqa: T201


def print_bug(error: Exception) -> None:
    """The traceback Python would print, on stderr: its messages may quote URLs."""
    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)  # noqa: T201
