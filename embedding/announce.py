"""Lines about a run for its user: what is asked for, what is left to do, what came of it."""

import shlex
from collections.abc import Sequence
from importlib import metadata

from embedding.cli.terminal import Terminal
from embedding.config import RANDOM_CHECKPOINT
from embedding.counters import Counters
from embedding.listing.listing import describe_left_out
from embedding.output.backlog import Backlog
from embedding.output.balance import Balance
from embedding.request import Part, Request
from embedding.text import audio_length, duration, plural, size

MANY_TIMES = 20  # overlap of windows from which on the cost of a run is told before work begins


def greet(terminal: Terminal, request: Request) -> None:
    settings = [part.settings for part in request.parts]
    windows = settings[0].windows
    models = " + ".join(f"{each.model.name} · {each.windows.rate_hz / 1000:g} kHz" for each in settings)
    terminal.say(
        f"avex-batch {metadata.version('avex-batch')} · {models} · window {windows.length / windows.rate_hz:g} s, "
        f"hop {windows.hop / windows.rate_hz:g} s · {settings[0].precision}"
    )
    random = [each.model.name for each in settings if each.checkpoint.uri == RANDOM_CHECKPOINT]
    if random:
        whose = "these vectors mean" if len(random) == len(settings) else f"the vectors of {', '.join(random)} mean"
        terminal.warn(f"RANDOM WEIGHTS: {whose} nothing; for trials only (--checkpoint random)")


def describe_work(terminal: Terminal, request: Request, works: Sequence[Backlog]) -> None:
    """What is listed, and what of it is to be done; with several models, a line for each."""
    listing = request.listing
    parts = [f"{plural(len(listing.recordings), 'recording')}, {size(listing.n_bytes)}"]
    if listing.left_out:
        parts.append(f"left out: {describe_left_out(listing.left_out)}")
    if listing.n_hard_links:
        parts.append(f"{listing.n_hard_links:,} are hard links to others of them")
    if len(works) > 1:
        terminal.say(" · ".join(parts))
    for part, work in zip(request.parts, works, strict=True):
        progress = []
        if len(work.done_before):
            progress.append(f"{len(work.done_before):,} done before")
        if len(work.failed_before):
            progress.append(f"{len(work.failed_before):,} failed before (--retry-failed tries them again)")
        to_do = [", ".join([*progress, f"{len(work.todo):,} to do"])] if progress else []
        if len(works) == 1:
            terminal.say(" · ".join(parts + to_do))
        elif to_do:
            terminal.say(f"  {part.settings.model.name}: {to_do[0]}")
        if work.n_changed:
            terminal.say(
                f"{work.n_changed:,} of them were embedded before with another size or time: their audio is compared, "
                "and only what differs is embedded anew"
            )


def describe_dry_run(terminal: Terminal, request: Request, audio_s: Sequence[float]) -> None:
    """What a run over about ``audio_s`` seconds of audio, of each part, would write."""
    terminal.say(
        f"dry run, nothing written: {_cost(request.parts, audio_s)}; try --limit on a few recordings to see the speed"
    )


def describe_overlap(terminal: Terminal, request: Request, audio_s: float) -> None:
    """The cost of a run over about ``audio_s`` seconds of audio, where a short hop makes many windows of little."""
    overlap = max(part.settings.windows.length / part.settings.windows.hop for part in request.parts)
    if overlap >= MANY_TIMES:
        cost = _cost(request.parts, [audio_s] * len(request.parts))
        terminal.warn(f"windows overlap {overlap:,.0f} times: {cost}")


def _cost(parts: Sequence[Part], audio_s: Sequence[float]) -> str:
    n_windows, n_bytes = 0, 0
    for part, seconds in zip(parts, audio_s, strict=True):
        of_part = int(seconds * part.settings.windows.rate_hz / part.settings.windows.hop)
        n_windows += of_part
        n_bytes += of_part * part.settings.row_bytes
    return f"about {audio_length(max(audio_s))} of audio, {plural(n_windows, 'window')}, {size(n_bytes)} of vectors"


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
