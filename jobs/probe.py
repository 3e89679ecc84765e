"""A linear probe on the vectors of an output, with a manifest's labels: ``python -m jobs.probe OUTPUT --labels FILE``.

Exit codes: 0 it is stored; 1 it could not be; 2 the request makes no sense.
"""

import math
from collections.abc import Sequence

from embedding.cli.arguments import Parser, number, output_parser
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
        "Learn a manifest's labels from the vectors of an output, by logistic regression, and measure how well it went "
        "on recordings that it did not learn from. The probe is stored in OUTPUT/probes/NAME/.",
        on_ray=False,
    )
    parser.add_argument(
        "--labels", metavar="MANIFEST", required=True, help=".csv or .parquet with a column 'file' and one of labels"
    )
    parser.add_argument("--column", default="label", help="that column; several labels joined by ; (default: label)")
    parser.add_argument("--name", help="of the probe (default: that of the column of labels, with @LAYER behind it)")
    parser.add_argument("--group", metavar="COLUMN", help="recordings that agree in it stay on one side, say 'site'")
    parser.add_argument(
        "--test-share", metavar="X", default="0.2", help="of recordings, unless a column 'split' says it (default: 0.2)"
    )
    parser.add_argument("--seed", metavar="N", default="0", help="of what is drawn (default: 0)")
    parser.add_argument(
        "--max-windows", metavar="N", default="200000", help="on each side; of more a sample is used (default: 200000)"
    )
    parser.add_argument("--replace", action="store_true", help="replace a probe of the same name")
    return parser


def probe(arguments: Sequence[str] | None) -> None:
    """Learn, measure, store, and show how good it is.

    Raises:
        RequestError: the request makes no sense.
        RunError: it could not be stored.
    """
    given = make_parser().parse_args(arguments)
    name = name_at_layer(given.column, given.layer) if given.name is None else given.name
    if not name or "/" in name or name.startswith("."):
        raise RequestError(f"--name: {name!r} cannot be the name of a folder: choose another one")
    test_share = number("--test-share", given.test_share, float, 0, 1)
    if test_share in (0, 1):
        raise RequestError("--test-share: expected a share between 0 and 1")
    seed = number("--seed", given.seed, int, 0, LARGEST_SEED)
    max_windows = number("--max-windows", given.max_windows, int, 2, math.inf)
    from embedding import extras, storage  # numpy and pyarrow: not for --help

    extras.load("sklearn", "report")
    from embedding.probing.probe_result import Wanted
    from embedding.probing.summary import tell
    from embedding.probing.train import probe as run

    terminal = Terminal.on_stdout()
    result = run(
        Wanted(
            root=storage.normalise(given.output, "OUTPUT"),
            labels=storage.normalise(given.labels, "--labels"),
            column=given.column,
            group=given.group,
            layer=given.layer,
            name=name,
            test_share=test_share,
            seed=int(seed),
            max_windows=int(max_windows),
            replace=given.replace,
        ),
        terminal,
    )
    tell(result, terminal)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit code says how it went."""
    return run_job(lambda: probe(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
