"""argparse, in this program's manner."""

import argparse
import re
from typing import NoReturn

from embedding.config import nearest
from embedding.errors import RequestError


class Parser(argparse.ArgumentParser):
    """Errors are one line, and name the nearest option.

    Raises:
        RequestError: instead of ending the process.
    """

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            message = f"unknown option {unknown[1]}{nearest(unknown[1], self._option_string_actions)}"
        raise RequestError(message)
