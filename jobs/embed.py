"""Audio archives to embeddings: ``python -m jobs.embed --input … --output …``.

Exit codes: 0 the run is complete within the failure budget; 1 it is not; 2 the request makes no sense.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedding.cli.arguments import Parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.config import EmbedConfig, make_config, option_name
from embedding.config_file import read_config_file
from embedding.errors import RunError
from embedding.stopping import end_process

if TYPE_CHECKING:
    from embedding.driver import MakeOnShard


def make_parser() -> Parser:
    """The command line, made from the fields of EmbedConfig. Values stay text: the config checks them."""
    parser = Parser(
        prog="python -m jobs.embed",
        description="Embed every recording of an archive with an avex model: one vector per window, to Parquet.",
        allow_abbrev=False,
    )
    for field in dataclasses.fields(EmbedConfig):
        help_text = field.metadata["help"].replace("%", "%%")
        default = field.metadata["default_text"] or field.default
        if field.default is dataclasses.MISSING:
            help_text += " (required)"
        elif field.default is not False:
            help_text += f" (default: {default})"
        if field.type is bool:
            parser.add_argument(option_name(field.name), action="store_true", default=None, help=help_text)
        else:
            several: dict[str, Any] = {"nargs": "+", "action": "extend"} if field.metadata["several"] else {}
            parser.add_argument(option_name(field.name), metavar=field.metadata["metavar"], help=help_text, **several)
    parser.add_argument("--config", metavar="FILE", help="the same options from YAML; the command line wins")
    return parser


def parse(arguments: Sequence[str] | None) -> EmbedConfig:
    """The checked request of a command line.

    Raises:
        RequestError: An option that does not exist, is missing, or does not take its value.
    """
    given = vars(make_parser().parse_args(arguments))
    config_file = given.pop("config")
    from_file = read_config_file(config_file) if config_file else {}
    return make_config(from_file | {name: value for name, value in given.items() if value is not None})


def embed(arguments: Sequence[str] | None) -> None:
    """Run the job.

    Raises:
        RequestError: The request makes no sense.
        RunError: The run could not go on, was stopped, or is not complete within the failure budget.
    """
    from embedding.driver import embed as run  # numpy, pyarrow and soundfile: not for --help
    from embedding.timeline import Timeline

    config, terminal = parse(arguments), Terminal.on_stdout()
    balances = run(config, terminal, Timeline.of_process(), *_scoring(config))
    if balances is None:  # a dry run
        return
    shortfalls = [balance.shortfall(config.max_failure_rate) for balance in balances]
    named = zip(config.model, shortfalls, strict=True)
    lines = [f"{model}: {text}" if len(balances) > 1 else text for model, text in named if text]
    if config.detect is not None:
        from embedding.detecting.while_embedding import detect_after

        detect_after(config, terminal)
    if lines:
        raise RunError("; ".join(lines))


def _scoring(config: EmbedConfig) -> "list[MakeOnShard]":
    """Return what makes the detections of ``--detect`` while shards are written; nothing without the option."""
    if config.detect is None:
        return []
    from embedding.detecting.while_embedding import scoring_of

    return [scoring_of(config)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit code says how it went."""
    return run_job(lambda: embed(arguments))


if __name__ == "__main__":
    end_process(main())
