"""Runs of jobs.embed on a local cluster. Nodes only claim to have GPUs, so the encoder computes on CPUs."""

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.audio import tone, write_audio
from tests.support.clusters import LocalCluster
from tests.support.commands import ROOT, environment, running
from tests.support.models import EFFICIENTNET

N_WINDOWS = 36  # of the archive
ON_GPUS = ("--checkpoint", "random", "--device", "cuda")

# The job without changes, except that the encoder computes on CPUs, and that lines about waiting come soon.
_PROGRAM = """
import dataclasses, sys
import embedding.cli.progress_display, embedding.driver
from jobs.embed import main

plan = embedding.driver.plan_placement
embedding.driver.plan_placement = lambda *arguments, **more: dataclasses.replace(plan(*arguments, **more), device="cpu")
embedding.cli.progress_display.QUIET_S = 3.0
sys.exit(main())
"""


def write_archive(folder: Path) -> Path:
    """Write six recordings of 30 s, and return their folder."""
    for seed in range(6):
        write_audio(folder / f"{seed}.wav", tone(30.0, 16_000, seed=seed), 16_000)
    return folder


def run_on_cluster(
    cluster: LocalCluster, archive: Path | str, output: Path, *options: object
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run the job with windows of 5 s during the block.

    Args:
        cluster: The cluster.
        archive: The input; for a text the working directory is the folder of the output.
        output: The output.
        options: Further options.
    """
    arguments = ["--input", archive, "--output", output, "--model", EFFICIENTNET, "--window-s", 5, *options]
    env = environment(RAY_ADDRESS=cluster.address, PYTHONPATH=str(ROOT))
    cwd = ROOT if isinstance(archive, Path) else output.parent
    return running([sys.executable, "-c", _PROGRAM, *arguments], env, cwd=cwd)


def read_until(process: subprocess.Popen[str], *texts: str) -> str:
    """Return the output of a command up to a line that contains all of ``texts``."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if all(text in line for text in texts):
            return printed
    pytest.fail(f"no line contains {texts}:\n{printed}")


def assert_complete(process: subprocess.Popen[str], output: Path) -> None:
    """Wait for the end of a job, and check that all windows are stored."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert pq.read_table(output / "embeddings").num_rows == N_WINDOWS
