"""Time and memory of the driver before a run over 10⁷ recordings.

``python benchmarks/planning.py``

The job's steps before Ray starts, over a simulated listing of S3 (pages of 1,000 objects, without latency) and an
output that holds half of the listing, one row per recording: list, read the output back, compare, cut into legs and
tasks. 10⁵ to 10⁷ recordings, each number in a process of its own; memory is the peak of the process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from harness import log
from listing import list_s3
from resume import peak_mb
from tables import add_options, markdown, page, publish

COUNTS = (100_000, 1_000_000, 10_000_000)
SMALL_COUNTS = (1_000, 10_000)
WINDOWS_PER_RECORDING = 100  # 10⁷ recordings have 10⁹ windows
BATCH_SIZE = 1024
N_DECODERS = 512
SHARD_ROWS = 32_768

T = TypeVar("T")


def write_half(listed: pa.Table, root: str) -> None:
    """Write an output with one row for each recording of the first half."""
    from embedding.output.store import Store, embeddings_schema

    store, dim = Store(root, "{}"), 8
    for start in range(0, len(listed) // 2, SHARD_ROWS):
        part = listed.slice(start, min(SHARD_ROWS, len(listed) // 2 - start))
        n = len(part)
        columns = {
            "file": part["file"],
            "file_id": part["file_id"],
            "window_index": np.zeros(n),
            "n_windows": np.ones(n),
            "start_time": np.zeros(n),
            "end_time": np.ones(n),
            "sample_rate": np.full(n, 48_000),
            "channels": np.ones(n),
            "duration": np.ones(n),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(n * dim, np.float32)), dim),
        }
        store.write_shard(pa.table(columns).cast(embeddings_schema(dim)), f"bench-{start:09}")


def measure(n: int) -> dict[str, Any]:
    """Run the steps in this process; return the time of each step and the peak memory."""
    from embedding.listing.listing import list_recordings, n_bytes
    from embedding.output.backlog import Backlog, former_versions, pending_recordings
    from embedding.output.store import Store
    from embedding.planning.work_sizes import split_into_legs, split_into_tasks

    seconds: dict[str, float] = {}

    def timed(step: str, function: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = function()
        seconds[step] = time.perf_counter() - began
        return result

    list_s3(n)
    recordings = timed("list", lambda: list_recordings(["s3://a-bucket/a-rather-long-prefix"])).recordings
    with tempfile.TemporaryDirectory() as root:
        write_half(recordings, root)
        store = Store(root, "{}")
        inventory = timed("read back", store.read)
        former = timed("former versions", lambda: former_versions(recordings, inventory, store, thorough=True))
        work = timed("compare", lambda: Backlog.of(recordings, former, inventory, retry_failed=False))
        todo = timed("what is left", lambda: pending_recordings([(work, inventory)]))
    batches_per_byte = len(todo) * WINDOWS_PER_RECORDING / BATCH_SIZE / n_bytes(todo)
    all_legs = timed("legs", lambda: split_into_legs(todo, batches_per_byte))
    n_tasks = timed("tasks", lambda: sum(len(split_into_tasks(leg, N_DECODERS)) for leg in all_legs))
    assert len(todo) == n - n // 2
    return {"seconds": seconds, "peak_mb": peak_mb(), "n_legs": len(all_legs), "n_tasks": n_tasks}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, metavar="RECORDINGS", help=argparse.SUPPRESS)
    add_options(parser, rounds=1)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(measure(arguments.one)) + "\n")
        return 0
    rows: list[list[str]] = []
    steps: tuple[str, ...] = ()
    for n in SMALL_COUNTS if arguments.small else COUNTS:
        log(f"{n:,} recordings")
        command = [sys.executable, __file__, "--one", str(n)]
        figures = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        steps, seconds = zip(*figures["seconds"].items(), strict=True)
        cells = [f"{n:,}", *(f"{s:.1f}" for s in [*seconds, sum(seconds)])]
        rows.append([*cells, f"{figures['peak_mb']:,.0f}", f"{figures['n_legs']}", f"{figures['n_tasks']:,}"])
    table = markdown(["recordings", *(f"{step} s" for step in steps), "in all s", "peak MB", "legs", "tasks"], rows)
    notes = [
        f"{WINDOWS_PER_RECORDING} windows per recording, batches of {BATCH_SIZE}, {N_DECODERS} decoders; half of the "
        "recordings are stored.",
        "S3 adds about a tenth of a second per page, that is per thousand recordings, to *list*.",
    ]
    publish("planning", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
