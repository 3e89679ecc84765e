"""Lines about a run for its user: the request, the backlog, the cost, the result."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from embedding.cli.terminal import Terminal
from embedding.config import RANDOM_CHECKPOINT
from embedding.counters import Counters
from embedding.encoding.cpu_products import lacks_products
from embedding.job import Target
from embedding.listing.listing import describe_ignored, describe_not_found
from embedding.output.backlog import Backlog
from embedding.output.balance import Balance
from embedding.output.recordings_table import NAME, RecordingsTable
from embedding.request import Request
from embedding.text import audio_length, duration, plural, size

# Overlap of windows from which on a run shows its cost before it begins.
MANY_TIMES = 20


def announce_request(terminal: Terminal, request: Request) -> None:
    """Print the models, the windows and the precision."""
    settings = [target.settings for target in request.targets]
    windows = settings[0].windows
    models = " + ".join(f"{each.model.name} · {each.model.rate_hz / 1000:g} kHz" for each in settings)
    speed = f" · speed {settings[0].speed:g}" if settings[0].speed != 1 else ""
    terminal.say(
        f"avex-batch {metadata.version('avex-batch')} · {models} · window {windows.length / windows.rate_hz:g} s, "
        f"hop {windows.hop / windows.rate_hz:g} s{speed} · {settings[0].precision}"
    )
    if windows.hop > windows.length:
        gap_s = (windows.hop - windows.length) / windows.rate_hz
        terminal.warn(f"--hop-s is longer than --window-s: {gap_s:g} s of audio between two windows are not embedded")
    random = [each.model.name for each in settings if each.checkpoint.uri == RANDOM_CHECKPOINT]
    if random:
        vectors = "these vectors mean" if len(random) == len(settings) else f"the vectors of {', '.join(random)} mean"
        terminal.warn(f"RANDOM WEIGHTS: {vectors} nothing; for trials only (--checkpoint random)")


def announce_slow_precision(terminal: Terminal, precision: str) -> None:
    """Say so where this machine's CPUs gain nothing from a precision."""
    if not lacks_products(precision):
        return
    if precision == "bf16":
        terminal.say("--precision bf16: this CPU has no instructions for bf16, and computes in fp32")
    else:
        terminal.say(
            "--precision int8: this CPU has no instructions for products of 8 bits (VNNI); int8 is no faster than fp32"
        )


def announce_backlog(terminal: Terminal, request: Request, backlogs: Sequence[Backlog]) -> None:
    """Print what is listed and what is left to do; with several models, a line for each."""
    listing = request.listing
    facts = [f"{plural(len(listing.recordings), 'recording')}, {size(listing.n_bytes)}"]
    if listing.ignored:
        facts.append(f"ignored: {describe_ignored(listing.ignored)}")
    if listing.n_hard_links:
        facts.append(f"{listing.n_hard_links:,} of them are hard links to others")
    if listing.n_not_found:
        terminal.warn(describe_not_found(listing))
    if len(backlogs) > 1:
        terminal.say(" · ".join(facts))
    for target, backlog in zip(request.targets, backlogs, strict=True):
        before = []
        if len(backlog.done_before):
            before.append(f"{len(backlog.done_before):,} embedded before")
        if len(backlog.failed_before):
            before.append(f"{len(backlog.failed_before):,} failed before (--retry-failed tries them again)")
        to_do = [", ".join([*before, f"{len(backlog.todo):,} to do"])] if before else []
        if len(backlogs) == 1:
            terminal.say(" · ".join(facts + to_do))
        elif to_do:
            terminal.say(f"  {target.settings.model.name}: {to_do[0]}")
        if backlog.n_changed:
            terminal.say(
                f"{backlog.n_changed:,} of them were embedded before with another size or time: recordings with the "
                "same audio keep their vectors, the others are embedded again"
            )


def announce_dry_run(terminal: Terminal, request: Request, durations_s: Sequence[NDArray[np.float64]]) -> None:
    """Print what a run would write.

    Args:
        terminal: The terminal.
        request: The request.
        durations_s: For each target, estimated durations of the recordings to embed.
    """
    terminal.say(
        f"dry run, nothing written: {_cost(request.targets, durations_s)}; try --limit on a few recordings to see the "
        "speed"
    )


