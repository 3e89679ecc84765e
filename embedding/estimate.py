"""How much audio a listing holds, guessed from the headers of a few recordings. For estimates only."""

from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from embedding import storage
from embedding.audio import AudioFault, open_recording

SAMPLE = 32
# 16-bit mono at 48 kHz, where not one header of the sample could be read.
DEFAULT_BYTES_PER_S = 96_000


def audio_seconds(recordings: pa.Table) -> float:
    """Seconds of audio in ``recordings``, from bytes per second of a sample spread evenly over them, by suffix."""
    at = np.unique(np.linspace(0, len(recordings) - 1, SAMPLE).astype(np.int64))
    measured: dict[str, list[float]] = {}
    for row in recordings.take(pa.array(at)).to_pylist():
        rate = _bytes_per_s(row)
        if rate:
            measured.setdefault(_suffix(row["file"]), []).append(rate)
    rates = {suffix: float(np.median(values)) for suffix, values in measured.items()}
    fallback = float(np.median(list(rates.values()))) if rates else DEFAULT_BYTES_PER_S
    sizes = np.maximum(recordings["size"].to_numpy(), 0)
    if len(rates) < 2:  # the usual archive: one format
        return float(sizes.sum()) / fallback
    suffixes = (_suffix(file.as_py()) for file in recordings["file"])
    return float(sum(n / rates.get(suffix, fallback) for n, suffix in zip(sizes, suffixes, strict=True)))


def _bytes_per_s(row: dict[str, Any]) -> float | None:
    try:
        source = storage.open_stream(row["file"]) if storage.is_s3(row["file"]) else row["file"]
        with open_recording(source) as recording:
            return row["size"] / recording.duration_s
    except (OSError, AudioFault):
        return None  # the run itself will say why


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()
