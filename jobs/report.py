"""Counts of an output, from its shards alone: ``python -m jobs.report OUTPUT``; as a page with ``--html``.

Exit codes: 0 the output is complete and consistent; 1 there are disagreements; 2 there is no such output.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedding.cli.arguments import Parser, add_where, number
from embedding.cli.exit_codes import EXIT_COMPLETE, EXIT_INCOMPLETE, run_job
from embedding.cli.terminal import Terminal
from embedding.errors import RequestError
from embedding.redact import redact_all
from embedding.stopping import end_process
from embedding.text import audio_length, describe_agreement, duration, plural, terminal_json

if TYPE_CHECKING:
    from embedding.output.consistency import ConsistencyReport

# Windows in the sample; more are neither clearer nor quick in a browser.
DEFAULT_SAMPLE, MOST_SAMPLE = 5_000, 10_000


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m jobs.report",
        description="Count what an output holds, from its shards alone, and show where its report.json disagrees.",
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUTPUT", help="directory or s3:// prefix that jobs.embed wrote")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page with counts and pictures; it needs only a browser")
    parser.add_argument("--png", metavar="DIR", help="write the pictures of the page into this folder")
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="a .csv or .parquet file with a column 'file'; its other columns (labels, site, time) are shown (default: "
        "the manifests that were inputs of the run)",
    )
    parser.add_argument(
        "--sample",
        metavar="N",
        help=f"windows in the UMAP and PCA maps: a random sample, the same each time (default: {DEFAULT_SAMPLE:,})",
    )
    add_where(parser)
    return parser


def report(arguments: Sequence[str] | None) -> int:
    """Count an output, compare it with its report, and write the page and its pictures.

    Args:
        arguments: The command line; None: the command line of this process.

    Returns:
        The exit code.

    Raises:
        RequestError: The request makes no sense.
        RunError: A picture cannot be drawn, or a file cannot be written.
    """
    options = make_parser().parse_args(arguments)
    report_options = None
    if options.html is not None or options.png is not None:
        from embedding.overview.page_options import ReportOptions

        sample_size = number("--sample", options.sample or str(DEFAULT_SAMPLE), int, 1, MOST_SAMPLE)
        report_options = ReportOptions.of(options.html, options.png, options.manifest, int(sample_size), options.where)
    elif (options.manifest, options.sample, options.where) != (None, None, None):
        raise RequestError("--manifest, --sample and --where need --html FILE or --png DIR")
    from embedding import storage  # imports numpy and pyarrow, which --help does not need
    from embedding.output.consistency import check_consistency
    from embedding.output.store import Store

    store = Store(storage.normalise(options.output, "OUTPUT"), "")
    inventory = store.read()
    consistency = check_consistency(store, inventory)
    terminal = Terminal.on_stdout()
    if options.json:
        sys.stdout.write(terminal_json(redact_all(consistency.as_json()), indent=2) + "\n")
    else:
        print_counts(consistency, terminal)
    if report_options is not None:
        report_options.write(store, inventory, consistency, Terminal.on_stderr() if options.json else terminal)
    return EXIT_INCOMPLETE if consistency.disagreements else EXIT_COMPLETE


def print_counts(consistency: "ConsistencyReport", terminal: Terminal) -> None:
    """Print the counts of an output, its runs, and the disagreements between its files."""
    output = consistency.output
    kinds = ", ".join(f"{kind} {failure['recordings']:,}" for kind, failure in consistency.failures.items())
    terminal.say(
        f"{plural(int(output['recordings']), 'recording')} embedded, "
        f"{output['failed']:,} failed{f' ({kinds})' if kinds else ''} · "
        f"{plural(int(output['windows']), 'window')} in {plural(int(output['shards']), 'shard')} · "
        f"{audio_length(output['audio_s'])} of audio"
    )
    for run in consistency.runs:
        speed = f" · {run['times_real_time']:,} × real time" if run["times_real_time"] else ""
        agreement = f" · {describe_agreement(run['agreement'])}" if run["agreement"] else ""
        terminal.say(
            f"  run of {run['started']} on {run['host']}: {run['state']} after {duration(run['wall_s'])}, "
            f"{plural(run['windows_written'], 'window')}{speed}{agreement}"
        )
    if consistency.writer is not None:
        terminal.say(f"a run is writing to this output now ({consistency.writer})")
    for disagreement in consistency.disagreements:
        terminal.warn(disagreement)
    if not consistency.disagreements:
        terminal.say(
            "checked: stored data matches report.json"
            if consistency.writer is None
            else "checked: stored data is consistent so far"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code."""
    return run_job(lambda: report(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
