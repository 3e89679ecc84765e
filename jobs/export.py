"""Export the vectors of an output to the format of another tool: ``python -m jobs.export OUTPUT --to npy FOLDER``.

Exit codes: 0 the export is complete; 1 the export could not be written; 2 the request makes no sense.
"""

from collections.abc import Sequence
from pathlib import Path

from embedding.cli.arguments import Parser, add_where, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.config import did_you_mean
from embedding.errors import RequestError
from embedding.stopping import end_process

FORMATS = {
    "npy": "a NumPy array that can be mapped into memory, and a table with the other columns",
    "pt": "a dictionary of PyTorch tensors",
    "opensoundscape": "a CSV with the index file, start_time, end_time",
    "lancedb": "a LanceDB table with an index by cosine",
    "hoplite": "a perch-hoplite database",
}


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser("export", "Write the vectors of an output in the format of another tool.", on_ray=False)
    formats = "; ".join(f"{name}, {description}" for name, description in FORMATS.items())
    parser.add_argument("--to", metavar="FORMAT", required=True, help=formats)
    parser.add_argument(
        "destination", metavar="FOLDER", help="a folder on this machine's disk; only an earlier export is replaced"
    )
    parser.add_argument(
        "--recordings",
        metavar="POOLING",
        help="export the recordings of jobs.pool --pooling POOLING in place of windows",
    )
    add_where(parser)
    return parser


def export(arguments: Sequence[str] | None) -> None:
    """Export an output, and print how to read the export.

    Raises:
        RequestError: The request makes no sense.
        RunError: The export could not be written.
    """
    options = make_parser().parse_args(arguments)
    if options.to not in FORMATS:
        raise RequestError(
            f"--to: {options.to!r} is not one of {', '.join(FORMATS)}{did_you_mean(options.to, FORMATS)}"
        )
    from embedding import storage  # here, because --help needs no numpy and pyarrow
    from embedding.exporting.export import export as export_output
    from embedding.exporting.exported_rows import ExportOptions

    name = storage.normalise(options.destination, "FOLDER")
    if storage.is_s3(name):
        raise RequestError(f"FOLDER: {name} is no folder on this machine: export to a local folder, then copy it")
    destination = Path(name)
    if destination.is_symlink():  # otherwise the export would replace the link, and might be on another disk
        destination = destination.resolve()
    root = storage.normalise(options.output, "OUTPUT")
    exported = ExportOptions(root, options.recordings, options.layer, options.where)
    export_output(exported, options.to, destination, Terminal.on_stdout())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(lambda: export(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
