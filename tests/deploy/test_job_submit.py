"""The job on a cluster: ``ray job submit`` from a machine that has only Ray and an options file."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest

from embedding.ray_runtime import metrics
from tests.support.audio import tone, write_audio
from tests.support.clusters import LocalCluster, local_cluster
from tests.support.commands import environment
from tests.support.models import EFFICIENTNET

N_RECORDINGS = 24


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head with a job server and without work, and two nodes."""
    with local_cluster(1, 1, include_dashboard=True, dashboard_port=0) as cluster:
        wait_for_job_server(cluster)
        yield cluster


def wait_for_job_server(cluster: LocalCluster) -> None:
    """Wait for the agent that starts jobs; the dashboard answers before this agent runs."""
    deadline_s = time.monotonic() + 180  # a busy machine may need minutes
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--no-wait"]
    command += ["--address", f"http://{cluster.dashboard}", "--", "true"]
    while True:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return
        assert "No available agent" in done.stderr
        assert time.monotonic() < deadline_s


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(N_RECORDINGS):
        write_audio(folder / f"{seed:02d}.wav", tone(60.0, 16_000, seed=seed), 16_000)
    (folder / "0-broken.wav").write_text("not audio")  # the first recording in the order of names
    return folder


RayJob = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def ray_job(cluster: LocalCluster, tmp_path: Path) -> Iterator[RayJob]:
    """A function that runs ``ray job VERB …`` in an empty directory of the client."""
    client = tmp_path / "client"
    client.mkdir()
    started: list[subprocess.Popen[str]] = []

    def run(verb: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", verb, "--address", f"http://{cluster.dashboard}"]
        started.append(
            subprocess.Popen(
                [*command, *map(str, arguments)],
                cwd=client,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        with process:
            process.kill()


def options(archive: Path, output: Path, **more: object) -> str:
    """Return the content of an options file."""
    values = {"input": [str(archive)], "output": str(output), "model": EFFICIENTNET, "checkpoint": "random"}
    return json.dumps(values | {"window_s": 5, "shard_rows": 64} | more)  # JSON is YAML


def submit(ray_job: RayJob, tmp_path: Path, config: str) -> subprocess.Popen[str]:
    (tmp_path / "client" / "job.yaml").write_text(config)
    entrypoint = [sys.executable, "-m", "jobs.embed", "--config", "job.yaml"]
    return ray_job("submit", "--working-dir", ".", "--", *entrypoint)


def assert_metrics_are_exported(cluster: LocalCluster) -> None:
    """Check that the pages of the nodes have all metrics, with values above 0."""
    missing = {name for name, _ in metrics.COUNTERS.values()} | {metrics.FAILURES, metrics.BUSY, metrics.BATCH_FILL}
    deadline_s = time.monotonic() + 60
    kinds, stages = set(), set()
    while missing or stages != {"decode", "encode", "write"}:
        text = "\n".join(urlopen(url, timeout=10).read().decode() for url in cluster.metrics_urls())
        missing -= set(re.findall(r"^ray_(avex_batch_\w+?)(?:_total|_count)\{.*\} [\d.]*[1-9]", text, re.MULTILINE))
        kinds |= set(re.findall(r'^ray_avex_batch_failures_total\{.*kind="(\w+)"', text, re.MULTILINE))
        stages |= set(re.findall(r'^ray_avex_batch_busy_seconds_total\{.*stage="(\w+)"', text, re.MULTILINE))
        assert time.monotonic() < deadline_s, f"missing {missing}, of stages {stages}"
        time.sleep(0.5)
    assert kinds == {"corrupt"}


def test_a_run_that_fails_is_a_failed_job(ray_job: RayJob, archive: Path, tmp_path: Path) -> None:
    process = submit(ray_job, tmp_path, options(archive, tmp_path / "out", model="esp_aves2_effnet"))
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    assert "avex-batch: --model: no avex model 'esp_aves2_effnet'; did you mean" in printed
    assert "exit code 2" in printed


@pytest.mark.long  # two jobs on three nodes: minutes
def test_a_stopped_job_stores_finished_windows_and_completes_when_it_is_submitted_again(
    ray_job: RayJob, cluster: LocalCluster, archive: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    config = options(archive, output, hop_s=1, max_failure_rate=0.1)  # windows overlap, so that the run takes longer
    process = submit(ray_job, tmp_path, config)
    assert process.stdout is not None
    printed = ""
    job_id = None
    for line in process.stdout:
        printed += line
        job_id = job_id or re.search(r"raysubmit_\w+", line)
        if " × real time" in line:  # the first line of progress
            assert job_id is not None
            assert_metrics_are_exported(cluster)
            stop = ray_job("stop", job_id[0])
            stopped, _ = stop.communicate(timeout=120)
            assert stop.returncode == 0, stopped
            break
    else:
        pytest.fail(printed)
    printed += process.communicate(timeout=120)[0]
    assert "finishing open shards" in printed
    status, _ = ray_job("status", job_id[0]).communicate(timeout=60)
    assert "was stopped" in status
    report = json.loads((output / "report.json").read_text())
    assert report["state"] == "stopped"
    n_before = pq.read_table(output / "embeddings").num_rows
    assert n_before > 0

    # As in docs/cluster.md: Ray may delete a working directory with the same files, because its first job has ended.
    (tmp_path / "client" / "submitted").write_text("again")
    process = submit(ray_job, tmp_path, config)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert re.search(r"loading the model into \d CPU workers?", printed)
    assert "done in" in printed
    assert "1 failed before" in printed
    assert "succeeded" in printed
    table = pq.read_table(output / "embeddings", columns=["file_id", "window_index"])
    assert table.num_rows == len(table.group_by(["file_id", "window_index"]).aggregate([])) == N_RECORDINGS * 60
    runs = json.loads((output / "report.json").read_text())["runs"]
    assert [run["state"] for run in runs] == ["stopped", "complete"]
    assert runs[1]["windows_written"] == table.num_rows - n_before
