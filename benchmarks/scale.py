"""What do driver and cluster services pay per batch, and for 10⁹ windows? ``python benchmarks/scale.py``

The job's own arrangement of Ray Data, its counting actor and its shards, around a decoder and an encoder that do
nothing: windows of 16 samples, vectors of 8 numbers. Two lengths of the same run, so that start and end drop out; what
a batch adds to CPU time and memory of each process is what no cluster can share out, since there is one of them. Once
with batches as a short run on a CPU has them and once as a long one on GPUs; then three legs one after the other, which
shows what of a leg's memory comes back.
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
from embedding.ray_runtime.progress_channel import ProgressChannel, ProgressReporter, watching
from embedding.ray_runtime.session import session
from embedding.schema.batches import hash_column, output_column, window_column, windows_schema
from embedding.schema.recordings import RECORDINGS
from embedding.schema.windows import WindowSpec
from harness import say
from job import Workplace
from tables import add_options, markdown, page, publish, question
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
# Processes there is one of in a cluster, by what stands in their command line.
SINGLE = {"driver": "benchmarks/scale.py", "GCS": "gcs_server", "counting actor": "ray::Progress"}
RUN_ID = "5ca1e0000000"  # twelve hexadecimal digits, as every run has


# --- the job, without its work ------------------------------------------------------------------------------------


def decode_nothing(recordings: pa.Table, job: Job, progress: Any) -> Iterator[pa.Table]:
    """As ``pipeline.decode_stage`` does it, batch by batch."""
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
    """As ``pipeline.EncodeStage`` tells of it."""

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
    """Memory and CPU time of one process at one moment."""

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


def run(n_batches: int, batch_size: int, n_legs: int, output: Path) -> dict[str, Any]:
    """Legs of so many batches each, in this process: seconds in all, and what each process had cost after each leg."""
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
        line = ProgressChannel()
        tables = [recordings.slice(start, TASK_RECORDINGS) for start in range(0, n, TASK_RECORDINGS)]
        found = [costs()]
        began = time.perf_counter()
        with watching(line, lambda _: None, lambda: False):
            for leg in range(n_legs):
                job = Job((Target(settings, store),), RUN_ID, batch_size, 32_768, leg=leg)
                pipeline.embed(tables, job, plan, nodes, line)
                found.append(costs())
        wall_s = time.perf_counter() - began
        assert line.read().counters.windows_written == n_legs * n * WINDOWS_PER_RECORDING
    return {"wall_s": wall_s, "costs": [{name: asdict(cost) for name, cost in each.items()} for each in found]}


def in_a_process(n_batches: int, batch_size: int, output: Path, n_legs: int = 1) -> dict[str, Any]:
    say(f"{n_batches:,} batches of {batch_size}, {n_legs} times")
    command = [sys.executable, "benchmarks/scale.py", "--one", str(n_batches), str(batch_size), str(n_legs)]
    command += ["--output", str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout.splitlines()[-1])


def slopes(few: int, many: int, batch_size: int, output: Path) -> tuple[list[list[str]], float]:
    """Rows of the table, and milliseconds a batch with all processes on this machine's cores."""
    short, long = (in_a_process(n, batch_size, output) for n in (few, many))
    projected = PROJECTED_WINDOWS / batch_size
    rows = []
    for name in SINGLE:
        before, after = ({"cpu_s": 0.0} | each["costs"][0].get(name, {}) for each in (short, long))
        small, large = (each["costs"][1][name] for each in (short, long))
        cpu_ms = 1e3 * ((large["cpu_s"] - after["cpu_s"]) - (small["cpu_s"] - before["cpu_s"])) / (many - few)
        memory_kb = 1e3 * (large["memory_mb"] - small["memory_mb"]) / (many - few)
        row = [str(batch_size), name, f"{cpu_ms:.2f}", f"{memory_kb:.2f}", f"{large['memory_mb']:,.0f}"]
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
    output = Workplace.of(arguments, "scale").outputs / "out"
    few, many = SMALL_BATCHES if arguments.small else BATCHES
    rows, notes = [], []
    for batch_size in BATCH_SIZES:
        more, wall_ms = slopes(few, many, batch_size, output)
        rows += more
        notes.append(
            f"Batches of {batch_size}: {few:,} and {many:,} of them; all processes here take {wall_ms:.1f} ms "
            f"a batch, {1e3 * batch_size / wall_ms:,.0f} windows/s; 10⁹ windows: {PROJECTED_WINDOWS / batch_size:,.0f}."
        )
    after_legs = in_a_process((few + many) // 2, 64, output, LEGS)["costs"]
    memory = [f"{each[name]['memory_mb']:,.0f}" for name in SINGLE for each in after_legs[1:]]
    by_process = (f"{name} {', '.join(memory[LEGS * at : LEGS * (at + 1)])}" for at, name in enumerate(SINGLE))
    notes.append(f"MB after each of {LEGS} legs of {(few + many) // 2:,} batches: {'; '.join(by_process)}.")
    notes.append(f"{WINDOWS_PER_RECORDING} windows a recording. A leg ends after {LEG_BATCHES:,} batches.")
    head = ["windows a batch", "", "ms of CPU a batch", "kB a batch", f"MB after {many:,}", "10⁹ windows: hours of CPU"]
    table = markdown([*head, "GB in a leg"], rows)
    publish("scale", page(question(__doc__), table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
