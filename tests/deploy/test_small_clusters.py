"""Work on clusters whose nodes are small, late or too few; and the paths that nodes need.

No GPU is at hand: nodes are said to have some, the plan asks for them, and the encoder then computes on the CPU.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.audio import tone, write_audio
from tests.support.clusters import Nodes, cluster_of
from tests.support.commands import ROOT, environment, running
from tests.support.models import EFFICIENTNET

# The job with everything as it is, but for the device that the encoder is told.
ON_CPUS = """
import dataclasses, sys
import embedding.cli.progress_display, embedding.driver
from jobs.embed import main

plan = embedding.driver.plan_placement
embedding.driver.plan_placement = lambda *arguments, **more: dataclasses.replace(plan(*arguments, **more), device="cpu")
embedding.cli.progress_display.QUIET_S = 3.0
sys.exit(main())
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(6):
        write_audio(folder / f"{seed}.wav", tone(30.0, 16_000, seed=seed), 16_000)
    return folder


def job(
    nodes: Nodes, archive: Path | str, output: Path, *options: object
) -> AbstractContextManager[subprocess.Popen[str]]:
    arguments = ["--input", archive, "--output", output, "--model", EFFICIENTNET, "--window-s", 5, *options]
    env = environment(RAY_ADDRESS=nodes.address, PYTHONPATH=str(ROOT))
    cwd = ROOT if isinstance(archive, Path) else output.parent
    return running([sys.executable, "-c", ON_CPUS, *arguments], env, cwd=cwd)


def until(process: subprocess.Popen[str], *texts: str) -> str:
    """Return the output up to a line with all of ``texts``."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if all(text in line for text in texts):
            return said
    pytest.fail(f"it never said {texts}:\n{said}")


def assert_done(process: subprocess.Popen[str], output: Path) -> None:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert pq.read_table(output / "embeddings").num_rows == 36


GPUS = ("--checkpoint", "random", "--device", "cuda")


@pytest.mark.long  # for the sake of ten minutes
def test_gpus_that_come_late_and_too_few_are_waited_for_and_used(archive: Path, tmp_path: Path) -> None:
    with cluster_of(1) as nodes, job(nodes, archive, tmp_path / "out", *GPUS, "--actors", 2) as process:
        until(process, "not all workers fit yet")
        until(process, "no window for", "0 of 2 encoders have loaded; Ray has 1 CPUs and 0 GPUs on 1 node")
        nodes.add(num_cpus=1, num_gpus=1)
        assert_done(process, tmp_path / "out")


@pytest.mark.long
def test_several_encoders_share_a_gpu(archive: Path, tmp_path: Path) -> None:
    with cluster_of() as nodes:
        nodes.add(num_cpus=1, num_gpus=1)
        with job(nodes, archive, tmp_path / "out", *GPUS, "--gpus-per-actor", 0.5) as process:
            until(process, "2 actors on cpu")
            assert_done(process, tmp_path / "out")


def test_cluster_scaled_to_zero_is_told_how_to_begin(archive: Path, tmp_path: Path) -> None:
    with cluster_of() as nodes, job(nodes, archive, tmp_path / "out", "--checkpoint", "random") as process:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "avex-batch: --actors: this cluster has no worker yet" in said


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nodes'."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def elsewhere(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Nodes that see another folder than the driver where both say /proc/self/cwd."""
    with cluster_of(1, cwd=tmp_path_factory.mktemp("nodes"), env={"XDG_CACHE_HOME": str(cache)}) as nodes:
        yield nodes


def test_recordings_that_only_the_driver_sees_are_refused_before_work_starts(elsewhere: Nodes, tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(5.0, 16_000), 16_000)
    with job(elsewhere, "/proc/self/cwd/a.wav", tmp_path / "out", "--checkpoint", "random") as process:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 2, said
        assert "has no such recording as /proc/self/cwd/a.wav" in said
        assert "every node has mounted" in said


@pytest.mark.long  # likewise: tests/unit/encoding/test_checkpoints.py has how they are kept
def test_weights_that_only_the_driver_has_reach_the_nodes(
    elsewhere: Nodes, cache: Path, archive: Path, tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    (tmp_path / "w.safetensors").symlink_to(checkpoints[EFFICIENTNET])
    output = tmp_path / "out"
    with job(elsewhere, str(archive), output, "--checkpoint", "/proc/self/cwd/w.safetensors") as process:
        assert_done(process, output)
    (kept,) = cache.glob("avex-batch/*.safetensors")
    assert kept.read_bytes() == checkpoints[EFFICIENTNET].read_bytes()
