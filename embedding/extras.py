"""The extras of the distribution: packages that only some jobs need."""

import importlib
import json
import shlex
import sys
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType
from urllib.parse import unquote, urlsplit

from embedding.errors import RequestError

_DISTRIBUTION = "avex-batch"


def load(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: Dotted name of the module.
        extra: The extra of this distribution that installs the package.

    Raises:
        RequestError: The package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise RequestError(f"{package} is not installed: {install_command(extra)}") from error


def refuse_missing(packages: tuple[str, ...], extra: str, option: str) -> None:
    """Refuse an option whose packages are not installed, before its work begins.

    Args:
        packages: Packages that the option needs.
        extra: The extra of this distribution that installs them.
        option: Name of the option, for the message.

    Raises:
        RequestError: A package is missing.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        names = ", ".join(missing)
        raise RequestError(f"{option} needs packages that are not installed ({names}): {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return the command that installs an extra into this environment, from a checkout or from an index."""
    origin = json.loads(metadata.distribution(_DISTRIBUTION).read_text("direct_url.json") or "{}")
    is_checkout = origin.get("dir_info", {}).get("editable", False)
    folder = unquote(urlsplit(origin["url"]).path) if is_checkout else ""
    target = f"-e {shlex.quote(f'{folder}[{extra}]')}" if is_checkout else f"'{_DISTRIBUTION}[{extra}]'"
    return f"{shlex.quote(sys.executable)} -m pip install {target}"
