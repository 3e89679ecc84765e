"""Durations of listed recordings, estimated from the headers of a few recordings.

Headers are read in a process of their own: a recording that kills its reader must not kill the driver.
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
from embedding.decoding.audio import AudioFault, open_recording

SAMPLE = 32
SAMPLE_THREADS = 8
# Enough for any header; a tag with a picture in it takes a second request.
HEADER_BYTES = 256 << 10
# 16-bit mono at 48 kHz, where not one header of the sample could be read.
DEFAULT_BYTES_PER_S = 96_000


def estimate_durations(recordings: pa.Table) -> NDArray[np.float64]:
    """Estimate the duration of each recording.

    Bytes per second are read from the headers of a sample that is spread evenly over the recordings, by suffix.

    Args:
        recordings: columns of RECORDINGS.

    Returns:
        Seconds, ``[recordings]``; 0 where the size is unknown.
    """
    measured: dict[str, list[float]] = {}
    rows = _sample(recordings)
    for row, rate in zip(rows, _rates_apart(rows), strict=True):
        if rate:
            measured.setdefault(_suffix(row["file"]), []).append(rate)
    rates = {suffix: float(np.median(values)) for suffix, values in measured.items()}
    fallback = float(np.median(list(rates.values()))) if rates else DEFAULT_BYTES_PER_S
    batches = recordings.select(["file", "size"]).to_batches()
    return np.concatenate([np.empty(0), *(_durations(batch, rates, fallback) for batch in batches)])


def _sample(recordings: pa.Table) -> list[dict[str, Any]]:
    at = np.unique(np.linspace(0, len(recordings) - 1, SAMPLE).astype(np.int64)) if len(recordings) else []
    # Not Table.take, which first copies the whole listing into one chunk, and fails where its names exceed 2 GiB.
    return [row for i in at for row in recordings.slice(i, 1).to_pylist()]


def _durations(recordings: pa.RecordBatch, rates: dict[str, float], fallback: float) -> NDArray[np.float64]:
    sizes = np.maximum(recordings["size"].to_numpy(), 0)
    if len(rates) < 2:  # the usual archive: one format
        return sizes / fallback
    bytes_per_s = [rates.get(_suffix(file), fallback) for file in recordings["file"].to_pylist()]
    return sizes / bytes_per_s


def _rates_apart(rows: list[dict[str, Any]]) -> list[float | None]:
    """``_rates`` from a process of its own; nothing is known where that dies.

    Not one of ``multiprocessing``, which would run the caller's script a second time unless it guards against that.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    asked = json.dumps([{name: row[name] for name in ("file", "size")} for row in rows])
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=asked,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libmpg123 complains there
        env=environment,
        text=True,
        check=False,
    )
    # If it died, the run itself will find the recording that did it.
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else [None] * len(rows)


def _rates(rows: list[dict[str, Any]]) -> list[float | None]:
    with ThreadPoolExecutor(SAMPLE_THREADS) as pool:
        return list(pool.map(_bytes_per_s, rows))


def _bytes_per_s(row: dict[str, Any]) -> float | None:
    try:
        file = row["file"]
        source = storage.open_stream(file, HEADER_BYTES) if storage.is_s3(file) else file
        with open_recording(source) as recording:
            return max(row["size"], 0) / recording.duration_s
    except (OSError, AudioFault):
        return None  # the run itself will say why


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()  # noqa: PTH122 — pathlib takes 13 s longer for 10⁷ names


if __name__ == "__main__":
    print(json.dumps(_rates(json.load(sys.stdin))))  # noqa: T201 — to the process that asks
