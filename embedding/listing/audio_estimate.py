"""Estimate of the durations of recordings, from the headers of a sample of them.

A separate process reads the headers: a recording that crashes its reader must not crash the driver.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding import storage
from embedding.decoding.audio import open_recording
from embedding.decoding.audio_faults import AudioFault

SAMPLE_SIZE = 32  # recordings
SAMPLE_THREADS = 8
# Enough for any header; a header with a picture in a tag takes a second request.
HEADER_BYTES = 256 << 10
# 16-bit mono at 48 kHz, where no header of the sample could be read.
DEFAULT_BYTES_PER_S = 96_000


def estimate_durations(recordings: pa.Table) -> NDArray[np.float64]:
    """Estimate the duration of each recording.

    Bytes per second are read from the headers of a sample that is spread evenly over the recordings, by suffix.

    Args:
        recordings: Columns of RECORDINGS.

    Returns:
        Seconds, ``[recordings]``; 0 where the size is unknown.
    """
    measured: dict[str, list[float]] = {}
    rows = _sample(recordings)
    for row, rate in zip(rows, _read_rates_in_subprocess(rows), strict=True):
        if rate:
            measured.setdefault(_suffix(row["file"]), []).append(rate)
    rates = {suffix: float(np.median(values)) for suffix, values in measured.items()}
    fallback = float(np.median(list(rates.values()))) if rates else DEFAULT_BYTES_PER_S
    batches = recordings.select(["file", "size"]).to_batches()
    return np.concatenate([np.empty(0), *(_durations(batch, rates, fallback) for batch in batches)])


def _sample(recordings: pa.Table) -> list[dict[str, Any]]:
    indices = np.unique(np.linspace(0, len(recordings) - 1, SAMPLE_SIZE).astype(np.int64)) if len(recordings) else []
    # Table.take would first copy the whole listing into one chunk, and it fails where the names exceed 2 GiB.
    return [row for i in indices for row in recordings.slice(i, 1).to_pylist()]


def _durations(recordings: pa.RecordBatch, rates: dict[str, float], fallback: float) -> NDArray[np.float64]:
    sizes = np.maximum(recordings["size"].to_numpy(), 0)
    if len(rates) < 2:  # most archives have one format
        return sizes / fallback
    bytes_per_s = [rates.get(_suffix(file), fallback) for file in recordings["file"].to_pylist()]
    return sizes / bytes_per_s


def _read_rates_in_subprocess(rows: list[dict[str, Any]]) -> list[float | None]:
    """Call ``_read_rates`` in a separate process; return None for all recordings if the process dies.

    ``multiprocessing`` would run the caller's script a second time unless the script guards against it.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    request = json.dumps([{name: row[name] for name in ("file", "size")} for row in rows])
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=request,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libmpg123 prints warnings there
        env=environment,
        text=True,
        check=False,
    )
    # If the process died, the run itself will report the recording that killed it.
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else [None] * len(rows)


def _read_rates(rows: list[dict[str, Any]]) -> list[float | None]:
    with ThreadPoolExecutor(SAMPLE_THREADS) as pool:
        return list(pool.map(_read_bytes_per_s, rows))


def _read_bytes_per_s(row: dict[str, Any]) -> float | None:
    try:
        file = row["file"]
        source = storage.open_stream(file, HEADER_BYTES) if storage.is_s3(file) else file
        with open_recording(source) as recording:
            return max(row["size"], 0) / recording.duration_s
    except (OSError, AudioFault):
        return None  # the run itself will report the fault


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()  # noqa: PTH122 — pathlib takes 13 s longer for 10⁷ names


if __name__ == "__main__":
    print(json.dumps(_read_rates(json.load(sys.stdin))))  # noqa: T201 — read by _read_rates_in_subprocess
