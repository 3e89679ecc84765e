"""The vectors of an output in the format of another tool: ``python -m jobs.export OUTPUT --to npy FOLDER``.

Exit codes: 0 they are there; 1 they could not be written; 2 the request makes no sense.
"""

from collections.abc import Sequence
from pathlib import Path

from embedding.cli.arguments import Parser, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.config import did_you_mean
from embedding.errors import RequestError
from embedding.stopping import end_process

FORMATS = {
    "npy": "a NumPy array to be mapped into memory, and a table beside it",
    "pt": "a dictionary of PyTorch tensors",
    "opensoundscape": "a CSV with the index file, start_time, end_time",
    "lancedb": "a LanceDB table with an index by cosine",
    "hoplite": "a perch-hoplite database",
}


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser("export", "Write the vectors of an output in the format of another tool.", on_ray=False)
    described = "; ".join(f"{name}, {what}" for name, what in FORMATS.items())
    parser.add_argument("--to", metavar="FORMAT", required=True, help=described)
    parser.add_argument("destination", metavar="FOLDER", help="on this machine's disk; only an earlier one is replaced")
    parser.add_argument(
        "--recordings", metavar="POOLING", help="in place of windows, what jobs.pool --pooling POOLING made of them"
    )
    return parser


def export(arguments: Sequence[str] | None) -> None:
    """Export, and say how to read it.

    Raises:
        RequestError: the request makes no sense.
        RunError: it could not be written.
    """
    given = make_parser().parse_args(arguments)
    if given.to not in FORMATS:
        raise RequestError(f"--to: {given.to!r} is not one of {', '.join(FORMATS)}{did_you_mean(given.to, FORMATS)}")
    from embedding import storage  # numpy and pyarrow: not for --help
    from embedding.exporting.export import export as run
    from embedding.exporting.exported_rows import Wanted

    name = storage.normalise(given.destination, "FOLDER")
    if storage.is_s3(name):
        raise RequestError(f"FOLDER: {name} is no folder on this machine: write it there, then copy it")
    destination = Path(name)
    if destination.is_symlink():  # else a folder would take the link's place, and on another disk
        destination = destination.resolve()
    wanted = Wanted(storage.normalise(given.output, "OUTPUT"), given.recordings, given.layer)
    run(wanted, given.to, destination, Terminal.on_stdout())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit code says how it went."""
    return run_job(lambda: export(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
