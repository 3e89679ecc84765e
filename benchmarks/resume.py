"""How much time and memory does reading an inventory take? ``python benchmarks/resume.py``

Before a run, and after it, the driver asks the shards which recordings are complete. Here each output is written by the
real ``Store``, rows in the order in which the job writes them, and asked in a process of its own. Exit code 1 where it
takes a minute or 2 GB. The default is 10⁷ windows for each case, some 2 GB of disk at a time.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.output.store import Store, embeddings_schema
from listing import name

LIMIT_S = 60
LIMIT_MB = 2_000

# Batches of a write task come from several decode tasks by turns, each of which works through its own recordings.
DECODE_TASKS = 8
BATCH = 64
WINDOW_S = 3.0
# Odd, so that different recordings have different identities; those of the job are hashes, too: in no order at all.
GOLDEN_RATIO = np.uint64(0x9E37_79B9_7F4A_7C15)


@dataclass(frozen=True)
class Case:
    """An output: ``share`` of the windows asked for, in shards of ``shard_rows``, with vectors of ``dim``."""

    n_windows_each: int  # of a recording
    shard_rows: int = 32_768
    dim: int = 8  # of which the key columns know nothing, as the last two cases show
    share: float = 1.0


CASES = {
    "recordings of 12 windows": Case(12),
    "clips of 1 window": Case(1),
    "recordings of 24 h": Case(28_800),
    "clips, shards of 256 rows": Case(1, shard_rows=256),
    "a twentieth, vectors of 8": Case(12, share=0.05),
    "a twentieth, vectors of 768": Case(12, dim=768, share=0.05),
}


def identities(recordings: NDArray[np.int64]) -> NDArray[np.int64]:
    """``file_id`` of recordings by number."""
    return (recordings.astype(np.uint64) * GOLDEN_RATIO).view(np.int64)


def rows_as_written(case: Case, n_recordings: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Recording and window of each row, a shard at a time. ``n_recordings`` is a multiple of DECODE_TASKS."""
    n_rows_each = n_recordings // DECODE_TASKS * case.n_windows_each  # of a decode task
    n_batches_each = -(-n_rows_each // BATCH)
    for first in range(0, n_batches_each * DECODE_TASKS * BATCH, case.shard_rows):
        batch, within = np.divmod(np.arange(first, first + case.shard_rows), BATCH)
        row, task = batch // DECODE_TASKS * BATCH + within, batch % DECODE_TASKS
        task, row = task[row < n_rows_each], row[row < n_rows_each]
        recording, window = np.divmod(row, case.n_windows_each)
        yield task * (n_recordings // DECODE_TASKS) + recording, window


def write_output(case: Case, n_recordings: int, root: Path) -> int:
    """Write the shards; returns how many."""
    store = Store(str(root), settings="{}")
    vectors = np.random.default_rng(0).random(case.shard_rows * case.dim, np.float32)
    n_shards = 0
    for recording, window in rows_as_written(case, n_recordings):
        n = len(recording)
        numbers, of_row = np.unique(recording, return_inverse=True)
        files = pa.array([f"s3://a-bucket/a-rather-long-prefix/{name(i)}" for i in numbers.tolist()])
        columns = {
            "file": files.take(pa.array(of_row)),
            "file_id": identities(recording),
            "window_index": window,
            "n_windows": np.full(n, case.n_windows_each),
            "start_time": window * WINDOW_S,
            "end_time": (window + 1) * WINDOW_S,
            "sample_rate": np.full(n, 48_000),
            "channels": np.full(n, 1),
            "duration": np.full(n, case.n_windows_each * WINDOW_S),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors[: n * case.dim]), case.dim),
        }
        store.write_shard(pa.table(columns).cast(embeddings_schema(case.dim)), f"bench-{n_shards:06}")
        n_shards += 1
    return n_shards


def measure(root: str, n_recordings: int) -> dict[str, float]:
    """Read ``root`` back in this process: seconds of each step, and its peak memory before and after, in MB."""
    ids = identities(np.arange(n_recordings))
    before_mb = peak_mb()
    began = time.perf_counter()
    stored = Store(root, settings="{}").read()
    read = time.perf_counter()
    recordings = stored.recordings()
    summed_up = time.perf_counter()
    complete = recordings.is_complete(ids)
    ended = time.perf_counter()
    assert complete.all()
    assert not recordings.is_complete(~ids[:1000]).any()
    return {
        "read_s": read - began,
        "recordings_s": summed_up - read,
        "complete_s": ended - summed_up,
        "seconds": ended - began,
        "before_mb": before_mb,
        "peak_mb": peak_mb(),
        "spans": len(stored.window_ranges),
    }


def peak_mb() -> float:
    """Peak resident memory (Linux). Not getrusage's, which is inherited from the process that started this one."""
    kb = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert kb is not None
    return int(kb[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=10_000_000, metavar="N")
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--folder", help="for the shards, which are removed again (default: the system's for such)")
    parser.add_argument("--measure", nargs=2, metavar=("ROOT", "RECORDINGS"), help="in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        root, n_recordings = arguments.measure
        json.dump(measure(root, int(n_recordings)), sys.stdout)
        return 0
    columns = ("windows", "recordings", "shards", "spans", "read s", "sum s", "complete s", "total s", "peak MB")
    sys.stdout.write(f"{'':28}" + "".join(f"{column:>12}" for column in columns) + "\n")
    within = True
    for title in [arguments.case] if arguments.case else CASES:
        case = CASES[title]
        per_task = case.n_windows_each * DECODE_TASKS
        n_recordings = max(1, round(arguments.windows * case.share / per_task)) * DECODE_TASKS
        with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
            n_shards = write_output(case, n_recordings, Path(root))
            command = [sys.executable, __file__, "--measure", root, str(n_recordings)]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        within &= figures["seconds"] < LIMIT_S and figures["peak_mb"] < LIMIT_MB
        counts = (n_recordings * case.n_windows_each, n_recordings, n_shards, figures["spans"])
        seconds = (figures[step] for step in ("read_s", "recordings_s", "complete_s", "seconds"))
        cells = [*(f"{n:12,}" for n in counts), *(f"{s:12.1f}" for s in seconds), f"{figures['peak_mb']:12,.0f}"]
        sys.stdout.write(f"{title:28}{''.join(cells)}\n")
        sys.stdout.flush()
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
