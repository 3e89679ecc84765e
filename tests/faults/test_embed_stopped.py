"""Runs that stop early: each prints one line with the reason, and the stored windows stay valid."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, Outcome, environment, run_embed
from tests.support.faulty_s3 import EXPIRED, fail_always, faulty_s3_proxy
from tests.support.file_systems import small_file_system
from tests.support.kills import N_WINDOWS, Job, make_archive, wait_for
from tests.support.models import EFFICIENTNET

Embed = Callable[..., Outcome]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archive"))


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C"), pytest.param(signal.SIGTERM, "SIGTERM", marks=pytest.mark.long)],
)
def test_a_signal_lets_open_shards_finish_and_the_same_command_resumes(
    number: int, name: str, archive: Path, tmp_path: Path, ray_address: str
) -> None:
    # Ctrl-C reaches the processes of Ray only if the job has started this Ray. An empty cache makes it a first run.
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    job = Job(
        archive, tmp_path / "out", {"RAY_ADDRESS": ray_address} if number == signal.SIGTERM else own, shard_rows=640
    )
    with job.running(start_new_session=True) as process:
        assert wait_for(lambda: bool(job.shards()), process)
        if number == signal.SIGINT:  # a terminal sends SIGINT to all processes of the job, including those of Ray
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        signalled_s = time.monotonic()
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - signalled_s < 25
    lines = printed.splitlines()
    assert any(line.startswith("preparing ") for line in lines) == (number == signal.SIGINT)
    assert any(line.startswith(f"{name}: finishing open shards") for line in lines)
    assert lines[-1] == (
        f"avex-batch: stopped by {name}; what is stored stays valid, run the same command again to go on"
    )
    assert "Traceback" not in printed
    report = json.loads((job.output / "report.json").read_text())
    assert report["state"] == "stopped"
    stored = pq.read_table(job.output / "embeddings")
    assert report["output"]["windows"] == len(stored) < N_WINDOWS
    assert len(stored) % 640 != 0  # encoded windows of an unfilled shard are stored, too
    assert not (job.output / "claim.json").exists()
    if number == signal.SIGTERM:
        Job(archive, job.output, {"RAY_ADDRESS": ray_address}).finish()
        rows = pq.read_table(job.output / "embeddings").to_pandas()
        assert not rows.duplicated(["file_id", "window_index"]).any()
        assert len(rows) == N_WINDOWS
        report = json.loads((job.output / "report.json").read_text())
        assert [run["state"] for run in report["runs"]] == ["stopped", "complete"]


@pytest.mark.long  # tests/unit/test_stopping.py tests the signals themselves
def test_a_second_signal_stops_at_once(archive: Path, tmp_path: Path, ray_address: str) -> None:
    job = Job(archive, tmp_path / "out", {"RAY_ADDRESS": ray_address})
    with job.running(start_new_session=True) as process:
        assert wait_for(lambda: bool(job.shards()), process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert any(line.startswith("Ctrl-C: finishing open shards") for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        signalled_s = time.monotonic()
        printed, _ = process.communicate(timeout=60)
    assert time.monotonic() - signalled_s < 8
    assert process.returncode == 1
    assert printed.splitlines()[-1].startswith("avex-batch: stopped; what is stored stays valid")


CRASH_ON_READ = """
import os, signal
import soundfile

opened = soundfile.SoundFile.__init__

def init(self, file, *args, **kwargs):
    if "crashes its reader" in str(file):
        os.kill(os.getpid(), signal.SIGSEGV)
    opened(self, file, *args, **kwargs)

