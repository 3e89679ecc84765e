"""Kills of parts of a running job with SIGKILL, and the work that each kill cost."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.audio import tone, write_audio
from tests.support.clusters import LocalCluster
from tests.support.commands import ROOT, environment, running
from tests.support.models import EFFICIENTNET


@dataclass(frozen=True)
class WorkerKind:
    """A kind of worker that may be killed.

    Attributes:
        title: Beginning of the title of its process while the worker is busy.
        weight: Chance to be the next victim, relative to the other kinds that are running.
    """

    title: str
    weight: float


WORKER_KINDS = {
    "decode task": WorkerKind("ray::MapBatches(decode_stage)", 10),
    "encoder actor": WorkerKind("ray::MapWorker(MapBatches(EncodeStage))", 2),
    "write task": WorkerKind("ray::Write", 10),
    "progress actor": WorkerKind("ray::RunProgress", 0.3),
}

OPTIONS = ("--model", EFFICIENTNET, "--checkpoint", "random", "--window-s", "1", "--hop-s", "1")

N_WINDOWS = 1300


def make_archive(folder: Path) -> Path:
    """Write recordings with N_WINDOWS windows: short ones, a long one that is streamed, and one that fails."""
    for seed in range(30):
        write_audio(folder / f"{seed:02d}.flac", tone(20.0, 48_000, seed=seed), 48_000)
    write_audio(folder / "long.flac", tone(700.0, 48_000, seed=99), 48_000)
    (folder / "broken.wav").write_text("not audio")
    return folder


@dataclass
class Kill:
    """One kill, and its cost.

    Attributes:
        victim: The kind of process or node.
        after_s: Seconds since the run started, or since its first shard.
        lost_s: Seconds of work that were lost.
    """

    victim: str
    after_s: float
    lost_s: float = 0.0


@dataclass
class Job:
    """A run of jobs.embed in a separate process."""

    archive: Path
    output: Path
    environment: dict[str, str] = field(default_factory=dict)
    shard_rows: int = 64
    options: tuple[str, ...] = OPTIONS

    def running(self, *, start_new_session: bool = False) -> AbstractContextManager[subprocess.Popen[str]]:
        """Start the process; it is killed at the end of the block."""
        command = [sys.executable, "-m", "jobs.embed", "--input", self.archive, "--output", self.output, *self.options]
        command += ["--shard-rows", self.shard_rows]
        return running(command, environment(**self.environment), cwd=ROOT, start_new_session=start_new_session)

    def finish(self) -> None:
        """Run to the end, which must be complete."""
        with self.running() as process:
            printed, _ = process.communicate(timeout=600)
            assert process.returncode == 0, printed

    def shards(self) -> list[Path]:
        return list(self.output.glob("embeddings/*.parquet"))

    def last_shard_age_s(self) -> float:
        """Return the seconds since the last shard was stored, which a kill of all processes can cost."""
        stored_s = [path.stat().st_mtime for path in self.shards()]
        return time.time() - max(stored_s) if stored_s else 0.0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 240.0) -> bool:
    """Wait until ``condition`` holds, and return true; return false if the process has ended."""
    until = time.monotonic() + limit_s
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)
    return True


def kill_workers(job: Job, n_kills: int, every_s: tuple[float, float], rng: random.Random) -> list[Kill]:
    """Run the job to its end, and kill at most ``n_kills`` of its workers at random times."""
    kills: list[Kill] = []
    with job.running() as process:
        # The pipe is read all the time, since a full pipe would stop the job.
        lines: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
        reader.start()
        since_s = time.monotonic()
        while len(kills) < n_kills and wait_for(lambda: bool(workers_of(process)), process):
            victims = workers_of(process)
            # Decode and write tasks are short and rarely found, so their weight is high. The progress actor starts long
            # before the first count.
            if victims.keys() <= {"progress actor"}:
                continue
            name = rng.choices(list(victims), [WORKER_KINDS[name].weight for name in victims])[0]
            victim = rng.choice(victims[name])
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
            kills.append(Kill(name, time.monotonic() - since_s))
            pause_s = time.monotonic() + rng.uniform(*every_s)
            wait_for(lambda until_s=pause_s: time.monotonic() > until_s, process)
        process.wait(timeout=600)
        reader.join()
        assert process.returncode == 0, "".join(lines)
    return kills


def kill_loading_encoder(job: Job) -> str:
    """Run the job to its end, kill the first encoder as soon as it starts, and return the output of the job."""
    with job.running() as process:
        assert wait_for(lambda: "encoder actor" in workers_of(process), process)
        for encoder in workers_of(process)["encoder actor"]:
            encoder.kill()
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        return printed


def workers_of(process: subprocess.Popen[str]) -> dict[str, list[psutil.Process]]:
    """Return the processes of the job's workers, by kind."""
    workers: dict[str, list[psutil.Process]] = {}
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return workers
    for child in children:
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        for name, kind in WORKER_KINDS.items():
            if title.startswith(kind.title):
                workers.setdefault(name, []).append(child)
    return workers


