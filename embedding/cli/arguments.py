"""Command lines: argparse with one-line errors, and arguments that several jobs share."""

import argparse
import math
import re
import sys
from collections.abc import Iterable
from itertools import takewhile
from typing import Any, NoReturn

from embedding.config import did_you_mean
from embedding.errors import RequestError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest option.

    Raises:
        RequestError: In the place of argparse's exit.
    """

    def error(self, message: str) -> NoReturn:
        """Raise the error in the place of an exit."""
        raise RequestError(message)

    def parse_known_args(  # type: ignore[override] — one signature for both of its own
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse the arguments; check the names of options first."""
        words = sys.argv[1:] if args is None else list(args)
        # argparse would report a misspelt required option as missing.
        for word in takewhile(lambda word: word != "--", words):
            option = word.partition("=")[0]
            if re.fullmatch(r"--\S+", option) and option not in self._option_string_actions:
                self.error(f"unknown option {option}{did_you_mean(option, self._option_string_actions)}")
        return super().parse_known_args(words, namespace)


def output_parser(job: str, description: str, *, on_ray: bool = True, has_layer: bool = True) -> Parser:
    """Return the parser of a job that reads an output of jobs.embed.

    Args:
        job: Name of the job.
        description: One sentence for ``--help``.
        on_ray: The job runs on Ray, and has ``--verbose``.
        has_layer: The job can read the vectors of an inner layer.
    """
    parser = Parser(prog=f"python -m jobs.{job}", description=description, allow_abbrev=False)
    parser.add_argument("output", metavar="OUTPUT", help="directory or s3:// prefix that jobs.embed wrote")
    if has_layer:
        parser.add_argument(
            "--layer",
            metavar="COLUMN",
            help="vectors of an inner layer, of a run with --layers, in place of 'embedding'",
        )
    if on_ray:
        parser.add_argument("--verbose", action="store_true", help="show what Ray and avex log")
    return parser


def add_where(parser: Parser) -> None:
    """Add the option that restricts a job to recordings."""
    parser.add_argument(
        "--where",
        metavar="SQL",
        help="only recordings for which this condition holds, over the columns of OUTPUT/recordings.parquet, as in "
        "\"hour(recorded_at) between 4 and 8 and site = 'A'\"",
    )


def folder_name(option: str, name: str) -> str:
    """Return ``name``, after a check that a folder can have it.

    Raises:
        RequestError: A folder cannot have the name, or would be hidden.
    """
    if not name or "/" in name or name.startswith("."):
        raise RequestError(f"{option}: {name!r} cannot be the name of a folder: choose another name")
    return name


def number(option: str, text: str, kind: type, least: float, most: float) -> float:
    """Return ``text`` as a number.

    Args:
        option: The option, for the message.
        text: The value on the command line.
        kind: int or float.
        least: Lowest value.
        most: Highest value.

    Raises:
        RequestError: The text is no such number.
    """
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        noun = "a whole number" if kind is int else "a number"
        limit = f" and at most {most:,}" if most < math.inf else ""
        raise RequestError(f"{option}: expected {noun} of at least {least}{limit}, got {text!r}")
    return value
