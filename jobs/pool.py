"""Pool the embeddings of windows to one row per recording: ``python -m jobs.pool OUTPUT --pooling mean``.

Exit codes: 0 every recording with embeddings is pooled; 1 some are not; 2 the request makes no sense.
"""

from collections.abc import Sequence

from embedding.announce import commands_to_read
from embedding.cli.arguments import Parser, add_where, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.config import name_at_layer
from embedding.pooling.poolings import parse_poolings
from embedding.stopping import end_process


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser(
        "pool",
        "Pool the embeddings of an output to one row per recording, in OUTPUT/recordings/POOLING/*.parquet. The same "
        "command again pools recordings that were added since.",
    )
    parser.add_argument(
        "--pooling",
        metavar="POOLING",
        default="mean",
        help="pooling over the windows of a recording: mean, max, std, several joined by + (one after the other in the "
        "vector), or sequence (all windows in order, as a list of vectors) (default: mean)",
    )
    add_where(parser)
    return parser


def pool(arguments: Sequence[str] | None) -> None:
    """Pool an output, and print how to read the rows.

    Raises:
        RequestError: The request makes no sense.
        RunError: Not every recording is pooled, or the storage or the cluster failed.
    """
    options = make_parser().parse_args(arguments)
    poolings = parse_poolings(options.pooling)
    from embedding import storage  # here, because --help needs no numpy and pyarrow
    from embedding.pooling.pool import pool as pool_output

    terminal = Terminal.on_stdout()
    root = storage.normalise(options.output, "OUTPUT")
    outcome = pool_output(root, poolings, options.layer, terminal, where=options.where, verbose=options.verbose)
    for line in commands_to_read(f"{root}/recordings/{name_at_layer(options.pooling, options.layer)}"):
        terminal.say(f"  {line}")
    outcome.refuse_incomplete("pool")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(lambda: pool(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
