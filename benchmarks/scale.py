"""Cost of the driver and of the cluster services per batch, and for 10⁹ windows.

``python benchmarks/scale.py``

The job's pipeline of Ray Data, its counting actor and its shards run with a decoder and an encoder that do nothing:
windows of 16 samples, vectors of 8 numbers. The difference between two lengths of a run excludes start and end. The
result is the CPU time and the memory that a batch adds to processes of which a cluster has only one, so that no further
node can share them. Batches have the size of a short run on CPUs, and of a long run on GPUs. Finally three legs run one
after the other, which shows how much memory of a leg is released.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from archive import add_cache_option
from embedding import pipeline
from embedding.encoding.checkpoints import fetch_checkpoint
from embedding.encoding.models import find_model
from embedding.encoding.settings import Settings
from embedding.job import Job, Target
from embedding.output.claim import hold_claim
from embedding.output.store import Store
from embedding.planning.placement import Placement
from embedding.planning.work_sizes import LEG_BATCHES
from embedding.ray_runtime.progress_actor import RunProgress
from embedding.ray_runtime.progress_channel import ProgressChannel, ProgressReporter, watching
from embedding.ray_runtime.session import session
from embedding.schema.batches import hash_column, output_column, window_column, windows_schema
from embedding.schema.recordings import RECORDINGS
from embedding.schema.windows import WindowSpec
from harness import log
from job import Workspace
from tables import add_options, markdown, page, publish
from weights import EFFICIENTNET

SPEC = WindowSpec(16_000, 16, 16, "pad")
DIM = 8
BATCH_SIZES = (64, 1024)
WINDOWS_PER_RECORDING = 12  # a minute in windows of 5 s
TASK_RECORDINGS = 256
BATCHES = (1_000, 5_000)
SMALL_BATCHES = (50, 150)
LEGS = 3
PROJECTED_WINDOWS = 10**9
# Processes of which a cluster has only one, and a part of their command line.
SINGLE = {"driver": "benchmarks/scale.py", "GCS": "gcs_server", "counting actor": f"ray::{RunProgress.__name__}"}
RUN_ID = "5ca1e0000000"  # twelve hexadecimal digits, like every run id


# --- the job without its work -------------------------------------------------------------------------------------


def decode_nothing(recordings: pa.Table, job: Job, progress: Any) -> Iterator[pa.Table]:
    """Return empty batches like ``pipeline.decode_stage``."""
    report = ProgressReporter(progress)
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
                "targets": np.ones(n),
                "recorder_facts": pa.repeat("", n),
                hash_column(SPEC.rate_hz): ids[part],
                window_column(SPEC.rate_hz): pa.FixedSizeListArray.from_arrays(
                    pa.array(np.zeros(n * 16, np.float32)), 16
                ),
            }
        )
        report.add("decode", 0.001, audio_s=0.001 * n)
        yield table.cast(windows_schema([SPEC]))
        report.is_stopping()


class EncodeNothing:
    """Return empty vectors and report them like ``pipeline.EncodeStage``."""

    def __init__(self, job: Job, plan: Placement, progress: Any, weights: Any) -> None:
        self._batch_size = job.batch_size
        self._report = ProgressReporter(progress)
        self._report.encoder_ready()

    def __call__(self, windows: pa.Table) -> pa.Table:
        batch = f"window {windows['window_index'][0]} of {windows['file'][0]}"
        self._report.begin_batch(batch, len(windows) / self._batch_size)
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(windows) * DIM, np.float32)), DIM)
        self._report.is_stopping()
        self._report.end_batch(batch)
        counts = {"windows_encoded": len(windows), "audio_encoded_s": 1.0}
        self._report.add("encode", 0.001, {0: counts}, recordings=1)
        rows = windows.drop_columns(window_column(SPEC.rate_hz))
        return rows.append_column(output_column(0, "embedding"), embedding)


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Cost of one process until now."""

    cpu_s: float
    memory_mb: float


def single_costs() -> dict[str, Cost]:
    """Return the cost of each of SINGLE."""
    costs: dict[str, Cost] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            for name, part in SINGLE.items():
                if part in command:
                    costs[name] = Cost(sum(process.cpu_times()[:2]), process.memory_info().rss / 1e6)
        except psutil.Error:
            continue
    return costs


