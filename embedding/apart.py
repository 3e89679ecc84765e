"""Decoding in a process of its own: what kills that process becomes a failure row.

A decoder is C code over files that anybody made. Once it has ended a worker (a segmentation fault, memory without end),
the same recordings are decoded here, and the one that does it again is set aside with the kind ``crash``.
"""

import os
import pickle
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from embedding.decode import Failure, Observer, decode
from embedding.windows import WindowSpec

# Deaths of one recording here, after one in the open: once may be the kernel's choice of a victim.
TRIES = 2
# Above what the process takes once it has imported everything. Decoding takes some 200 MB, whatever the recording.
MEMORY_BYTES = 4 << 30


def decode_apart(recordings: pa.Table, spec: WindowSpec, batch_size: int, observer: Observer) -> Iterator[pa.Table]:
    """``decode``, with the same arguments and results, and one kind of failure more.

    After a death everything up to it is decoded again, so that batches are those of a run without it; what has been
    yielded is not yielded twice.

    Raises:
        RuntimeError: the process could not do its work, which is nobody's recording's fault; with its traceback.
    """
    deaths: Counter[str] = Counter()
    n_yielded = 0
    while True:
        reading: str | None = None
        told: list[tuple[str, tuple[Any, ...]]] = []  # since the last table: what follows a death is told again
        n_tables = 0
        with _child(recordings, spec, batch_size) as (process, messages):
            for name, values in messages:
                if name == "windows":
                    n_tables += 1
                    if n_tables > n_yielded:
                        _tell(observer, told)
                        n_yielded += 1
                        yield values[0]
                    told = []
                elif name == "raised":
                    raise RuntimeError(f"decoding apart failed:\n{values[0]}")
                else:
                    told.append((name, values))
                    reading = values[0] if name == "reading" else reading
            death = _death(process.wait())
        if death is None:
            _tell(observer, told)
            return
        if reading is None:
            raise RuntimeError(f"decoding apart {death} before it read anything")
        deaths[reading] += 1
        if deaths[reading] == TRIES:
            _set_aside(recordings, reading, death, observer)
            recordings = recordings.filter(pc.field("file") != reading)


def _tell(observer: Observer, told: list[tuple[str, tuple[Any, ...]]]) -> None:
    for name, values in told:
        getattr(observer, name)(*values)


def _set_aside(recordings: pa.Table, file: str, death: str, observer: Observer) -> None:
    for row in recordings.filter(pc.field("file") == file).to_pylist():
        message = f"the process that read it {death}, {TRIES + 1} times in a row"
        observer.failed(Failure(file, row["file_id"], row["size"], "decode", "crash", message))
        observer.without_windows()


def _death(returncode: int) -> str | None:
    """How a process ended that should have ended well, for a sentence; None if it did."""
    if returncode < 0:
        return f"died of {signal.Signals(-returncode).name}"
    return {0: None, _OUT_OF_MEMORY: f"needed more than {MEMORY_BYTES >> 30} GiB"}.get(
        returncode, f"ended with exit code {returncode}"
    )


@contextmanager
def _child(recordings: pa.Table, spec: WindowSpec, batch_size: int) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """The process and what it tells, as pairs of a name and values, until it ends."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((recordings, spec, batch_size), process.stdin)
            process.stdin.close()
            yield process, _messages(process.stdout)
        finally:
            process.kill()  # nobody listens any more


def _messages(stream: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    while True:
        try:
            yield pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):  # it ended, perhaps in mid-sentence
            return


# --- in the child -----------------------------------------------------------------------------------------------

_OUT_OF_MEMORY = 77


class _Teller(Observer):
    """An observer that hands on what it is told, call by call."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def reading(self, file: str) -> None:
        self.tell("reading", file)

    def failed(self, failure: Failure) -> None:
        self.tell("failed", failure)

    def unchanged(self, file_id: int) -> None:
        self.tell("unchanged", file_id)

    def decoded(self, audio_s: float) -> None:
        self.tell("decoded", audio_s)

    def without_windows(self) -> None:
        self.tell("without_windows")

    def tell(self, name: str, *values: Any) -> None:
        pickle.dump((name, values), self._stream)
        self._stream.flush()


def _main() -> None:
    # What a library prints must not get between the messages.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as stream:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        teller = _Teller(stream)
        recordings, spec, batch_size = pickle.load(sys.stdin.buffer)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY_BYTES, hard))
        try:
            for table in decode(recordings, spec, batch_size, teller):
                teller.tell("windows", table)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except Exception:  # noqa: BLE001 — a bug, raised again where it can be seen
            import traceback

            teller.tell("raised", traceback.format_exc())


if __name__ == "__main__":
    _main()
