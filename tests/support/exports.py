"""Exports of a small output: its content, the command, and rows of jobs.pool."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.pooling.pool import pooled_output
from jobs.export import main
from tests.support.commands import Outcome
from tests.support.shards import write_output

DIM = 16
N_WINDOWS = 7  # of each recording
SETTINGS: dict[str, Any] = {"model": "a model", "checkpoint": "hf://somewhere"}
FILES = ("/archive/north/a.wav", '/archive/a "b", ü.wav', "/archive/c's.wav", "s3://bucket/d.flac")


def write_export_source(root: Path | str, n_windows: int = N_WINDOWS) -> None:
    """Write an output with random vectors of FILES."""
    rng = np.random.default_rng(0)
    write_output(
        str(root), {file: rng.standard_normal((n_windows, DIM)).astype(np.float32) for file in FILES}, SETTINGS
    )


def write_pooled(root: Path, pooling: str, vectors: pa.Array) -> None:
    """Write the rows of jobs.pool for the first FILES."""
    n = len(vectors)
    recordings = {
        "file": list(FILES[:n]),
        "file_id": np.arange(n),
        "n_windows": pa.array([N_WINDOWS] * n, pa.int32()),
        "duration": np.arange(n) + 0.5,
        "sample_rate": pa.array([48_000] * n, pa.int32()),
        "channels": pa.array([1] * n, pa.int32()),
        "embedding": vectors,
    }
    pooled_output(str(root), (pooling,), None, json.dumps(SETTINGS)).write(pa.table(recordings), "one", np.arange(n))


def run_export(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run ``python -m jobs.export`` in this process."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def read_rows(output: Path) -> pa.Table:
    """Return all windows, shard after shard."""
    return pa.concat_tables([pq.read_table(shard) for shard in sorted((output / "embeddings").iterdir())])


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())
