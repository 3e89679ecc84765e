"""How long, and how much memory, does a probe on 200,000 windows take? ``python benchmarks/probe.py``

The job itself over an output of 250,000 windows of 768 numbers, a fifth of them for the test: twenty classes of which
each window has one, and the same of which it may have three.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding.output.store import Store, embeddings_schema
from embedding.schema.vectors import column
from harness import TOTAL, Command, measure_all, say
from tables import Spread, add_options, markdown, page, publish, question

N_WINDOWS, SMALL_WINDOWS = 250_000, 10_000
N_CLASSES = 20
N_WINDOWS_EACH = 12  # of a recording
DIM = 768
SHARD_RECORDINGS = 2_048


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=3)
    arguments = parser.parse_args()
    n_windows, n_rounds = (SMALL_WINDOWS, 1) if arguments.small else (N_WINDOWS, arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        say(f"writing {n_windows:,} windows")
        write_output(Path(folder), n_windows // N_WINDOWS_EACH)
        argv = [sys.executable, "-m", "jobs.probe", folder]
        commands = [
            Command(
                f"{kind} label a window", [*argv, "--labels", f"{folder}/{kind}.parquet", "--name", kind, "--replace"]
            )
            for kind in ("one", "several")
        ]
        results = measure_all(commands, n_rounds)
    rows = [
        [
            name,
            Spread.of([run.wall_s for run in runs]).text(),
            Spread.of([run.cpu_s for run in runs]).text(),
            f"{max(run.peak_mb.get(TOTAL, 0) for run in runs):,.0f}",
        ]
        for name, runs in results.items()
    ]
    notes = [f"{n_windows:,} windows of {DIM} numbers, {N_CLASSES} classes."]
    table = markdown(["", "s", "s of CPU", "MB"], rows)
    publish("probe", page(question(__doc__), table, notes), save=arguments.save)
    return 0


def write_output(root: Path, n_recordings: int) -> None:
    """Recordings with one to three classes, and their labels: the first alone, and all."""
    rng = np.random.default_rng(0)
    places = rng.standard_normal((N_CLASSES, DIM)).astype(np.float32) / 4
    store = Store(str(root), settings="{}")
    classes = [rng.choice(N_CLASSES, rng.integers(1, 4), replace=False) for _ in range(n_recordings)]
    for first in range(0, n_recordings, SHARD_RECORDINGS):
        numbers = np.arange(first, min(first + SHARD_RECORDINGS, n_recordings))
        centres = np.stack([places[classes[at]].sum(axis=0) for at in numbers])
        centres += rng.standard_normal(centres.shape, np.float32) / 4  # what only marks the recording
        recording, window = np.repeat(numbers, N_WINDOWS_EACH), np.tile(np.arange(N_WINDOWS_EACH), len(numbers))
        vectors = np.repeat(centres, N_WINDOWS_EACH, axis=0) + rng.standard_normal((len(recording), DIM), np.float32)
        columns = {
            "file": [name(at) for at in recording.tolist()],
            "file_id": recording,
            "window_index": window,
            "n_windows": np.full(len(recording), N_WINDOWS_EACH),
            "start_time": window * 5.0,
            "end_time": window * 5.0 + 5,
            "sample_rate": np.full(len(recording), 48_000),
            "channels": np.full(len(recording), 1),
            "duration": np.full(len(recording), N_WINDOWS_EACH * 5.0),
            "embedding": column(vectors),
        }
        store.write_shard(pa.table(columns).cast(embeddings_schema(DIM)), f"bench-{first:06}")
    labels = [[f"species {at}" for at in own] for own in classes]
    files = [name(at) for at in range(n_recordings)]
    pq.write_table(pa.table({"file": files, "label": [own[0] for own in labels]}), root / "one.parquet")
    pq.write_table(pa.table({"file": files, "label": labels}), root / "several.parquet")


def name(recording: int) -> str:
    return f"/archive/{recording:07}.wav"


if __name__ == "__main__":
    sys.exit(main())
