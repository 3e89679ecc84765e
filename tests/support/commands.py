"""Commands as a user runs them, each in a separate process."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str


def environment(**more: str) -> dict[str, str]:
    """Return the environment of this process for a command that starts or finds a Ray, without token authentication.

    A local Ray would create a token that all other processes need. In tests on loopback a token protects nothing.

    Args:
        more: Further variables.
    """
    return os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"} | more


@contextmanager
def running(command: Sequence[object], env: dict[str, str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command during the block, with stdout and stderr in one pipe; kill it after the block."""
    with subprocess.Popen(
        [*map(str, command)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_job_here(main: Callable[[Sequence[str]], int], *arguments: object) -> Outcome:
    """Run the ``main`` of a job in this process, which takes less time than a process of its own."""
    stdout, stderr = StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr), warnings.catch_warnings():
        warnings.simplefilter("default")  # pytest makes errors of them
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            code = main([*map(str, arguments)])
        except SystemExit as exit_:  # of argparse
            code = int(exit_.code or 0)
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def run_embed(*arguments: object, env: dict[str, str]) -> Outcome:
    """Run ``python -m jobs.embed`` in a separate process."""
    command = [sys.executable, "-m", "jobs.embed", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
