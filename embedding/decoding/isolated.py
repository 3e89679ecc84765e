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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from embedding.decoding.decode import Observer, decode
from embedding.schema.batches import WANTED, wanted_by_all
from embedding.schema.failures import Failure
from embedding.schema.windows import WindowSpec

# Deaths of one recording here, after one in the open: once may be the kernel's choice of a victim.
TRIES = 2
# Above what the process takes once it has imported everything. Decoding takes some 200 MB, whatever the recording.
MEMORY_BYTES = 4 << 30


# A method of an observer with its arguments; or ``windows``, ``raised`` or, with nothing left to do, ``finished``.
_Message = tuple[str, tuple[Any, ...]]


def decode_apart(
    recordings: pa.Table, specs: Sequence[WindowSpec], batch_size: int, observer: Observer
) -> Iterator[pa.Table]:
    """``decode``, with the same arguments and results, and one kind of failure more.

    After a death another process goes on behind the last table. Tables but the last are full, so they are those of a
    run without the death.

    Raises:
        RuntimeError: the process could not do its work, which is nobody's recording's fault; with its traceback.
    """
    deaths: Counter[str] = Counter()
    rest = _Rest.of(recordings, len(specs))
    while len(rest.recordings):
        reading: str | None = None
        n_since = 0  # messages since it was begun
        n_heard = 0
        pending: list[_Message] = []  # handed on with the next table: after a death, what came behind it is told again
        following = rest
        with _child(rest.recordings, specs, batch_size) as (process, messages):
            for name, values in messages:
                if name == "finished":
                    _tell(observer, pending)
                    return
                if name == "raised":
                    raise RuntimeError(f"decoding apart failed:\n{values[0]}")
                if name == "windows":
                    assert reading is not None
                    following = following.behind(values[0], reading, n_since)
                    _tell(observer, pending)
                    pending = []
                    yield values[0]
                    continue
                reading, n_since = (values[0], 1) if name == "reading" else (reading, n_since + 1)
                n_heard += 1
                if n_heard > rest.n_told:
                    pending.append((name, values))
            death = _death(process.wait())
        if reading is None:
            raise RuntimeError(f"decoding apart {death} before it read anything")
        rest = following
        deaths[reading] += 1
        if deaths[reading] == TRIES:
            _set_aside(rest, reading, death, observer)
            rest = rest.without(reading)


@dataclass(frozen=True)
class _Rest:
    """What is left to decode, as ``decode`` takes it."""

    recordings: pa.Table
    n_targets: int
    n_told: int = 0  # of what decoding it will tell, so much at its beginning has been told

    @classmethod
    def of(cls, recordings: pa.Table, n_targets: int) -> "_Rest":
        if "stored" not in recordings.column_names:
            nothing = pa.nulls(len(recordings), pa.list_(pa.list_(pa.int32())))
            recordings = recordings.append_column("stored", nothing)
        return cls(recordings, n_targets)

    def behind(self, table: pa.Table, reading: str, n_told: int) -> "_Rest":
        """What follows ``table``, the last window of which is of ``reading`` or of one before."""
        rest = self.recordings.slice(self.recordings["file"].index(reading).as_py())
        index = table.select(["file", "window_index"])  # without the samples
        windows = index.filter(pc.field("file") == reading)["window_index"].to_pylist()
        stored = rest["stored"].to_pylist()
        stored[0] = [[*(of_target or []), *windows] for of_target in stored[0] or [None] * self.n_targets]
        at = rest.column_names.index("stored")
        return _Rest(
            rest.set_column(at, "stored", pa.array(stored, rest.schema.field(at).type)), self.n_targets, n_told
        )

    def without(self, file: str) -> "_Rest":
        is_first = self.recordings["file"][0].as_py() == file
        others = self.recordings.filter(pc.field("file") != file)
        return _Rest(others, self.n_targets, 0 if is_first else self.n_told)


def _tell(observer: Observer, messages: list[_Message]) -> None:
    for name, values in messages:
        getattr(observer, name)(*values)


def _set_aside(rest: _Rest, file: str, death: str, observer: Observer) -> None:
    for row in rest.recordings.filter(pc.field("file") == file).to_pylist():
        message = f"the process that read it {death}, {TRIES + 1} times in a row"
        failure = Failure(file, row["file_id"], row["size"], "decode", "crash", message)
        observer.failed(failure, row.get(WANTED[0], wanted_by_all(rest.n_targets)))
        observer.without_windows()


def _death(returncode: int) -> str:
    """How a process ended before it had finished, for a sentence."""
    if returncode < 0:
        return f"died of {signal.Signals(-returncode).name}"
    if returncode == _OUT_OF_MEMORY:
        return f"needed more than {MEMORY_BYTES >> 30} GiB"
    return f"ended with exit code {returncode}"


@contextmanager
def _child(
    recordings: pa.Table, specs: Sequence[WindowSpec], batch_size: int
) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """The process and what it tells, as pairs of a name and values, until it ends."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        stdin = process.stdin
        assert stdin is not None
        assert process.stdout is not None
        try:
            for give in (lambda: pickle.dump((recordings, specs, batch_size), stdin), stdin.close):
                with suppress(BrokenPipeError):  # it has died already: how, its exit code says
                    give()
            yield process, _messages(process.stdout)
        finally:
            process.kill()  # nobody listens any more


def _messages(stream: Any) -> Iterator[_Message]:
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

    def failed(self, failure: Failure, wanted: int) -> None:
        self.tell("failed", failure, wanted)

    def unchanged(self, file_id: int, wanted: int) -> None:
        self.tell("unchanged", file_id, wanted)

    def decoded(self, audio_s: float, n_bytes: int) -> None:
        self.tell("decoded", audio_s, n_bytes)

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
        recordings, specs, batch_size = pickle.load(sys.stdin.buffer)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = psutil.Process().memory_info().vms + MEMORY_BYTES
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        try:
            for table in decode(recordings, specs, batch_size, teller):
                teller.tell("windows", table)
            teller.tell("finished")
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except Exception:  # noqa: BLE001 — a bug, raised again where it can be seen
            import traceback

            teller.tell("raised", traceback.format_exc())


if __name__ == "__main__":
    _main()
