"""Too few open files or processes: one line before Ray starts, and soft limits that are raised."""

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


def said_with(kind: str, soft: int, hard: int) -> str:
    """The refusal under this limit, or the soft limit that it became."""
    command = [sys.executable, "-c", PROGRAM, kind, str(soft), str(hard)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["RLIMIT_NOFILE", "RLIMIT_NPROC"])
def test_a_soft_limit_is_raised(kind: str) -> None:
    hard = min(8_000, *(value for value in resource.getrlimit(getattr(resource, kind)) if value > 0))
    assert said_with(kind, 100, hard) == str(hard)


def test_too_few_processes_are_refused_with_the_way_out() -> None:
    said = said_with("RLIMIT_NPROC", 60, 60)
    assert said.startswith("this user may have 60 processes and threads, of which ")
    assert "`ulimit -u 65536`" in said


def test_too_few_files_are_one_line(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav", tone(1.0, 16_000), 16_000)
    command = [sys.executable, "-m", "jobs.embed", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    command += ["--model", EFFICIENTNET, "--checkpoint", "random"]
    done = subprocess.run(
        [str(each) for each in command],
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