def run(n_batches: int, batch_size: int, n_legs: int, output: Path) -> dict[str, Any]:
    """Run legs of ``n_batches`` in this process; return the time, and the costs before the first and after each leg."""
    pipeline.decode_stage = decode_nothing  # type: ignore[assignment]
    pipeline.EncodeStage = EncodeNothing  # type: ignore[assignment, misc]
    n = n_batches * batch_size // WINDOWS_PER_RECORDING
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
    plan = Placement("cpu", 1, 0.5, 0.0, 1, 0.25, 2, 0.0625, 1)
    with hold_claim(store.root, RUN_ID, lambda _: None), session(verbose=False) as nodes:
        channel = ProgressChannel()
        tables = [recordings.slice(start, TASK_RECORDINGS) for start in range(0, n, TASK_RECORDINGS)]
        costs = [single_costs()]
        began = time.perf_counter()
        with watching(channel, lambda _: None, lambda: False):
            for leg in range(n_legs):
                job = Job((Target(settings, store),), RUN_ID, batch_size, 32_768, leg=leg)
                pipeline.embed(tables, job, plan, nodes, channel)
                costs.append(single_costs())
        wall_s = time.perf_counter() - began
        assert channel.read().counters.windows_written == n_legs * n * WINDOWS_PER_RECORDING
    return {"wall_s": wall_s, "costs": [{name: asdict(cost) for name, cost in by_name.items()} for by_name in costs]}


def run_in_process(n_batches: int, batch_size: int, output: Path, n_legs: int = 1) -> dict[str, Any]:
    log(f"{n_batches:,} batches of {batch_size}, {n_legs} legs")
    command = [sys.executable, "benchmarks/scale.py", "--one", str(n_batches), str(batch_size), str(n_legs)]
    command += ["--output", str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout.splitlines()[-1])


def cost_rows(few: int, many: int, batch_size: int, output: Path) -> tuple[list[list[str]], float]:
    """Return rows of the table, and the time in ms per batch with all processes on this machine."""
    short, long = (run_in_process(n, batch_size, output) for n in (few, many))
    projected = PROJECTED_WINDOWS / batch_size
    rows = []
    for name in SINGLE:
        short_start, long_start = ({"cpu_s": 0.0} | result["costs"][0].get(name, {}) for result in (short, long))
        short_end, long_end = (result["costs"][1][name] for result in (short, long))
        long_cpu_s, short_cpu_s = long_end["cpu_s"] - long_start["cpu_s"], short_end["cpu_s"] - short_start["cpu_s"]
        cpu_ms = 1e3 * (long_cpu_s - short_cpu_s) / (many - few)
        memory_kb = 1e3 * (long_end["memory_mb"] - short_end["memory_mb"]) / (many - few)
        row = [str(batch_size), name, f"{cpu_ms:.2f}", f"{memory_kb:.2f}", f"{long_end['memory_mb']:,.0f}"]
        rows.append([*row, f"{projected * cpu_ms / 3.6e6:,.1f}", f"{LEG_BATCHES * memory_kb / 1e6:,.1f}"])
    return rows, 1e3 * (long["wall_s"] - short["wall_s"]) / (many - few)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, nargs=3, metavar=("BATCHES", "SIZE", "LEGS"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    add_options(parser, rounds=1)
    add_cache_option(parser)
    arguments = parser.parse_args()
    if arguments.one:
        n_batches, batch_size, n_legs = arguments.one
        sys.stdout.write(json.dumps(run(n_batches, batch_size, n_legs, arguments.output)) + "\n")
        return 0
    output = Workspace.of(arguments, "scale").outputs / "out"
    few, many = SMALL_BATCHES if arguments.small else BATCHES
    rows, notes = [], []
    for batch_size in BATCH_SIZES:
        more, wall_ms = cost_rows(few, many, batch_size, output)
        rows += more
        notes.append(
            f"Batches of {batch_size}: {few:,} and {many:,} of them; all processes on these cores take "
            f"{wall_ms:.1f} ms per batch, {1e3 * batch_size / wall_ms:,.0f} windows/s; 10⁹ windows are "
            f"{PROJECTED_WINDOWS / batch_size:,.0f} batches."
        )
    after_legs = run_in_process((few + many) // 2, 64, output, LEGS)["costs"]
    memory = [f"{costs[name]['memory_mb']:,.0f}" for name in SINGLE for costs in after_legs[1:]]
    by_process = (f"{name} {', '.join(memory[LEGS * i : LEGS * (i + 1)])}" for i, name in enumerate(SINGLE))
    notes.append(f"MB after each of {LEGS} legs of {(few + many) // 2:,} batches: {'; '.join(by_process)}.")
    notes.append(f"{WINDOWS_PER_RECORDING} windows per recording. A leg ends after {LEG_BATCHES:,} batches.")
    head = [
        "windows per batch",
        "",
        "ms of CPU per batch",
        "kB per batch",
        f"MB after {many:,}",
        "10⁹ windows: hours of CPU",
    ]
    table = markdown([*head, "GB in a leg"], rows)
    publish("scale", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
