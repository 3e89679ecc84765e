"""Commands as a user runs them, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """The end of a command, as a user sees it."""

    code: int
    stdout: str
    stderr: str


def environment(**more: str) -> dict[str, str]:
    """Return the environment of this process for a process that starts or finds a Ray, without tokens.

    A local Ray makes a token that other processes then need; on loopback, in a test, there is nothing to guard.
    """
    return os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"} | more


@contextmanager
def running(command: Sequence[object], env: dict[str, str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command while the block goes on, what it says on one pipe; it is killed at the end."""
    with subprocess.Popen(
        [*map(str, command)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_embed(*arguments: object, env: dict[str, str]) -> Outcome:
    """``python -m jobs.embed`` in a process of its own."""
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
