"""Embeddings of windows to one row per recording: ``python -m jobs.pool OUTPUT --pooling mean``.

Exit codes: 0 every recording that has embeddings is pooled; 1 it is not; 2 the request makes no sense.
"""

from collections.abc import Sequence

from embedding.announce import commands_to_read
from embedding.cli.arguments import Parser, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.config import name_at_layer
from embedding.errors import RunError
from embedding.pooling.poolings import parse_poolings
from embedding.stopping import end_process
from embedding.text import plural


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser(
        "pool",
        "Pool the embeddings of an output to one row per recording, in "
        "OUTPUT/recordings/POOLING/*.parquet. The same command again pools what has come since.",
    )
    parser.add_argument(
        "--pooling",
        metavar="POOLING",
        default="mean",
        help="over a recording's windows: mean, max, std, several joined by + (one after the other in the vector), or "
        "sequence (all windows in order, as a list of vectors) (default: mean)",
    )
    return parser


def pool(arguments: Sequence[str] | None) -> None:
    """Pool, and say how to read it.

    Raises:
        RequestError: the request makes no sense.
        RunError: not everything is pooled.
    """
    given = make_parser().parse_args(arguments)
    poolings = parse_poolings(given.pooling)
    from embedding import storage  # numpy and pyarrow: not for --help
    from embedding.pooling.pool import pool as run

    terminal = Terminal.on_stdout()
    root = storage.normalise(given.output, "OUTPUT")
    outcome = run(root, poolings, given.layer, terminal, verbose=given.verbose)
    for line in commands_to_read(f"{root}/recordings/{name_at_layer(given.pooling, given.layer)}"):
        terminal.say(f"  {line}")
    if outcome.n_left_out:
        raise RunError(
            f"{plural(outcome.n_left_out, 'recording')} left out, of which not every window is there exactly once: run "
            "jobs.embed again, then this"
        )
    if not outcome.is_settled:
        raise RunError(
            "a run of jobs.embed is going on, or died: of recordings that changed there may be rows of both versions; "
            "once it has ended, run this again"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit code says how it went."""
    return run_job(lambda: pool(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
