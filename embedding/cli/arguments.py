"""argparse, in this program's manner."""

import argparse
import math
import re
import sys
from collections.abc import Iterable
from itertools import takewhile
from typing import Any, NoReturn

from embedding.config import nearest
from embedding.errors import RequestError


class Parser(argparse.ArgumentParser):
    """Errors are one line, and name the nearest option.

    Raises:
        RequestError: instead of ending the process.
    """

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)

    def parse_known_args(  # type: ignore[override] — one signature for both of its own
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        words = sys.argv[1:] if args is None else list(args)
        # argparse would first say what is missing: the option that somebody has misspelt.
        for word in takewhile(lambda word: word != "--", words):
            option = word.partition("=")[0]
            if re.fullmatch(r"--\S+", option) and option not in self._option_string_actions:
                self.error(f"unknown option {option}{nearest(option, self._option_string_actions)}")
        return super().parse_known_args(words, namespace)


def output_parser(job: str, description: str, *, on_ray: bool = True) -> Parser:
    """The command line of a job over what jobs.embed wrote: OUTPUT, which vectors of it, and ``--verbose`` on Ray; the
    rest is its own."""
    parser = Parser(prog=f"python -m jobs.{job}", description=description, allow_abbrev=False)
    parser.add_argument("output", metavar="OUTPUT", help="directory or s3:// prefix that jobs.embed wrote")
    parser.add_argument(
        "--layer", metavar="COLUMN", help="vectors of an inner layer, of a run with --layers, in place of 'embedding'"
    )
    if on_ray:
        parser.add_argument("--verbose", action="store_true", help="show what Ray and avex log")
    return parser


def number(option: str, text: str, kind: type, least: float, most: float) -> float:
    """``text`` as an int or a float within these bounds.

    Raises:
        RequestError: it is none.
    """
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        limit = f" and at most {most:,}" if most < math.inf else ""
        raise RequestError(f"{option}: expected {what} of at least {least}{limit}, got {text!r}")
    return value
