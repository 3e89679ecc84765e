"""The jobs, as commands: ``python -m jobs.embed``, or ``avex-batch embed`` where the package is installed."""

import sys
from importlib.util import find_spec

if missing := [name for name in ("numpy", "pyarrow", "ray", "rich") if find_spec(name) is None]:
    sys.stderr.write(
        f"avex-batch: {sys.executable} has no package {missing[0]!r}: use the environment that avex-batch is installed "
        "in (in a checkout: `make setup`, then .venv/bin/python)\n"
    )
    sys.exit(2)
