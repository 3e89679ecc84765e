"""What do driver and cluster services pay per batch, and for 10⁹ windows? ``python benchmarks/scale.py``

The job's own arrangement of Ray Data, its counting actor and its shards, around a decoder and an encoder that do
nothing: windows of 16 samples, vectors of 8 numbers. Two lengths of the same run, so that start and end drop out; what
a batch adds to CPU time and memory of each process is what no cluster can share out, since there is one of them.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from archive import add_cache_option
from embedding import pipeline
from embedding.checkpoints import fetch_checkpoint
from embedding.claim import claimed
from embedding.cluster import session
from embedding.decode import WINDOW_COLUMNS, windows_schema
from embedding.line import Line, Reporter, watching
from embedding.models import find_model
from embedding.resources import Plan
from embedding.settings import Job, Settings
from embedding.sources import RECORDINGS
from embedding.store import Store
from embedding.windows import WindowSpec
from harness import say
from job import Workplace
from tables import add_options, markdown, page, publish, question
from weights import EFFICIENTNET

SPEC = WindowSpec(16_000, 16, 16, "pad")
DIM = 8
BATCH = 64
WINDOWS_PER_RECORDING = 12  # a minute in windows of 5 s
TASK_RECORDINGS = 256
BATCHES = (1_000, 9_000)
SMALL_BATCHES = (100, 400)
PROJECTED_WINDOWS = 10**9
# Processes there is one of in a cluster, by what stands in their command line.
SINGLE = {"driver": "benchmarks/scale.py", "GCS": "gcs_server", "counting actor": "ray::Progress"}


# --- the job, without its work ------------------------------------------------------------------------------------


def decode_nothing(recordings: pa.Table, job: Job, progress: Any) -> Iterator[pa.Table]:
    """As ``pipeline.decode_stage`` does it, batch by batch."""
    report = Reporter(progress)
    report.begin_task()
    ids = np.repeat(recordings["file_id"].to_numpy(), WINDOWS_PER_RECORDING)
    files = recordings["file"].take(pa.array(np.repeat(np.arange(len(recordings)), WINDOWS_PER_RECORDING)))
    index = np.tile(np.arange(WINDOWS_PER_RECORDING), len(recordings))
    for start in range(0, len(ids), job.batch_size):
        part = slice(start, start + job.batch_size)
        n = len(ids[part])
        table = pa.table(
            {
                "file": files.slice(start, n),
                "file_id": ids[part],
                "window_index": index[part],
                "n_windows": np.full(n, WINDOWS_PER_RECORDING),
                "start_time": index[part] * 0.001,
                "end_time": index[part] * 0.001 + 0.001,
                "sample_rate": np.full(n, SPEC.rate_hz),
                "channels": np.full(n, 1),
                "duration": np.full(n, WINDOWS_PER_RECORDING * 0.001),
                "audio_hash": ids[part],
                "window": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(n * 16, np.float32)), 16),
            }
        )
        report.add("decode", 0.001, audio_s=0.001 * n)
        yield table.cast(windows_schema(SPEC))
        report.is_stopping()


class EncodeNothing:
    """As ``pipeline.EncodeStage`` tells of it."""

    def __init__(self, job: Job, device: str, n_threads: int, progress: Any, weights: Any) -> None:
        self._report = Reporter(progress)
        self._report.encoder_ready()

    def __call__(self, windows: pa.Table) -> pa.Table:
        batch = f"window {windows['window_index'][0]} of {windows['file'][0]}"
        self._report.begin_batch(batch, len(windows) / BATCH)
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(windows) * DIM, np.float32)), DIM)
        self._report.is_stopping()
        self._report.end_batch(batch)
        self._report.add("encode", 0.001, windows_encoded=len(windows), audio_encoded_s=1.0, recordings=1)
        return windows.drop_columns("window").append_column("embedding", embedding)


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one process, at one moment."""

    cpu_s: float
    memory_mb: float


def costs() -> dict[str, Cost]:
    found: dict[str, Cost] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            for name, sign in SINGLE.items():
                if sign in command:
                    found[name] = Cost(sum(process.cpu_times()[:2]), process.memory_info().rss / 1e6)
        except psutil.Error:
            continue
    return found


