"""Compare outputs and layers on labels: ``python -m jobs.evaluate OUTPUT --labels LABELS``.

Exit codes: 0 the figures are printed; 1 they could not be computed; 2 the request makes no sense.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedding.cli.arguments import Parser, number, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.config import did_you_mean
from embedding.errors import RequestError, storage_failure
from embedding.evaluating import CLASSIFIERS
from embedding.stopping import end_process

if TYPE_CHECKING:
    from embedding.evaluating.evaluate import Evaluation

LARGEST_SEED = 2**32 - 1


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser(
        "evaluate",
        "Measure how well vectors tell labels apart, on recordings kept apart: by a linear probe, by the nearest "
        "windows, and by clusters. Several outputs and layers are compared in one table.",
        on_ray=False,
        has_layer=False,
    )
    parser.add_argument("others", metavar="OUTPUT", nargs="*", help="further outputs")
    parser.add_argument("--layer", metavar="COLUMN", help="an inner layer, or all: each layer that is stored")
    parser.add_argument("--labels", metavar="LABELS", required=True, help="labels, as for jobs.probe")
    parser.add_argument("--label-format", metavar="FORMAT", help="a format that crowsetta reads")
    parser.add_argument("--column", help="the column of labels (default: label)")
    parser.add_argument("--group", metavar="COLUMN", help="recordings with the same value stay together")
    parser.add_argument("--test-share", metavar="X", default="0.2", help="share of the test (default: 0.2)")
    parser.add_argument("--seed", metavar="N", default="0", help="seed of the random numbers (default: 0)")
    parser.add_argument(
        "--max-windows", metavar="N", default="20000", help="most windows of each part (default: 20000)"
    )
    parser.add_argument("--k", metavar="K", default="5", help="precision among the K nearest windows (default: 5)")
    parser.add_argument(
        "--classifier",
        metavar="NAME",
        nargs="+",
        default=["logistic"],
        help=f"classifiers to learn: {', '.join(CLASSIFIERS)} (default: logistic)",
    )
    parser.add_argument("--csv", metavar="FILE", help="write the table to a CSV file on this machine, too")
    return parser


def evaluate(arguments: Sequence[str] | None) -> None:
    """Evaluate outputs and layers, and print a table.

    Raises:
        RequestError: The request makes no sense.
        RunError: The storage failed.
    """
    options = make_parser().parse_args(arguments)
    for name in options.classifier:
        if name not in CLASSIFIERS:
            raise RequestError(
                f"--classifier: {name!r} is not one of {', '.join(CLASSIFIERS)}{did_you_mean(name, CLASSIFIERS)}"
            )
    test_share = number("--test-share", options.test_share, float, 0, 1)
    if test_share in (0, 1):
        raise RequestError("--test-share: expected a share between 0 and 1")
    seed = int(number("--seed", options.seed, int, 0, LARGEST_SEED))
    max_windows = int(number("--max-windows", options.max_windows, int, 2, math.inf))
    k = int(number("--k", options.k, int, 1, math.inf))
    from embedding import extras, storage  # here, because --help needs no numpy and pyarrow

    extras.load("sklearn", "report")
    from embedding.evaluating.evaluate import evaluate as run_evaluate
    from embedding.evaluating.evaluate import layers_of
    from embedding.probing.probe_result import ProbeOptions

    if options.csv is not None and (Path(options.csv).is_dir() or not Path(options.csv).absolute().parent.is_dir()):
        raise RequestError(f"--csv: {options.csv} is no place for a file: choose a file in a folder that exists")
    terminal = Terminal.on_stdout()
    labels = storage.normalise(options.labels, "--labels")
    found = []
    for given in (options.output, *options.others):
        root = storage.normalise(given, "OUTPUT")
        for layer in layers_of(root, options.layer):
            terminal.say(f"{root}{f' · {layer}' if layer else ''}")
            probe = ProbeOptions(
                root=root,
                labels=labels,
                column=options.column,
                group=options.group,
                layer=layer,
                name="",
                test_share=test_share,
                seed=seed,
                max_windows=max_windows,
                label_format=options.label_format,
            )
            found.append(run_evaluate(probe, tuple(dict.fromkeys(options.classifier)), k, terminal))
    _print_table(found, terminal)
    if options.csv is not None:
        try:
            _write_csv(found, Path(options.csv))
        except OSError as error:
            raise storage_failure(error) from error
        terminal.say(f"  {options.csv}")


def _print_table(found: "list[Evaluation]", terminal: Terminal) -> None:
    """Print a row for each figure and a column for each output and layer, the best in front."""
    names = list(found[0].figures)
    best = sorted(found, key=lambda each: -each.figures[names[0]].value)
    terminal.say("")
    for rank, each in enumerate(best, start=1):
        layer = f" · {each.layer}" if each.layer else ""
        terminal.say(f"[{rank}] {each.model}{layer} · {each.root}")
    width = max(map(len, names))
    terminal.say(f"{'':<{width}}" + "".join(f"{f'[{rank}]':>24}" for rank in range(1, len(best) + 1)))
    for name in names:
        terminal.say(f"{name:<{width}}" + "".join(f"{each.figures[name]!s:>24}" for each in best))
    terminal.say("in brackets: 95 % of the bootstrap over recordings")


def _write_csv(found: "list[Evaluation]", path: Path) -> None:
    rows = [each.describe() for each in found]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(lambda: evaluate(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