def announce_overlap(terminal: Terminal, request: Request, durations_s: NDArray[np.float64]) -> None:
    """Print the cost of a run over recordings of about ``durations_s`` where windows overlap many times."""
    overlap = max(target.settings.windows.length / target.settings.windows.hop for target in request.targets)
    if overlap >= MANY_TIMES:
        cost = _cost(request.targets, [durations_s] * len(request.targets))
        terminal.warn(f"windows overlap {overlap:,.0f} times: {cost}")


def _cost(targets: Sequence[Target], durations_s: Sequence[NDArray[np.float64]]) -> str:
    n_windows, n_bytes = 0, 0
    for target, of_target_s in zip(targets, durations_s, strict=True):
        n_of_target = int(target.settings.windows.estimate_count(of_target_s).sum())
        n_windows += n_of_target
        n_bytes += n_of_target * target.settings.row_bytes
    audio_s = max(float(of_target_s.sum()) for of_target_s in durations_s)
    return f"about {audio_length(audio_s)} of audio, {plural(n_windows, 'window')}, {size(n_bytes)} of vectors"


def announce_result(
    terminal: Terminal, balance: Balance, counters: Counters, wall_s: float, output: str, *, model: str = ""
) -> None:
    """Print what a run did, where its vectors lie, and how to read them.

    Args:
        terminal: The terminal.
        balance: The balance of the output.
        counters: The counters of the run.
        wall_s: Seconds that the run took.
        output: Directory or prefix.
        model: The model's name, where the run has several.
    """
    before = [f"{balance.already_done - balance.unchanged:,} of them before"] if balance.already_done else []
    if balance.changed:
        before.append(f"{balance.changed:,} again, because they had changed")
    if balance.unchanged:
        before.append(f"{balance.unchanged:,} had a new time or size, but the same audio")
    stored = f"{balance.n_stored:,} of {plural(balance.listed, 'recording')} embedded and saved"
    facts = [f"{stored} ({'; '.join(before)})" if before else stored]
    if balance.failed:
        facts.append(balance.describe_failures())
    facts.append(f"{plural(counters.windows_written, 'window')} in {plural(counters.shards, 'shard')}")
    terminal.say(f"{model and f'{model} '}done in {duration(wall_s)}: {' · '.join(facts)}")
    again = [plural(n, name.replace("_", " ").removesuffix("s")) for name, n in counters.done_again.items() if n]
    if again:
        terminal.say(f"  done again because workers were lost: {', '.join(again)}")
    if balance.windows_stored:
        for line in commands_to_read(f"{output}/embeddings"):
            terminal.say(f"  {line}")
    failures = f"failures: {output}/failures/ · " if balance.failed else ""
    terminal.say(f"  {failures}recordings: {output}/{NAME} · report: {output}/report.json")


def announce_contradictions(terminal: Terminal, table: RecordingsTable | None) -> None:
    """Warn of recordings whose file, name and manifest say different things about when and where they were made."""
    told = [] if table is None else table.new_contradictions
    if told:
        file, contradiction = told[0]
        terminal.warn(
            f"{plural(len(told), 'recording')} with contradicting times or places, see contradiction in {NAME}: "
            f"{file.rpartition('/')[2]}: {contradiction}"
        )


def commands_to_read(folder: str) -> list[str]:
    """Return commands that show some rows of the Parquet files in ``folder``, and that run on this machine."""
    commands = [_command(sys.executable, f"import pandas; print(pandas.read_parquet({folder!r}))")]
    if shutil.which("duckdb"):
        files = f"{folder}/*.parquet".replace("'", "''")
        commands.insert(0, _command("duckdb", f"select * from '{files}' limit 5"))
    return commands


def _command(program: str, text: str) -> str:
    """Return ``program -c text`` for a shell, in double quotes where possible: they leave single quotes readable."""
    quoted = shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
    return f"{shlex.quote(program)} -c {quoted}"
