"""Killing parts of a running job with SIGKILL, and counting what it cost."""

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
class Worker:
    title: str  # what its process is called while it works
    weight: float  # how likely it is the next to die, among those that are there


WORKERS = {
    "decode task": Worker("ray::MapBatches(decode_stage)", 10),
    "encoder actor": Worker("ray::MapWorker(MapBatches(EncodeStage))", 2),
    "write task": Worker("ray::Write", 10),
    "counting actor": Worker("ray::Progress", 0.3),
}

OPTIONS = ("--model", EFFICIENTNET, "--checkpoint", "random", "--window-s", "1", "--hop-s", "1")


N_WINDOWS = 1300


def make_archive(folder: Path) -> Path:
    """N_WINDOWS: short recordings, one so long that it is streamed, and one that fails."""
    for seed in range(30):
        write_audio(folder / f"{seed:02d}.flac", tone(20.0, 48_000, seed=seed), 48_000)
    write_audio(folder / "long.flac", tone(700.0, 48_000, seed=99), 48_000)
    (folder / "broken.wav").write_text("not audio")
    return folder


@dataclass
class Kill:
    """One kill, and what it cost."""

    victim: str
    after_s: float  # since the job's first shard
    lost_s: float = 0.0  # of work


@dataclass
class Job:
    """A job in a process of its own."""

    archive: Path
    output: Path
    environment: dict[str, str] = field(default_factory=dict)
    shard_rows: int = 64
    options: tuple[str, ...] = OPTIONS

    def running(self, *, start_new_session: bool = False) -> AbstractContextManager[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "jobs.embed", "--input", self.archive, "--output", self.output, *self.options]
        command += ["--shard-rows", self.shard_rows]
        return running(command, environment(**self.environment), cwd=ROOT, start_new_session=start_new_session)

    def finish(self) -> None:
        with self.running() as process:
            said, _ = process.communicate(timeout=600)
            assert process.returncode == 0, said

    def shards(self) -> list[Path]:
        return list(self.output.glob("embeddings/*.parquet"))

    def last_shard_age_s(self) -> float:
        """Since when nothing has been stored: what a kill of everything can cost."""
        written = [path.stat().st_mtime for path in self.shards()]
        return time.time() - max(written) if written else 0.0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 240.0) -> bool:
    """Until ``condition`` holds (true), or the process has ended (false)."""
    until = time.monotonic() + limit_s
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)
    return True


def kill_workers(job: Job, n_kills: int, every_s: tuple[float, float], rng: random.Random) -> list[Kill]:
    """Run the job to its end while workers of it die, at most ``n_kills`` of them."""
    kills: list[Kill] = []
    with job.running() as process:
        # Read, or a full pipe would stop the job.
        said: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
        reader.start()
        since_s = time.monotonic()
        while len(kills) < n_kills and wait_for(lambda: bool(workers_of(process)), process):
            victims = workers_of(process)
            # Decode and write tasks are short: rarely there, they die when they are. The counting actor is there long
            # before anything is counted.
            if victims.keys() <= {"counting actor"}:
                continue
            name = rng.choices(list(victims), [WORKERS[name].weight for name in victims])[0]
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
        assert process.returncode == 0, "".join(said)
    return kills


def kill_loading_encoder(job: Job) -> str:
    """Run the job to its end, and kill the first encoder as soon as it is there; what the job says."""
    with job.running() as process:
        assert wait_for(lambda: "encoder actor" in workers_of(process), process)
        for encoder in workers_of(process)["encoder actor"]:
            encoder.kill()
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said


def workers_of(process: subprocess.Popen[str]) -> dict[str, list[psutil.Process]]:
    """Processes of the job's workers, by the kind of worker."""
    found: dict[str, list[psutil.Process]] = {}
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return found
    for child in children:
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        for name, worker in WORKERS.items():
            if title.startswith(worker.title):
                found.setdefault(name, []).append(child)
    return found


def kill_driver(job: Job, rng: random.Random) -> Kill | None:
    """Begin the job and kill it some time after a few new shards, of twenty; None if it was faster."""
    with job.running() as process:
        began, n_new = len(job.shards()), rng.randint(1, 4)
        if not wait_for(lambda: len(job.shards()) > began, process):
            return None
        since_s = time.monotonic()
        if not wait_for(lambda: len(job.shards()) >= began + n_new, process):
            return None
        until_s = time.monotonic() + rng.uniform(0, 0.5)
        if not wait_for(lambda: time.monotonic() >= until_s, process):
            return None
        lost_s = job.last_shard_age_s()
        process.kill()
        return Kill("driver", time.monotonic() - since_s, lost_s)


DRAIN_S = 3  # instead of a spot machine's two minutes


def kill_nodes(
    job: Job, nodes: LocalCluster, n_kills: int, every_s: tuple[float, float], rng: random.Random
) -> list[Kill]:
    """Run the job to its end while nodes are lost with all their processes and objects.

    Half of the nodes have a notice. A new node comes for each lost node.
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
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    return kills


def contents(output: Path) -> pa.Table:
    """All rows, by key; every shard in sight is complete, or this fails."""
    for name in os.listdir(output / "embeddings"):  # noqa: PTH208 — names are what is wanted
        assert name.endswith(".parquet") or name.startswith(".tmp-"), name
    keys = [("file", "ascending"), ("window_index", "ascending")]
    return pq.read_table(output / "embeddings").sort_by(keys)  # type: ignore[arg-type]


def assert_same(output: Path, expected: pa.Table) -> None:
    """Every window once, with the values of an uninterrupted run."""
    found = contents(output)
    assert found.num_rows == expected.num_rows, f"{found.num_rows - expected.num_rows:+} rows"
    assert found.drop_columns("embedding").equals(expected.drop_columns("embedding"))
    vectors, others = (np.stack(table["embedding"].to_numpy()) for table in (found, expected))
    assert np.allclose(vectors, others, rtol=0, atol=1e-6 * np.abs(others).max())
    failures = pq.read_table(output / "failures").to_pylist()
    assert [(Path(row["file"]).name, row["kind"]) for row in failures] == [("broken.wav", "corrupt")]
    assert not list(output.rglob(".tmp-*"))
    assert not (output / "claim.json").exists()
