"""Decode recordings named on stdin, and say what came of each on stdout: ``python -m tests.support.decode_from_stdin``.

A line in is a table, as a JSON list of files. Lines out are JSON: ``{"begun": file}`` before each file, so that the
last one is to blame for the end of this process; and ``{"file": …}`` with what came of it, once its table is done.
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
from embedding.schema.windows import WindowSpec
from tests.support.decoding import EventRecord, decode

# Of 60,000 mutated recordings the slowest took 0.11 s (2026-11-21); a shared machine may stall.
SECONDS_EACH = 20
SECOND = WindowSpec(16_000, 16_000, 16_000, "pad")

Say = Callable[[dict[str, Any]], None]


def announced(say: Say) -> Callable[[str | BinaryIO], AbstractContextManager[Recording]]:
    """``open_recording``, said before, and ended by the kernel where it does not end, in whatever C code that is."""

    @contextmanager
    def opened(source: str | BinaryIO) -> Iterator[Recording]:
        say({"begun": source})
        signal.alarm(SECONDS_EACH)
        try:
            with open_recording(source) as recording:
                yield recording
        finally:
            signal.alarm(0)

    return opened


def peak_mb() -> float:
    """Peak resident memory. Not getrusage's, which is inherited from the process that started this one."""
    kb = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert kb is not None
    return int(kb[1]) / 1024


def outcomes(files: list[str]) -> Iterator[dict[str, Any]]:
    """What decoding a table of ``files`` makes of each."""
    sizes = [Path(file).stat().st_size for file in files]
    recordings = pa.table({"file": files, "size": sizes, "file_id": range(len(files))}, RECORDINGS)
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    record = EventRecord()
    for table in decode(recordings, [SECOND], 64, record):
        samples = table["window_16000"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        for row, window in zip(table.drop(["window_16000"]).to_pylist(), samples, strict=True):
            rows[row["file"]].append(row | {"finite": bool(np.isfinite(window).all())})
    for file in files:
        last = rows[file][-1] if rows[file] else {"n_windows": 0, "duration": 0, "sample_rate": 0}
        yield {
            "file": file,
            "failures": [
                (e.stage, e.kind, e.message) for e in record.events if isinstance(e, Failure) and e.file == file
            ],
            "index": [row["window_index"] for row in rows[file]],
            "finite": all(row["finite"] for row in rows[file]),
            "n_windows": last["n_windows"],
            "n_frames": round(last["duration"] * last["sample_rate"]),
            "peak_mb": peak_mb(),
        }


def main() -> None:
    # libsndfile prints to stdout what it thinks of a damaged SDS; what is said here goes past it.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)

        def say(what: dict[str, Any]) -> None:
            out.write(json.dumps(what) + "\n")
            out.flush()

        stage.open_recording = announced(say)
        for files in map(json.loads, sys.stdin):
            for outcome in outcomes(files):
                say(outcome)


if __name__ == "__main__":
    main()
