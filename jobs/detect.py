"""Find a probe's labels in every stored window: ``python -m jobs.detect OUTPUT --probe NAME``.

Exit codes: 0 every recording with embeddings is scored; 1 some are not; 2 the request makes no sense.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from embedding.cli.arguments import Parser, add_where, folder_name, number, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.config import did_you_mean
from embedding.errors import RequestError, storage_failure
from embedding.stopping import end_process
from embedding.text import plural

FORMATS = ("raven", "raven-combined", "audacity", "kaleidoscope", "csv")


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser(
        "detect",
        "Find the labels of a probe in every stored window. Neighbouring windows of a label become one detection, a "
        "row with file, start_time, end_time, label and score in OUTPUT/detections/NAME/*.parquet. The same command "
        "again scores recordings that were added since.",
        has_layer=False,
    )
    parser.add_argument(
        "--probe",
        metavar="NAME",
        help="a probe of jobs.probe, or a .npz with weight [classes, dim], bias [classes] and classes (default: the "
        "labels that the model predicts, of a run with --predict)",
    )
    parser.add_argument("--name", help="name of the detections (default: that of the probe)")
    parser.add_argument("--threshold", metavar="X", help="least probability of a detection (default: 0.5)")
    parser.add_argument(
        "--threshold-file",
        metavar="CSV",
        help="thresholds by label, in columns label and threshold; other labels have --threshold",
    )
    parser.add_argument(
        "--min-precision",
        metavar="P",
        help="choose the lowest threshold of each class at which so large a share of the windows in the probe's test "
        "is right; a class that never reaches it is left out",
    )
    parser.add_argument(
        "--top", metavar="K", help="keep the K best detections of each label; without a threshold, the K best windows"
    )
    parser.add_argument(
        "--merge-gap-s",
        metavar="S",
        default="0",
        help="windows of a label become one detection over gaps of up to S seconds (default: 0: neighbours)",
    )
    parser.add_argument(
        "--to",
        nargs=2,
        metavar=("FORMAT", "FOLDER"),
        help=f"write the detections for another program, too, into a folder on this machine: {', '.join(FORMATS)}",
    )
    parser.add_argument("--replace", action="store_true", help="replace detections of other settings")
    parser.add_argument(
        "--validate",
        metavar="LABELS",
        help="estimate in how many windows each class calls, with intervals, by hour and by site, from labels of some "
        "recordings or windows, as for jobs.probe",
    )
    parser.add_argument(
        "--sample",
        metavar="CSV",
        help="write windows of each class, of all scores, that are to be judged for --validate",
    )
    parser.add_argument("--label-format", metavar="FORMAT", help="a format of --validate that crowsetta reads")
    add_where(parser)
    return parser


def detect(arguments: Sequence[str] | None) -> None:
    """Score every stored window, and print the number of detections.

    Raises:
        RequestError: The request makes no sense.
        RunError: Not every recording is scored, or the storage or the cluster failed.
    """
    options = make_parser().parse_args(arguments)
    for other, value in (("--threshold", options.threshold), ("--threshold-file", options.threshold_file)):
        if options.min_precision is not None and value is not None:
            raise RequestError(f"--min-precision: chooses the thresholds, and cannot be joined with {other}")
    if options.name is not None:
        folder_name("--name", options.name)
    from embedding import storage  # here, because --help needs no numpy and pyarrow
    from embedding.detecting.detect import detect as run_detect
    from embedding.detecting.plan import DetectOptions

    def share(option: str, text: str | None) -> float | None:
        return None if text is None else number(option, text, float, 0, 1)

    root, terminal = storage.normalise(options.output, "OUTPUT"), Terminal.on_stdout()
    to, destination = _check_export(options.to)
    sample = None if options.sample is None else Path(storage.normalise(options.sample, "--sample"))
    if sample is not None and sample.exists():
        raise RequestError(f"--sample: {options.sample} exists, and may hold verdicts: choose another name")
    if sample is not None and (sample.is_dir() or not sample.parent.is_dir()):
        raise RequestError(f"--sample: {options.sample} is no place for a file: choose a file in a folder that exists")
    done = run_detect(
        DetectOptions(
            root=root,
            probe=options.probe,
            name=options.name,
            threshold=share("--threshold", options.threshold),
            threshold_file=options.threshold_file and storage.normalise(options.threshold_file, "--threshold-file"),
            min_precision=share("--min-precision", options.min_precision),
            top=None if options.top is None else int(number("--top", options.top, int, 1, math.inf)),
            merge_gap_s=number("--merge-gap-s", options.merge_gap_s, float, 0, 86_400),
            replace=options.replace,
            where=options.where,
            validate=options.validate and storage.normalise(options.validate, "--validate"),
            sample=sample,
            label_format=options.label_format,
        ),
        terminal,
        verbose=options.verbose,
    )
    if destination is not None:
        from embedding.detecting.written_formats import write_detections

        try:
            n = write_detections(done.folder, to, destination, root)
        except OSError as error:
            raise storage_failure(error) from error
        terminal.say(f"  {plural(n, 'detection')} for {to}: {destination}")
    done.outcome.refuse_incomplete("detect")


def _check_export(given: list[str] | None) -> tuple[str, Path | None]:
    """Return the format and the folder of ``--to``; no folder if it is not given.

    Raises:
        RequestError: There is no such format, or the folder cannot be written.
    """
    if given is None:
        return "", None
    from embedding import storage
    from embedding.exporting.destination import refuse_other_content

    to, folder = given[0], storage.normalise(given[1], "--to")
    if to not in FORMATS:
        raise RequestError(f"--to: {to!r} is not one of {', '.join(FORMATS)}{did_you_mean(to, FORMATS)}")
    if storage.is_s3(folder):
        raise RequestError(f"--to: {folder} is no folder on this machine: choose a local folder, then copy it")
    refuse_other_content(Path(folder), to)
    return to, Path(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(lambda: detect(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
