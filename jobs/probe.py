"""Learn a linear probe from the vectors of an output and the labels of a manifest.

The command is ``python -m jobs.probe OUTPUT --labels FILE``.

Exit codes: 0 the probe is stored; 1 the probe could not be stored; 2 the request makes no sense.
"""

import math
from collections.abc import Sequence

from embedding.cli.arguments import Parser, folder_name, number, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.config import name_at_layer
from embedding.errors import RequestError
from embedding.stopping import end_process

LARGEST_SEED = 2**32 - 1


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser(
        "probe",
        "Learn the labels of a manifest from the vectors of an output, by logistic regression, and measure the probe "
        "on other recordings. The probe is stored in OUTPUT/probes/NAME/.",
        on_ray=False,
    )
    parser.add_argument(
        "--labels",
        metavar="LABELS",
        required=True,
        help="a manifest (.csv or .parquet with a column 'file' and a column of labels), or annotations: selection "
        "tables of Raven, label tracks of Audacity, tables of opensoundscape; a file, a folder or a glob pattern",
    )
    parser.add_argument(
        "--label-format",
        metavar="FORMAT",
        help="a format that crowsetta reads, for example textgrid (default: the format is recognised)",
    )
    parser.add_argument(
        "--column",
        help="the column of labels; in a manifest several labels are joined by ; (default: label, and in tables of "
        "Raven the column that has labels)",
    )
    parser.add_argument(
        "--name", help="name of the probe (default: the column of labels, followed by @LAYER for an inner layer)"
    )
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        help="column, for example 'site': recordings with the same value are all for training or all for the test",
    )
    parser.add_argument(
        "--test-share",
        metavar="X",
        default="0.2",
        help="share of recordings for the test, unless the manifest has a column 'split' (default: 0.2)",
    )
    parser.add_argument("--seed", metavar="N", default="0", help="seed of the random numbers (default: 0)")
    parser.add_argument(
        "--max-windows",
        metavar="N",
        default="200000",
        help="most windows for training, and for the test; a sample of more windows is used (default: 200000)",
    )
    parser.add_argument("--replace", action="store_true", help="replace a probe of the same name")
    return parser


def probe(arguments: Sequence[str] | None) -> None:
    """Learn, measure and store a probe, and print its metrics.

    Raises:
        RequestError: The request makes no sense.
        RunError: The probe could not be stored.
    """
    options = make_parser().parse_args(arguments)
    name = name_at_layer(options.column or "label", options.layer) if options.name is None else options.name
    if folder_name("--name", name).endswith(".npz"):
        raise RequestError(f"--name: {name!r} would be taken for a file of weights: choose another name")
    test_share = number("--test-share", options.test_share, float, 0, 1)
    if test_share in (0, 1):
        raise RequestError("--test-share: expected a share between 0 and 1")
    seed = number("--seed", options.seed, int, 0, LARGEST_SEED)
    max_windows = number("--max-windows", options.max_windows, int, 2, math.inf)
    from embedding import extras, storage  # here, because --help needs no numpy and pyarrow

    extras.load("sklearn", "report")
    from embedding.probing.probe_result import ProbeOptions
    from embedding.probing.summary import print_summary
    from embedding.probing.train import train_probe

    terminal = Terminal.on_stdout()
    result = train_probe(
        ProbeOptions(
            root=storage.normalise(options.output, "OUTPUT"),
            labels=storage.normalise(options.labels, "--labels"),
            column=options.column,
            group=options.group,
            layer=options.layer,
            name=name,
            test_share=test_share,
            seed=int(seed),
            max_windows=int(max_windows),
            replace=options.replace,
            label_format=options.label_format,
        ),
        terminal,
    )
    print_summary(result, terminal)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(lambda: probe(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