soundfile.SoundFile.__init__ = init
"""


@pytest.mark.long  # tests/unit/decoding/test_isolated.py tests the processes, without a job
def test_a_recording_that_crashes_its_worker_is_a_failure_and_the_job_finishes(tmp_path: Path) -> None:
    archive, output = tmp_path / "in", tmp_path / "out"
    for seed in range(12):
        write_audio(archive / f"{seed:02d}.wav", tone(2.0, 16_000, seed=seed), 16_000)
    write_audio(archive / "05 crashes its reader.wav", tone(2.0, 16_000), 16_000)
    (tmp_path / "path").mkdir()
    # This simulates a bug in a decoder. Python imports this module first in every process, including those of Ray.
    (tmp_path / "path" / "sitecustomize.py").write_text(CRASH_ON_READ)
    outcome = run_embed(
        *("--input", archive, "--output", output, "--model", EFFICIENTNET, "--checkpoint", "random", "--window-s", 1),
        *("--actors", 1, "--max-failure-rate", 0.1),
        env={"PYTHONPATH": str(tmp_path / "path")},
    )
    assert outcome.code == 0, outcome.stderr
    failures = pq.read_table(output / "failures").to_pylist()
    assert [(Path(row["file"]).name, row["kind"]) for row in failures] == [("05 crashes its reader.wav", "crash")]
    assert failures[0]["message"] == "the process that read it died of SIGSEGV, 3 times in a row"
    rows = pq.read_table(output / "embeddings").to_pandas()
    assert not rows.duplicated(["file_id", "window_index"]).any()
    assert len(rows) == 24
    assert "12 of 13 recordings embedded and saved · 1 failed: " in outcome.stdout
    assert json.loads((output / "report.json").read_text())["recordings"]["balanced"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    with small_file_system(tmp_path / "disk", "300k") as folder:
        yield folder


@pytest.mark.long  # tests/unit/ray_runtime/test_session.py tests a worker with a failing storage
def test_a_full_disk_is_one_line_and_keeps_stored_windows(small_disk: Path, embed: Embed, tmp_path: Path) -> None:
    archive = tmp_path / "in"
    for seed in range(8):
        write_audio(archive / f"{seed}.wav", tone(20.0, 16_000, seed=seed), 16_000)
    command = (
        *("--input", archive, "--output", small_disk, "--model", EFFICIENTNET, "--checkpoint", "random"),
        *("--window-s", 1, "--actors", 1, "--batch-size", 16, "--shard-rows", 16),
    )
    outcome = embed(*command)
    assert outcome.code == 1
    assert len(outcome.stderr.splitlines()) == 1
    assert "No space left on device" in outcome.stderr
    assert "run the same command again" in outcome.stderr
    stored = pq.read_table(small_disk / "embeddings")
    assert 0 < len(stored) < 160
    assert not list(small_disk.rglob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    assert embed(*command).code == 0
    assert len(pq.read_table(small_disk / "embeddings")) == 160


def run_interrupted(archive: Path, output: str, stored: Callable[[], bool], interrupt: Callable[[], None]) -> str:
    """Run a job with a separate Ray, take its storage away once a shard is stored, and return its error message.

    Args:
        archive: The recordings.
        output: The output.
        stored: Returns whether a shard is stored.
        interrupt: Takes the storage away.
    """
    command = [sys.executable, "-m", "jobs.embed", "--input", archive, "--output", output, "--model", EFFICIENTNET]
    options = ("--checkpoint", "random", "--window-s", 1, "--hop-s", 1, "--shard-rows", 64)
    with subprocess.Popen(
        [str(argument) for argument in (*command, *options)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert wait_for(stored, process)
        interrupt()
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert len(error.splitlines()) == 1
    return error


def shards_in(s3_api: Any, bucket: str) -> list[str]:
    listed = s3_api.list_objects_v2(Bucket=bucket, Prefix="out/embeddings/")
    return [item["Key"] for item in listed.get("Contents", ())]


@pytest.mark.long
def test_a_deleted_bucket_is_one_line(s3_api: Any, bucket: str, archive: Path) -> None:
    def delete_bucket() -> None:
        while True:
            for item in s3_api.list_objects_v2(Bucket=bucket).get("Contents", ()):
                s3_api.delete_object(Bucket=bucket, Key=item["Key"])
            try:
                s3_api.delete_bucket(Bucket=bucket)
            except s3_api.exceptions.ClientError:  # a shard was stored in between
                continue
            return

    error = run_interrupted(archive, f"s3://{bucket}/out", lambda: bool(shards_in(s3_api, bucket)), delete_bucket)
    assert f"s3://{bucket}/out lost this run's claim" in error or "the storage failed: " in error


@pytest.mark.long  # tests/unit/storage/test_s3_faults.py tests the answers of S3
def test_expired_credentials_are_one_line_and_keep_stored_windows(
    s3_server: str, s3_api: Any, bucket: str, archive: Path, tmp_path: Path
) -> None:
    with faulty_s3_proxy(s3_server) as proxy, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", proxy.url)

        def expire() -> None:
            proxy.choose = fail_always(EXPIRED)

        error = run_interrupted(archive, f"s3://{bucket}/out", lambda: bool(shards_in(s3_api, bucket)), expire)
    assert "credentials that have expired" in error or "The provided token has expired" in error
    assert "run the same command again" in error
    keys = shards_in(s3_api, bucket)
    assert keys
    for number, key in enumerate(keys):
        s3_api.download_file(bucket, key, str(tmp_path / f"{number}.parquet"))
    assert len(pq.read_table(tmp_path)) >= 64
