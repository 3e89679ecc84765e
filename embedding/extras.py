"""Packages that only some jobs need."""

import importlib
from types import ModuleType

from embedding.errors import RequestError


def load(module: str, extra: str) -> ModuleType:
    """A module of a package that ``extra`` of this one brings.

    Raises:
        RequestError: it is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise RequestError(f"{package} is not installed: pip install 'avex-batch[{extra}]'") from error
