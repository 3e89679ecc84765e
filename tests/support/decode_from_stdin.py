"""Decode recordings that stdin names, and print the outcome of each: ``python -m tests.support.decode_from_stdin``.

A line of the input is a table of recordings, as a JSON list of files. Lines of the output are JSON: ``{"begun": file}``
before each file, so that the last of these lines names the file that ended this process; and ``{"file": …}`` with the
outcome of a file after its table is decoded.
"""

import json
import os
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from embedding.decoding import decode as stage
from embedding.decoding.audio import Recording, open_recording
from embedding.schema.failures import Failure
from embedding.schema.recordings import RECORDINGS
from tests.support.decoding import SECOND, EventRecord, decode, samples_of

# Of 60,000 mutated recordings the slowest took 0.11 s (2026-11-21); a shared machine may stall.
MOST_SECONDS = 20

Print = Callable[[dict[str, Any]], None]


def announced(print_line: Print) -> Callable[[str | BinaryIO], AbstractContextManager[Recording]]:
    """Return ``open_recording`` that prints the file first; the kernel ends the process if decoding takes too long."""

    @contextmanager
    def opened(source: str | BinaryIO) -> Iterator[Recording]:
        print_line({"begun": source})
        signal.alarm(MOST_SECONDS)
        try:
            with open_recording(source) as recording:
                yield recording
        finally:
            signal.alarm(0)

    return opened


def peak_mb() -> float:
    """Return the peak resident memory; the value of getrusage is inherited from the parent process."""
    kb = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert kb is not None
    return int(kb[1]) / 1024


def outcomes(files: list[str]) -> Iterator[dict[str, Any]]:
    """Decode a table of files; yield the outcome of each file."""
    sizes = [Path(file).stat().st_size for file in files]
    recordings = pa.table({"file": files, "size": sizes, "file_id": range(len(files))}, RECORDINGS)
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    record = EventRecord()
    for table in decode(recordings, [SECOND], 64, record):
        for row, window in zip(table.drop(["window_16000"]).to_pylist(), samples_of(table), strict=True):
            rows[row["file"]].append(row | {"finite": bool(np.isfinite(window).all())})
    for file in files:
        last = rows[file][-1] if rows[file] else {"n_windows": 0, "duration": 0, "sample_rate": 0}
        yield {
            "file": file,
            "failures": [
                (event.stage, event.kind, event.message)
                for event in record.events
                if isinstance(event, Failure) and event.file == file
            ],
            "index": [row["window_index"] for row in rows[file]],
            "finite": all(row["finite"] for row in rows[file]),
            "n_windows": last["n_windows"],
            "n_frames": round(last["duration"] * last["sample_rate"]),
            "peak_mb": peak_mb(),
        }


def main() -> None:
    # libsndfile prints messages about damaged SDS files to stdout, so file descriptor 1 leads to stderr from here on.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)

        def print_line(line: dict[str, Any]) -> None:
            out.write(json.dumps(line) + "\n")
            out.flush()

        stage.open_recording = announced(print_line)
        for files in map(json.loads, sys.stdin):
            for outcome in outcomes(files):
                print_line(outcome)


if __name__ == "__main__":
    main()
