"""The job as a cluster gets it: ``ray job submit`` from a machine that has nothing but Ray and an options file."""

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
from tests.support.clusters import Nodes, cluster_of
from tests.support.commands import environment
from tests.support.models import EFFICIENTNET

N_RECORDINGS = 24


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head with a job server that runs no work, and two nodes."""
    with cluster_of(1, 1, include_dashboard=True, dashboard_port=0) as nodes:
        wait_for_job_server(nodes)
        yield nodes


def wait_for_job_server(nodes: Nodes) -> None:
    """The dashboard answers before the agent that starts jobs is there."""
    until_s = time.monotonic() + 180  # Ray gives a busy machine its time
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--no-wait"]
    command += ["--address", f"http://{nodes.dashboard}", "--", "true"]
    while True:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return
        assert "No available agent" in done.stderr
        assert time.monotonic() < until_s


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(N_RECORDINGS):
        write_audio(folder / f"{seed:02d}.wav", tone(60.0, 16_000, seed=seed), 16_000)
    (folder / "0-broken.wav").write_text("not audio")  # the first of them
    return folder


Ray = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def ray(nodes: Nodes, tmp_path: Path) -> Iterator[Ray]:
    """``ray job VERB …`` in an empty directory on the client's side."""
    client = tmp_path / "client"
    client.mkdir()
    started: list[subprocess.Popen[str]] = []

    def run(verb: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", verb, "--address", f"http://{nodes.dashboard}"]
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
    """A job.yaml. Windows overlap so much that a run takes a while."""
    values = {"input": [str(archive)], "output": str(output), "model": EFFICIENTNET, "checkpoint": "random"}
    return json.dumps(values | {"window_s": 5, "shard_rows": 64} | more)  # JSON is YAML


def submit(ray: Ray, tmp_path: Path, config: str) -> subprocess.Popen[str]:
    (tmp_path / "client" / "job.yaml").write_text(config)
    entrypoint = [sys.executable, "-m", "jobs.embed", "--config", "job.yaml"]
    return ray("submit", "--working-dir", ".", "--", *entrypoint)


def assert_metrics_are_there(nodes: Nodes) -> None:
    """All of them, on the nodes' own pages, with what they count."""
    wanted = {name for name, _ in metrics.COUNTERS.values()} | {metrics.FAILURES, metrics.BUSY, metrics.BATCH_FILL}
    until_s = time.monotonic() + 60
    kinds, stages = set(), set()
    while wanted or stages != {"decode", "encode", "write"}:
        text = "\n".join(urlopen(url, timeout=10).read().decode() for url in nodes.metrics_urls())
        wanted -= set(re.findall(r"^ray_(avex_batch_\w+?)(?:_total|_count)\{.*\} [\d.]*[1-9]", text, re.MULTILINE))
        kinds |= set(re.findall(r'^ray_avex_batch_failures_total\{.*kind="(\w+)"', text, re.MULTILINE))
        stages |= set(re.findall(r'^ray_avex_batch_busy_seconds_total\{.*stage="(\w+)"', text, re.MULTILINE))
        assert time.monotonic() < until_s, f"missing {wanted}, of stages {stages}"
        time.sleep(0.5)
    assert kinds == {"corrupt"}


def test_failed_job_is_a_failed_job(ray: Ray, archive: Path, tmp_path: Path) -> None:
    process = submit(ray, tmp_path, options(archive, tmp_path / "out", model="esp_aves2_effnet"))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "avex-batch: --model: no avex model 'esp_aves2_effnet'; did you mean" in said
    assert "exit code 2" in said


@pytest.mark.long  # two jobs on three nodes: minutes
def test_stopped_job_lands_what_it_has_and_is_done_when_submitted_again(
    ray: Ray, nodes: Nodes, archive: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    config = options(archive, output, hop_s=1, max_failure_rate=0.1)
    process = submit(ray, tmp_path, config)
    assert process.stdout is not None
    said = ""
    job_id = None
    for line in process.stdout:
        said += line
        job_id = job_id or re.search(r"raysubmit_\w+", line)
        if " × real time" in line:  # the first line of progress
            assert job_id is not None
            assert_metrics_are_there(nodes)
            stop = ray("stop", job_id[0])
            stopped, _ = stop.communicate(timeout=120)
            assert stop.returncode == 0, stopped
            break
    else:
        pytest.fail(said)
    said += process.communicate(timeout=120)[0]
    assert "finishing open shards" in said
    status, _ = ray("status", job_id[0]).communicate(timeout=60)
    assert "was stopped" in status
    report = json.loads((output / "report.json").read_text())
    assert report["state"] == "stopped"
    n_before = pq.read_table(output / "embeddings").num_rows
    assert n_before > 0

    # As docs/cluster.md has it: with the same files in it Ray may take the directory away, whose first job has ended.
    (tmp_path / "client" / "submitted").write_text("again")
    process = submit(ray, tmp_path, config)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "2 actors on cpu" in said
    assert "done in" in said
    assert "1 failed before" in said
    assert "succeeded" in said
    table = pq.read_table(output / "embeddings", columns=["file_id", "window_index"])
    assert table.num_rows == len(table.group_by(["file_id", "window_index"]).aggregate([])) == N_RECORDINGS * 60
    runs = json.loads((output / "report.json").read_text())["runs"]
    assert [run["state"] for run in runs] == ["stopped", "complete"]
    assert runs[1]["windows_written"] == table.num_rows - n_before
