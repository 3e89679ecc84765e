"""Disks that fail with EIO, ESTALE or ETIMEDOUT: an error of one line or a failure row ``io``, never a traceback."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from local_ray import ray_of
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, Outcome, environment
from tests.support.models import EFFICIENTNET
from tests.support.pages import write_finished_output
from tests.support.probing import species_vectors, write_species_labels

ERRNOS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
N_RECORDINGS = 6


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``faulty_disk.c``, compiled to a library to preload."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the simulation of a failing disk needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "faulty_disk.so"
    source = ROOT / "tests" / "support" / "faulty_disk.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for seed in range(N_RECORDINGS):
        write_audio(folder / f"{seed}.wav", tone(2.0, 16_000, seed=seed), 16_000)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished output without failures."""
    recordings = {file: np.asarray(vectors) for file, vectors in species_vectors().items()}
    write_finished_output(tmp_path / "out", recordings, [])
    return tmp_path / "out"


def failing_environment(shim: Path, call: str, path: str, number: int) -> dict[str, str]:
    """Return the environment of a process in which ``call`` fails for every file with ``path`` in its name."""
    return {"LD_PRELOAD": str(shim), "FAULT_CALL": call, "FAULT_PATH": path, "FAULT_ERRNO": str(number)}


def run_job(job: str, *arguments: object, env: dict[str, str]) -> Outcome:
    command = [sys.executable, "-m", f"jobs.{job}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=300, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def assert_one_line(done: Outcome, number: int) -> None:
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert done.code in (1, 2)
    assert lines[0].startswith("avex-batch: ")
    assert os.strerror(number) in lines[0]


def embed_options(archive: Path, output: Path) -> tuple[object, ...]:
    model = ("--model", EFFICIENTNET, "--checkpoint", "random", "--window-s", 1, "--actors", 1)
    return ("--input", archive, "--output", output, *model)


@pytest.mark.parametrize(
    ("call", "path", "number"),
    [
        ("list", "/given", errno.EIO),  # the folder of recordings
        ("write", "/claim.json", errno.EIO),
        ("fsync", "/claim.json", errno.ESTALE),
        ("open", "/claim.json", errno.ETIMEDOUT),
        ("rename", "/run.json", errno.ESTALE),
        ("fsync", "/out/.tmp-", errno.EIO),
    ],
)
def test_a_disk_fault_at_the_start_of_a_run_is_one_line(
    shim: Path, archive: Path, tmp_path: Path, *, call: str, path: str, number: int
) -> None:
    (tmp_path / "given").symlink_to(archive)
    options = embed_options(tmp_path / "given", tmp_path / "out")
    assert_one_line(run_job("embed", *options, env=failing_environment(shim, call, path, number)), number)
    names = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in names if name.startswith((".tmp-", "claim.json"))]


READERS = {
    "report": (),
    "pool": (),
    "search": ("--like", next(iter(species_vectors())), "--at", "5"),
    "export": ("--to", "npy", "{}/npy"),
    "probe": ("--labels", "{}/labels.csv"),
    "embed": (),
}


@pytest.mark.parametrize(
    ("job", "call", "number"),
    [
        ("report", "read", errno.EIO),
        ("pool", "open", errno.ESTALE),
        ("search", "stat", errno.ETIMEDOUT),
        ("export", "read", errno.ESTALE),
        ("probe", "open", errno.ETIMEDOUT),
        ("embed", "read", errno.EIO),
    ],
)
def test_unreadable_shards_are_one_line(
    shim: Path, archive: Path, output: Path, tmp_path: Path, *, job: str, call: str, number: int
) -> None:
    write_species_labels(tmp_path / "labels.csv")
    options = [option.format(tmp_path) for option in READERS[job]]
    arguments = embed_options(archive, output) if job == "embed" else (output, *options)
    assert_one_line(run_job(job, *arguments, env=failing_environment(shim, call, "/out/embeddings/s", number)), number)
    assert not (tmp_path / "npy").exists()


@pytest.mark.parametrize(
    ("job", "arguments", "path", "call", "number"),
    [
        ("probe", ("--labels", "{}/labels.csv"), "/probes/", "write", errno.EIO),
        ("export", ("--to", "npy", "{}/npy"), "npy/new/", "open", errno.ETIMEDOUT),
        ("report", ("--html", "{}/pages/page.html"), "/pages/.tmp-", "fsync", errno.ESTALE),
    ],
)
def test_unwritable_results_are_one_line(
    shim: Path, output: Path, tmp_path: Path, *, job: str, arguments: tuple[str, ...], path: str, call: str, number: int
) -> None:
    write_species_labels(tmp_path / "labels.csv")
    options = [option.format(tmp_path) for option in arguments]
    assert_one_line(run_job(job, output, *options, env=failing_environment(shim, call, path, number)), number)
    names = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in names if name.startswith(".tmp-") or "page.html" in name]


@pytest.mark.long
@pytest.mark.parametrize(("call", "number"), list(zip(("read", "open", "stat"), ERRNOS, strict=True)))
def test_an_unreadable_recording_is_a_failure_row(
    shim: Path, archive: Path, tmp_path: Path, call: str, number: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in failing_environment(shim, call, "/3.wav", number).items():
            patched.setenv(name, value)
        with ray_of(2) as address:
            options = (*embed_options(archive, tmp_path / "out"), "--max-failure-rate", 0.5)
            done = run_job("embed", *options, env={"RAY_ADDRESS": address})
    assert (done.code, done.stderr) == (0, "")
    failures = pq.read_table(tmp_path / "out" / "failures").to_pylist()
    assert [(Path(row["file"]).name, row["kind"]) for row in failures] == [("3.wav", "io")]
    assert os.strerror(number) in failures[0]["message"]
    assert len(pq.read_table(tmp_path / "out" / "embeddings")) == 2 * (N_RECORDINGS - 1)


@pytest.mark.long
@pytest.mark.parametrize(("call", "number"), list(zip(("write", "fsync", "rename"), ERRNOS, strict=True)))
def test_unwritable_shards_are_one_line(shim: Path, archive: Path, tmp_path: Path, call: str, number: int) -> None:
    options = embed_options(archive, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in failing_environment(shim, call, "/embeddings/", number).items():
            patched.setenv(name, value)
        with ray_of(2) as address:
            done = run_job("embed", *options, env={"RAY_ADDRESS": address})
    assert_one_line(done, number)
    assert not list((tmp_path / "out" / "embeddings").iterdir())
    with ray_of(2) as address:
        assert run_job("embed", *options, env={"RAY_ADDRESS": address}).code == 0
