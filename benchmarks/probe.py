"""Time and memory of a probe on 200,000 windows.

``python benchmarks/probe.py``

Runs jobs.probe over an output of 250,000 windows of 768 numbers, a fifth of them for the test: once with one of twenty
classes per window, once with up to three classes per window.
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
from harness import TOTAL, Command, log, measure_all
from tables import Spread, add_options, markdown, page, publish

N_WINDOWS, SMALL_WINDOWS = 250_000, 10_000
N_CLASSES = 20
WINDOWS_PER_RECORDING = 12
DIM = 768
SHARD_RECORDINGS = 2_048


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=3)
    arguments = parser.parse_args()
    n_windows, n_rounds = (SMALL_WINDOWS, 1) if arguments.small else (N_WINDOWS, arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        log(f"writing {n_windows:,} windows")
        write_output(Path(folder), n_windows // WINDOWS_PER_RECORDING)
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
    publish("probe", page(__doc__, table, notes), save=arguments.save)
    return 0


def write_output(root: Path, n_recordings: int) -> None:
    """Write recordings with one to three classes, and two files of labels: the first class only, and all classes."""
    rng = np.random.default_rng(0)
    class_centres = rng.standard_normal((N_CLASSES, DIM)).astype(np.float32) / 4
    store = Store(str(root), settings="{}")
    classes = [rng.choice(N_CLASSES, rng.integers(1, 4), replace=False) for _ in range(n_recordings)]
    for first in range(0, n_recordings, SHARD_RECORDINGS):
        numbers = np.arange(first, min(first + SHARD_RECORDINGS, n_recordings))
        centres = np.stack([class_centres[classes[i]].sum(axis=0) for i in numbers])
        centres += rng.standard_normal(centres.shape, np.float32) / 4  # differs between recordings of a class
        recording, window = (
            np.repeat(numbers, WINDOWS_PER_RECORDING),
            np.tile(np.arange(WINDOWS_PER_RECORDING), len(numbers)),
        )
        vectors = np.repeat(centres, WINDOWS_PER_RECORDING, axis=0) + rng.standard_normal(
            (len(recording), DIM), np.float32
        )
        columns = {
            "file": [file_name(i) for i in recording.tolist()],
            "file_id": recording,
            "window_index": window,
            "n_windows": np.full(len(recording), WINDOWS_PER_RECORDING),
            "start_time": window * 5.0,
            "end_time": window * 5.0 + 5,
            "sample_rate": np.full(len(recording), 48_000),
            "channels": np.full(len(recording), 1),
            "duration": np.full(len(recording), WINDOWS_PER_RECORDING * 5.0),
            "embedding": column(vectors),
        }
        store.write_shard(pa.table(columns).cast(embeddings_schema(DIM)), f"bench-{first:06}")
    labels = [[f"species {i}" for i in own_classes] for own_classes in classes]
    files = [file_name(i) for i in range(n_recordings)]
    pq.write_table(pa.table({"file": files, "label": [own_labels[0] for own_labels in labels]}), root / "one.parquet")
    pq.write_table(pa.table({"file": files, "label": labels}), root / "several.parquet")


def file_name(recording: int) -> str:
    return f"/archive/{recording:07}.wav"


if __name__ == "__main__":
    sys.exit(main())
