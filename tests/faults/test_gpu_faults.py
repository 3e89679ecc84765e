"""The whole job on simulated GPUs that run out of memory, fail, or die with two batches in them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding.ray_runtime.progress_actor import ENCODE_TRIES, GPU_FAULTS
from local_ray import ray_of
from simulated_gpu import DEADLY, FAULTS, FIRST, KILL, KILL_AT_DEADLY
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, Outcome, environment
from tests.support.models import EFFICIENTNET

OPTIONS = ("--model", EFFICIENTNET, "--window-s", 1, "--batch-size", 16)
ILLEGAL = "CUDA error: an illegal memory access was encountered"
ECC = "CUDA error: uncorrectable ECC error encountered"
N_WINDOWS = 180


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(6):
        write_audio(folder / f"{seed}.wav", tone(30.0, 16_000, seed=seed), 16_000)
    return folder


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[str]:
    """The address of a Ray with them."""
    with ray_of(2, n_gpus=2) as address:
        yield address


def on_simulated(
    address: str, archive: Path, output: Path, checkpoint: Path, faults: list[Any], *options: object
) -> Outcome:
    arguments = ["--input", archive, "--output", output, "--checkpoint", checkpoint, *OPTIONS, *options]
    env = environment(RAY_ADDRESS=address, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]))
    command = [sys.executable, ROOT / "benchmarks/simulated_gpu.py", *map(str, arguments)]
    env[FAULTS] = json.dumps(faults)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def rows(output: Path) -> tuple[list[tuple[str, int]], np.ndarray]:
    """Keys in order, and their vectors."""
    table = pq.read_table(output / "embeddings").sort_by([("file", "ascending"), ("window_index", "ascending")])
    keys = list(zip(table["file"].to_pylist(), table["window_index"].to_pylist(), strict=True))
    return keys, np.stack(table["embedding"].to_numpy())


def assert_same(output: Path, other: Path) -> None:
    keys, vectors = rows(output)
    other_keys, other_vectors = rows(other)
    assert keys == other_keys
    assert len(set(keys)) == N_WINDOWS
    errors = np.linalg.norm(vectors - other_vectors, axis=1) / np.linalg.norm(other_vectors, axis=1)
    assert errors.max() <= 1e-5


def last_run(output: Path) -> dict[str, Any]:
    report = json.loads((output / "report.json").read_text())
    assert report["recordings"]["balanced"]
    return report["runs"][-1]


@pytest.fixture(scope="module")
def on_cpus(
    archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
    embed: Callable[..., Outcome],
    checkpoints: dict[str, Path],
) -> Path:
    """The vectors of the archive from CPUs."""
    output = tmp_path_factory.mktemp("cpus")
    done = embed("--input", archive, "--output", output, "--checkpoint", checkpoints[EFFICIENTNET], *OPTIONS)
    assert done.code == 0, done.stderr
    return output


def test_faults_of_gpus_cost_time_and_nothing_else(
    two_gpus: str, archive: Path, on_cpus: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Memory runs out in two ways, the driver fails once, and the first of two GPUs fails every time."""
    faults = [
        [None, "CUDA out of memory. Tried to allocate 2.00 GiB.", 1],
        [None, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 1],
        [None, ILLEGAL, 1],
        [FIRST, ECC, 99],
    ]
    # One encoder: of two the other one might do all the work before this one fails often enough.
    done = on_simulated(two_gpus, archive, tmp_path, checkpoints[EFFICIENTNET], faults, "--actors", 1)
    assert done.code == 0, done.stdout + done.stderr
    assert f"failed {GPU_FAULTS} times and is no longer used in this run: {ECC}" in done.stdout
    assert_same(tmp_path, on_cpus)
    run = last_run(tmp_path)
    assert run["done_again"]["encoders"] >= 1
    assert run["busy_s"]["warm_up"] > 0


def test_an_encoder_that_dies_with_two_batches_open_loses_neither(
    two_gpus: str, archive: Path, on_cpus: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    done = on_simulated(two_gpus, archive, tmp_path, checkpoints[EFFICIENTNET], [[None, KILL, 1]], "--actors", 1)
    assert done.code == 0, done.stdout + done.stderr
    assert_same(tmp_path, on_cpus)
    assert last_run(tmp_path)["done_again"]["encoders"] == 1


@pytest.mark.long  # the encoder loads five times
def test_of_two_batches_in_an_encoder_the_deadly_one_is_named(
    two_gpus: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for seed in range(6):
        write_audio(tmp_path / "in" / f"tone-{seed}.wav", tone(30.0, 16_000, seed=seed), 16_000)
    # The first by name, and as long as a batch: its windows are a batch of their own.
    write_audio(tmp_path / "in" / "deadly.wav", np.full(16 * 16_000, DEADLY, np.float32), 16_000)
    faults = [[None, KILL_AT_DEADLY, 99]]
    done = on_simulated(two_gpus, tmp_path / "in", tmp_path / "out", checkpoints[EFFICIENTNET], faults, "--actors", 1)
    assert done.code == 1, done.stdout + done.stderr
    assert f"died {ENCODE_TRIES} times over the windows from window 0 of {tmp_path / 'in' / 'deadly.wav'} on" in (
        done.stdout + done.stderr
    )


@pytest.mark.long  # the encoder loads three times
def test_a_run_whose_gpus_are_all_given_up_ends_and_says_so(
    two_gpus: str, archive: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    done = on_simulated(two_gpus, archive, tmp_path, checkpoints[EFFICIENTNET], [[None, ECC, 99]], "--actors", 1)
    assert done.code == 1, done.stdout + done.stderr
    assert "no GPU is left to encode on: GPU " in done.stderr
    assert "Traceback" not in done.stderr
    assert on_simulated(two_gpus, archive, tmp_path, checkpoints[EFFICIENTNET], []).code == 0
    assert len(set(rows(tmp_path)[0])) == N_WINDOWS
