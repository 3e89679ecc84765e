"""Counts of an output, from its shards alone: ``python -m jobs.report OUTPUT``; as a page with ``--html``.

Exit codes: 0 everything is there and agrees; 1 it does not; 2 there is no such output.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedding.cli.arguments import Parser, number
from embedding.cli.exit_codes import EXIT_COMPLETE, EXIT_INCOMPLETE, run_job
from embedding.cli.terminal import Terminal
from embedding.errors import RequestError
from embedding.redact import redact_all
from embedding.stopping import end_process
from embedding.text import audio_length, duration, plural, terminal_json

if TYPE_CHECKING:
    from embedding.output.consistency import ConsistencyReport

# Windows that are drawn; more are neither clearer nor quick in a browser.
DEFAULT_SAMPLE, MOST_SAMPLE = 5_000, 10_000


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m jobs.report",
        description="Count what an output holds, from its shards alone, and say where its report.json disagrees.",
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUTPUT", help="directory or s3:// prefix that jobs.embed wrote")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page to look at, which needs nothing but a browser")
    parser.add_argument("--png", metavar="DIR", help="write its pictures into this folder")
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="a .csv or .parquet with a column 'file', whose other columns (labels, site, time) are shown (default: "
        "manifests that were the input)",
    )
    parser.add_argument(
        "--sample",
        metavar="N",
        help=f"windows to draw in UMAP and PCA, at random but the same each time (default: {DEFAULT_SAMPLE:,})",
    )
    return parser


def report(arguments: Sequence[str] | None) -> int:
    """Count and compare, and draw what is asked for; the exit code says whether everything agrees.

    Raises:
        RequestError: the request makes no sense.
        RunError: something cannot be drawn or written.
    """
    given = make_parser().parse_args(arguments)
    wanted = None
    if given.html is not None or given.png is not None:
        from embedding.overview.page_options import Wanted

        n_drawn = number("--sample", given.sample or str(DEFAULT_SAMPLE), int, 1, MOST_SAMPLE)
        wanted = Wanted.of(given.html, given.png, given.manifest, int(n_drawn))
    elif given.manifest is not None or given.sample is not None:
        raise RequestError("--manifest and --sample are for pictures: say with --html FILE or --png DIR where they go")
    from embedding import storage  # numpy and pyarrow: not for --help
    from embedding.output.consistency import check_consistency
    from embedding.output.store import Store

    store = Store(storage.normalise(given.output, "OUTPUT"), "")
    inventory = store.read()
    found = check_consistency(store, inventory)
    terminal = Terminal.on_stdout()
    if given.json:
        sys.stdout.write(terminal_json(redact_all(found.as_json()), indent=2) + "\n")
    else:
        tell(found, terminal)
    if wanted is not None:
        wanted.publish(store, inventory, found, Terminal.on_stderr() if given.json else terminal)
    return EXIT_INCOMPLETE if found.disagreements else EXIT_COMPLETE


def tell(found: "ConsistencyReport", terminal: Terminal) -> None:
    """The counts, the runs, and what disagrees."""
    output = found.output
    kinds = ", ".join(f"{kind} {failure['recordings']:,}" for kind, failure in found.failures.items())
    terminal.say(
        f"{plural(int(output['recordings']), 'recording')} embedded, "
        f"{output['failed']:,} failed{f' ({kinds})' if kinds else ''} · "
        f"{plural(int(output['windows']), 'window')} in {plural(int(output['shards']), 'shard')} · "
        f"{audio_length(output['audio_s'])} of audio"
    )
    for run in found.runs:
        speed = f" · {run['times_real_time']:,} × real time" if run["times_real_time"] else ""
        terminal.say(
            f"  run of {run['started']} on {run['host']}: {run['state']} after {duration(run['wall_s'])}, "
            f"{plural(run['windows_written'], 'window')}{speed}"
        )
    if found.writer is not None:
        terminal.say(f"a run is writing just now ({found.writer})")
    for disagreement in found.disagreements:
        terminal.warn(disagreement)
    if not found.disagreements:
        terminal.say(
            "checked: stored data matches report.json"
            if found.writer is None
            else "checked: stored data is consistent so far"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit code says how it went."""
    return run_job(lambda: report(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