def kill_driver(job: Job, rng: random.Random) -> Kill | None:
    """Start the job and kill its driver after one to four new shards, of twenty; None if the job ended before."""
    with job.running() as process:
        n_before, n_new = len(job.shards()), rng.randint(1, 4)
        if not wait_for(lambda: len(job.shards()) > n_before, process):
            return None
        since_s = time.monotonic()
        if not wait_for(lambda: len(job.shards()) >= n_before + n_new, process):
            return None
        until_s = time.monotonic() + rng.uniform(0, 0.5)
        if not wait_for(lambda: time.monotonic() >= until_s, process):
            return None
        lost_s = job.last_shard_age_s()
        process.kill()
        return Kill("driver", time.monotonic() - since_s, lost_s)


DRAIN_S = 3  # a spot machine has two minutes


def kill_nodes(
    job: Job, nodes: LocalCluster, n_kills: int, every_s: tuple[float, float], rng: random.Random
) -> list[Kill]:
    """Run the job to its end while nodes are lost with all their processes and objects.

    Half of the nodes get a notice before. A new node replaces each lost node.
    """
    kills: list[Kill] = []
    with job.running() as process:
        since_s = time.monotonic()
        wait_for(lambda: bool(job.shards()), process)
        while len(kills) < n_kills and process.poll() is None:
            victim = rng.choice(nodes.ids)
            announced = rng.random() < 0.5
            if announced:
                nodes.drain(victim, DRAIN_S)
                end_s = time.monotonic() + DRAIN_S
                wait_for(lambda until_s=end_s: time.monotonic() > until_s, process)
            nodes.lose(victim)
            kills.append(Kill("node, announced" if announced else "node", time.monotonic() - since_s))
            nodes.add()
            pause_s = time.monotonic() + rng.uniform(*every_s)
            wait_for(lambda until_s=pause_s: time.monotonic() > until_s, process)
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed
    return kills


def read_rows(output: Path) -> pa.Table:
    """Return all rows of an output, sorted by key; an incomplete shard is an error."""
    for name in os.listdir(output / "embeddings"):  # noqa: PTH208 — only names are needed
        assert name.endswith(".parquet") or name.startswith(".tmp-"), name
    keys = [("file", "ascending"), ("window_index", "ascending")]
    return pq.read_table(output / "embeddings").sort_by(keys)  # type: ignore[arg-type]


def assert_uninterrupted(output: Path, expected: pa.Table) -> None:
    """Check that an output has every window once, with the values of an uninterrupted run, and no temporary files."""
    rows = read_rows(output)
    assert rows.num_rows == expected.num_rows, f"{rows.num_rows - expected.num_rows:+} rows"
    assert rows.drop_columns("embedding").equals(expected.drop_columns("embedding"))
    vectors, expected_vectors = (np.stack(table["embedding"].to_numpy()) for table in (rows, expected))
    assert np.allclose(vectors, expected_vectors, rtol=0, atol=1e-6 * np.abs(expected_vectors).max())
    failures = pq.read_table(output / "failures").to_pylist()
    assert [(Path(row["file"]).name, row["kind"]) for row in failures] == [("broken.wav", "corrupt")]
    assert not list(output.rglob(".tmp-*"))
    assert not (output / "claim.json").exists()
