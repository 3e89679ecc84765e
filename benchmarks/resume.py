"""How much time and memory does reading an inventory take? ``python benchmarks/resume.py``

``python benchmarks/resume.py``

Before and after a run the driver reads from the shards which recordings are complete. Each output of this benchmark is
written by ``Store`` in the job's order of rows, and read in a process of its own. Exit code 1 if reading takes a minute
or 2 GB. By default each case has 10⁷ windows, about 2 GB of disk at a time.
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
from listing import recording_name

LIMIT_S = 60
LIMIT_MB = 2_000

# A write task receives batches from several decode tasks in turns; each decode task has its own recordings.
DECODE_TASKS = 8
BATCH = 64
WINDOW_S = 3.0
# Odd, so that different recordings have different identities, which are unordered like the job's hashes.
GOLDEN_RATIO = np.uint64(0x9E37_79B9_7F4A_7C15)


@dataclass(frozen=True)
class OutputSpec:
    """Shape of an output.

    Attributes:
        n_windows_each: Number of windows per recording.
        shard_rows: Number of rows per shard.
        dim: Length of the vectors, which does not affect the key columns, as the last two cases show.
        share: Part of the windows of ``--windows``.
    """

    n_windows_each: int
    shard_rows: int = 32_768
    dim: int = 8
    share: float = 1.0


CASES = {
    "recordings of 12 windows": OutputSpec(12),
    "clips of 1 window": OutputSpec(1),
    "recordings of 24 h": OutputSpec(28_800),
    "clips, shards of 256 rows": OutputSpec(1, shard_rows=256),
    "a twentieth, vectors of 8": OutputSpec(12, share=0.05),
    "a twentieth, vectors of 768": OutputSpec(12, dim=768, share=0.05),
}


def identities(recordings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ``file_id`` of recordings by their number."""
    return (recordings.astype(np.uint64) * GOLDEN_RATIO).view(np.int64)


def rows_as_written(spec: OutputSpec, n_recordings: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield recording and window of each row, per shard; ``n_recordings`` is a multiple of DECODE_TASKS."""
    n_rows_each = n_recordings // DECODE_TASKS * spec.n_windows_each  # rows of a decode task
    n_batches_each = -(-n_rows_each // BATCH)
    for first in range(0, n_batches_each * DECODE_TASKS * BATCH, spec.shard_rows):
        batch, within = np.divmod(np.arange(first, first + spec.shard_rows), BATCH)
        row, task = batch // DECODE_TASKS * BATCH + within, batch % DECODE_TASKS
        task, row = task[row < n_rows_each], row[row < n_rows_each]
        recording, window = np.divmod(row, spec.n_windows_each)
        yield task * (n_recordings // DECODE_TASKS) + recording, window


def write_output(spec: OutputSpec, n_recordings: int, root: Path) -> int:
    """Write the shards of an output; return their number."""
    store = Store(str(root), settings="{}")
    vectors = np.random.default_rng(0).random(spec.shard_rows * spec.dim, np.float32)
    n_shards = 0
    for recording, window in rows_as_written(spec, n_recordings):
        n = len(recording)
        numbers, of_row = np.unique(recording, return_inverse=True)
        files = pa.array([f"s3://a-bucket/a-rather-long-prefix/{recording_name(i)}" for i in numbers.tolist()])
        columns = {
            "file": files.take(pa.array(of_row)),
            "file_id": identities(recording),
            "window_index": window,
            "n_windows": np.full(n, spec.n_windows_each),
            "start_time": window * WINDOW_S,
            "end_time": (window + 1) * WINDOW_S,
            "sample_rate": np.full(n, 48_000),
            "channels": np.full(n, 1),
            "duration": np.full(n, spec.n_windows_each * WINDOW_S),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors[: n * spec.dim]), spec.dim),
        }
        store.write_shard(pa.table(columns).cast(embeddings_schema(spec.dim)), f"bench-{n_shards:06}")
        n_shards += 1
    return n_shards


def measure(root: str, n_recordings: int) -> dict[str, float]:
    """Read an output back in this process; return the time of each step, and the peak memory before and after in MB."""
    ids = identities(np.arange(n_recordings))
    before_mb = peak_mb()
    began = time.perf_counter()
    inventory = Store(root, settings="{}").read()
    read = time.perf_counter()
    recordings = inventory.recordings()
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
        "spans": len(inventory.window_ranges),
    }


def peak_mb() -> float:
    """Return the peak resident memory on Linux; getrusage is not used, because its value is inherited at a fork."""
    kb = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert kb is not None
    return int(kb[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=10_000_000, metavar="N")
    parser.add_argument("--case", choices=CASES, help="run this case only")
    parser.add_argument("--folder", help="folder for temporary shards (default: the system's temporary folder)")
    parser.add_argument(
        "--measure", nargs=2, metavar=("ROOT", "RECORDINGS"), help="measure in this process, and print JSON"
    )
    arguments = parser.parse_args()
    if arguments.measure:
        root, n_recordings = arguments.measure
        json.dump(measure(root, int(n_recordings)), sys.stdout)
        return 0
    columns = ("windows", "recordings", "shards", "spans", "read s", "sum s", "complete s", "total s", "peak MB")
    sys.stdout.write(f"{'':28}" + "".join(f"{column:>12}" for column in columns) + "\n")
    is_within_limits = True
    for title in [arguments.case] if arguments.case else CASES:
        spec = CASES[title]
        per_task = spec.n_windows_each * DECODE_TASKS
        n_recordings = max(1, round(arguments.windows * spec.share / per_task)) * DECODE_TASKS
        with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
            n_shards = write_output(spec, n_recordings, Path(root))
            command = [sys.executable, __file__, "--measure", root, str(n_recordings)]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        is_within_limits &= figures["seconds"] < LIMIT_S and figures["peak_mb"] < LIMIT_MB
        counts = (n_recordings * spec.n_windows_each, n_recordings, n_shards, figures["spans"])
        seconds = (figures[step] for step in ("read_s", "recordings_s", "complete_s", "seconds"))
        cells = [*(f"{n:12,}" for n in counts), *(f"{s:12.1f}" for s in seconds), f"{figures['peak_mb']:12,.0f}"]
        sys.stdout.write(f"{title:28}{''.join(cells)}\n")
        sys.stdout.flush()
    return 0 if is_within_limits else 1


if __name__ == "__main__":
    sys.exit(main())
