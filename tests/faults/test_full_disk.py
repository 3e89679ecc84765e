"""Jobs on a full, nearly full or read-only disk: an error of one line, and existing files stay unchanged."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.search import search as searching
from embedding.search.nearest_windows import HITS
from jobs import export, pool, probe, report, search
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, environment
from tests.support.file_systems import small_file_system
from tests.support.pages import write_finished_output
from tests.support.probing import SETTINGS, write_species_labels, write_species_output
from tests.support.shards import write_output

PAGE = os.sysconf("SC_PAGE_SIZE")
MOST_PAGES = 64

Job = Callable[[], int]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "disk", "24m") as folder:
        yield folder


@contextmanager
def with_free_pages(disk: Path, n_pages: int) -> Iterator[None]:
    """Fill the disk, except for ``n_pages`` pages, while the block runs."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - n_pages * PAGE))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def read_files(disk: Path) -> dict[Path, bytes]:
    """Return the content of all files; a temporary file or a claim is an error."""
    contents = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file() and path.name != "filler"}
    assert not [path for path in disk.rglob("*") if path.name.startswith((".tmp-", "claim.json"))]
    return contents


def fails(job: Job, disk: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """Run a job, and return whether it failed; a failure must be one line and leave all files unchanged."""
    before = read_files(disk)
    capsys.readouterr()
    code = job()
    lines = capsys.readouterr().err.splitlines()
    if code == 0:
        return False
    assert code in (1, 2)
    assert len(lines) == 1, lines
    assert lines[0].startswith("avex-batch: ")
    assert "No space left on device" in lines[0] or "Read-only" in lines[0] or "cannot write into" in lines[0], lines
    assert read_files(disk) == before
    return True


def assert_all_or_nothing(job: Job, disk: Path, capsys: pytest.CaptureFixture[str], step: int = 1) -> None:
    """Run a job on a read-only disk, then with more and more free pages until the job succeeds."""
    with read_only(disk):
        assert fails(job, disk, capsys)
    for n_pages in range(0, MOST_PAGES * step, step):
        with with_free_pages(disk, n_pages):
            if not fails(job, disk, capsys):
                assert n_pages
                return
    raise AssertionError("there were never enough free pages")


@pytest.mark.parametrize("is_first", [True, False], ids=["new", "replaces an earlier one"])
def test_a_probe_is_written_as_a_whole_or_not_at_all(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, is_first: bool
) -> None:
    write_species_output(disk / "out")
    labels = write_species_labels(tmp_path / "labels.csv")

    def job(seed: int = 1) -> int:
        return probe.main([str(disk / "out"), "--labels", str(labels), "--seed", str(seed), "--replace"])

    if not is_first:
        assert job(2) == 0
    assert_all_or_nothing(job, disk, capsys, step=2)


@pytest.mark.parametrize("is_first", [True, False], ids=["new", "replaces an earlier one"])
@pytest.mark.parametrize("to", ["npy", "pt", "opensoundscape", "lancedb"])
def test_an_export_is_written_as_a_whole_or_not_at_all(
    to: str, disk: Path, capsys: pytest.CaptureFixture[str], *, is_first: bool
) -> None:
    rng = np.random.default_rng(0)
    recordings = {f"/a/{number}.wav": rng.standard_normal((7, 16)).astype(np.float32) for number in range(4)}
    write_output(str(disk / "out"), recordings, SETTINGS)

    def job() -> int:
        return export.main([str(disk / "out"), "--to", to, str(disk / "exported")])

    if not is_first:
        assert job() == 0
    assert_all_or_nothing(job, disk, capsys, step=2)


def test_a_page_is_written_as_a_whole_or_not_at_all(
    disk: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    rng = np.random.default_rng(0)
    write_finished_output(disk / "out", {"/a/1.wav": rng.standard_normal((3, 16)).astype(np.float32)}, [])

    def job() -> int:
        return report.main([str(disk / "out"), "--html", str(disk / "page.html")])

    assert job() == 0
    assert_all_or_nothing(job, disk, capsys, step=600)


def test_clips_are_whole_files(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = write_audio(tmp_path / "a.wav", tone(2.0, 16_000), 16_000)
    hit = {"score": 0.5, "file": str(recording), "start_time": 0.0, "end_time": 1.0, "sample_rate": 16_000}
    rows = [{name: hit.get(name, 1) for name in HITS.names} | {"start_time": float(second)} for second in range(2)]
    hits = pa.Table.from_pylist([row | {"end_time": row["start_time"] + 1} for row in rows], HITS)
    monkeypatch.setattr(searching, "search", lambda *_, **__: hits)

    def job() -> int:
        return search.main([str(disk), "--clip", str(recording), "--save-clips", str(disk / "clips")])

    assert job() == 0
    with read_only(disk):
        assert fails(job, disk, capsys)
    for n_pages in (0, 3, 12, 15):
        with with_free_pages(disk, n_pages):
            job()
        for clip in read_files(disk / "clips").values():  # the earlier clip or the new one
            assert clip[:4] == b"RIFF"
            assert len(clip) > 32_000
    shutil.rmtree(disk / "clips")
    with with_free_pages(disk, 10):  # enough for one of two clips
        assert job() == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("avex-batch: 1 of 2 clips could not be cut out: ")
    assert len(read_files(disk / "clips")) == 1


def pool_in_process(root: Path) -> int:
    return pool.main([str(root)])


def test_pooling_without_space_for_a_claim_is_refused(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_species_output(disk / "out")
    with read_only(disk):
        assert fails(lambda: pool_in_process(disk / "out"), disk, capsys)
    with with_free_pages(disk, 0):
        assert fails(lambda: pool_in_process(disk / "out"), disk, capsys)


@pytest.mark.long
def test_pooling_on_a_disk_that_becomes_full_is_one_line(disk: Path, ray_address: str) -> None:
    rng = np.random.default_rng(0)
    vectors = {f"/a/{number}.wav": rng.standard_normal((4, 512)).astype(np.float32) for number in range(200)}
    write_output(str(disk / "out"), vectors, SETTINGS)

    def run() -> subprocess.CompletedProcess[str]:
        command = ["-m", "jobs.pool", str(disk / "out")]
        env = environment(RAY_ADDRESS=ray_address)
        return subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )

    before = read_files(disk)
    for n_pages in (4, 40):
        with with_free_pages(disk, n_pages):
            done = run()
        assert done.returncode == 1, done.stdout
        assert len(done.stderr.splitlines()) == 1
        assert "No space left on device" in done.stderr
        after = read_files(disk)
        assert {path: after[path] for path in before} == before
    done = run()
    assert done.returncode == 0, done.stderr
    assert len(pq.read_table(disk / "out" / "recordings" / "mean")) == 200