def run(n_batches: int, output: Path) -> dict[str, Any]:
    """One run of so many batches, in this process: its seconds and what it cost."""
    pipeline.decode_stage = decode_nothing  # type: ignore[assignment]
    pipeline.EncodeStage = EncodeNothing  # type: ignore[assignment, misc]
    n = n_batches * BATCH // WINDOWS_PER_RECORDING
    recordings = pa.table(
        {
            "file": [f"s3://bucket/archive/{i:09d}.wav" for i in range(n)],
            "size": np.full(n, 1),
            "file_id": np.arange(n),
        },
        RECORDINGS,
    )
    model = find_model(EFFICIENTNET)
    settings = Settings(model, fetch_checkpoint(model.name, "random"), SPEC, "mean", False, "fp32")
    shutil.rmtree(output, ignore_errors=True)
    store = Store(str(output), "{}")
    job = Job(settings, store, "scale", BATCH, 32_768)
    plan = Plan("cpu", 1, 0.5, 0.0, 1, 0.25, 2, 0.0625, 1)
    with claimed(store.root, "scale", lambda _: None), session(verbose=False) as nodes:
        line = Line()
        tables = [recordings.slice(start, TASK_RECORDINGS) for start in range(0, n, TASK_RECORDINGS)]
        before = costs()
        began = time.perf_counter()
        with watching(line, lambda _: None, lambda: False):
            pipeline.embed(tables, job, plan, nodes, line)
        wall_s = time.perf_counter() - began
        after = costs()
        assert line.ask().tally.windows_written >= n_batches * BATCH - BATCH
    spent = {
        name: [cost.cpu_s - (before[name].cpu_s if name in before else 0.0), cost.memory_mb]
        for name, cost in after.items()
    }
    return {"wall_s": wall_s, "costs": spent}


def in_a_process(n_batches: int, output: Path) -> dict[str, Any]:
    say(f"{n_batches:,} batches")
    command = [sys.executable, "benchmarks/scale.py", "--one", str(n_batches), "--output", str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, metavar="BATCHES", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    add_options(parser, rounds=1)
    add_cache_option(parser)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(run(arguments.one, arguments.output)) + "\n")
        return 0
    place = Workplace.of(arguments, "scale")
    few, many = SMALL_BATCHES if arguments.small else BATCHES
    short, long = (in_a_process(n, place.outputs / "out") for n in (few, many))
    more = many - few
    projected = PROJECTED_WINDOWS / BATCH
    rows = []
    for name in SINGLE:
        (cpu_s, memory_mb), (cpu_more_s, memory_more_mb) = short["costs"][name], long["costs"][name]
        cpu_ms, memory_kb = 1e3 * (cpu_more_s - cpu_s) / more, 1e3 * (memory_more_mb - memory_mb) / more
        rows.append(
            [
                *(name, f"{cpu_ms:.2f}", f"{memory_kb:.2f}", f"{memory_more_mb:,.0f}"),
                *(f"{cpu_ms * projected / 3.6e6:,.1f}", f"{memory_more_mb / 1e3 + memory_kb * projected / 1e6:,.1f}"),
            ]
        )
    wall_ms = 1e3 * (long["wall_s"] - short["wall_s"]) / more
    table = markdown(
        ["", "ms of CPU a batch", "kB a batch", f"MB after {many:,} batches", "10⁹ windows: hours of CPU", "GB"], rows
    )
    notes = [
        f"{few:,} and {many:,} batches of {BATCH} windows, {WINDOWS_PER_RECORDING} windows a recording; with all "
        f"processes on this machine's cores {wall_ms:.2f} ms a batch, {1e3 * BATCH / wall_ms:,.0f} windows/s.",
        f"10⁹ windows are {projected:,.0f} batches, {PROJECTED_WINDOWS // WINDOWS_PER_RECORDING:,} recordings.",
        f"{len(WINDOW_COLUMNS)} columns beside the samples.",
    ]
    publish("scale", page(question(__doc__), table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
