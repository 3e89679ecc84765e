"""Limits on open files and processes: soft limits are raised, and limits that are too low are refused."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, environment
from tests.support.models import EFFICIENTNET

PROGRAM = """
import os, resource, sys
from embedding.errors import RequestError
from embedding.ray_runtime.system_limits import raise_limits

kind, soft, hard = getattr(resource, sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(kind, (soft, hard))
if os.getuid() == 0:
    os.setuid(65534)
try:
    raise_limits()
except RequestError as error:
    print(error)
else:
    print(resource.getrlimit(kind)[0])
"""


def run_with_limit(kind: str, soft: int, hard: int) -> str:
    """Return the refusal under this limit, or the soft limit after it was raised."""
    command = [sys.executable, "-c", PROGRAM, kind, str(soft), str(hard)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["RLIMIT_NOFILE", "RLIMIT_NPROC"])
def test_a_soft_limit_is_raised(kind: str) -> None:
    hard = min(8_000, *(value for value in resource.getrlimit(getattr(resource, kind)) if value > 0))
    assert run_with_limit(kind, 100, hard) == str(hard)


def test_a_low_limit_on_processes_is_refused_with_advice() -> None:
    message = run_with_limit("RLIMIT_NPROC", 60, 60)
    assert message.startswith("this user may have 60 processes and threads, of which ")
    assert "`ulimit -u 65536`" in message


def test_a_low_limit_on_files_is_refused_with_one_line(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav", tone(1.0, 16_000), 16_000)
    command = [sys.executable, "-m", "jobs.embed", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    command += ["--model", EFFICIENTNET, "--checkpoint", "random"]
    done = subprocess.run(
        [str(argument) for argument in command],
        cwd=ROOT,
        env={name: value for name, value in environment().items() if name != "RAY_ADDRESS"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "avex-batch: this process may open 64 files, and Ray needs 256: raise the limit (`ulimit -n 65536`, or "
        "LimitNOFILE= of a service)\n"
    )
