"""jobs.embed on simulated GPUs: they run out of memory, fail, or their encoder dies with two open batches."""

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
    """The address of a Ray with two GPUs."""
    with ray_of(2, n_gpus=2) as address:
        yield address


def embed_on_simulated_gpus(
    address: str, archive: Path, output: Path, checkpoint: Path, faults: list[Any], *options: object
) -> Outcome:
    arguments = ["--input", archive, "--output", output, "--checkpoint", checkpoint, *OPTIONS, *options]
    env = environment(RAY_ADDRESS=address, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]))
    command = [sys.executable, ROOT / "benchmarks/simulated_gpu.py", *map(str, arguments)]
    env[FAULTS] = json.dumps(faults)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def read_vectors(output: Path) -> tuple[list[tuple[str, int]], np.ndarray]:
    """Return the keys of an output in order, and their vectors."""
    table = pq.read_table(output / "embeddings").sort_by([("file", "ascending"), ("window_index", "ascending")])
    keys = list(zip(table["file"].to_pylist(), table["window_index"].to_pylist(), strict=True))
    return keys, np.stack(table["embedding"].to_numpy())


def assert_same(output: Path, other: Path) -> None:
    keys, vectors = read_vectors(output)
    other_keys, other_vectors = read_vectors(other)
    assert keys == other_keys
    assert len(set(keys)) == N_WINDOWS
    errors = np.linalg.norm(vectors - other_vectors, axis=1) / np.linalg.norm(other_vectors, axis=1)
    assert errors.max() <= 1e-5


def read_last_run(output: Path) -> dict[str, Any]:
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


@pytest.mark.long  # two minutes; test_encoder_on_gpu.py, test_encode_stage.py and test_broken_gpus.py test the parts
def test_gpu_faults_change_no_vector(
    two_gpus: str, archive: Path, on_cpus: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Memory runs out in two ways, the driver fails once, and the first of two GPUs fails every time."""
    faults = [
        [None, "CUDA out of memory. Tried to allocate 2.00 GiB.", 1],
        [None, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 1],
        [None, ILLEGAL, 1],
        [FIRST, ECC, 99],
    ]
    # One encoder: a second encoder might finish the work before the first GPU fails often enough.
    done = embed_on_simulated_gpus(two_gpus, archive, tmp_path, checkpoints[EFFICIENTNET], faults, "--actors", 1)
    assert done.code == 0, done.stdout + done.stderr
    assert f"failed {GPU_FAULTS} times and is no longer used in this run: {ECC}" in done.stdout
    assert_same(tmp_path, on_cpus)
    run = read_last_run(tmp_path)
    assert run["done_again"]["encoders"] >= 1
    assert run["busy_s"]["warm_up"] > 0


@pytest.mark.long  # a job of a minute; the faults of GPUs above include the death of an encoder
def test_no_window_is_lost_when_an_encoder_dies_with_two_open_batches(
    two_gpus: str, archive: Path, on_cpus: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    done = embed_on_simulated_gpus(
        two_gpus, archive, tmp_path, checkpoints[EFFICIENTNET], [[None, KILL, 1]], "--actors", 1
    )
    assert done.code == 0, done.stdout + done.stderr
    assert_same(tmp_path, on_cpus)
    assert read_last_run(tmp_path)["done_again"]["encoders"] == 1


@pytest.mark.long  # the encoder loads five times
def test_the_error_names_the_batch_that_kills_encoders(
    two_gpus: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for seed in range(6):
        write_audio(tmp_path / "in" / f"tone-{seed}.wav", tone(30.0, 16_000, seed=seed), 16_000)
    # The first recording by name, exactly as long as a batch, so its windows are a separate batch.
    write_audio(tmp_path / "in" / "deadly.wav", np.full(16 * 16_000, DEADLY, np.float32), 16_000)
    faults = [[None, KILL_AT_DEADLY, 99]]
    done = embed_on_simulated_gpus(
        two_gpus, tmp_path / "in", tmp_path / "out", checkpoints[EFFICIENTNET], faults, "--actors", 1
    )
    assert done.code == 1, done.stdout + done.stderr
    assert f"died {ENCODE_TRIES} times over the windows from window 0 of {tmp_path / 'in' / 'deadly.wav'} on" in (
        done.stdout + done.stderr
    )


@pytest.mark.long  # the encoder loads three times
def test_a_run_ends_when_no_gpu_is_left(
    two_gpus: str, archive: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    done = embed_on_simulated_gpus(
        two_gpus, archive, tmp_path, checkpoints[EFFICIENTNET], [[None, ECC, 99]], "--actors", 1
    )
    assert done.code == 1, done.stdout + done.stderr
    assert "no GPU is left to encode on: GPU " in done.stderr
    assert "Traceback" not in done.stderr
    assert embed_on_simulated_gpus(two_gpus, archive, tmp_path, checkpoints[EFFICIENTNET], []).code == 0
    assert len(set(read_vectors(tmp_path)[0])) == N_WINDOWS
