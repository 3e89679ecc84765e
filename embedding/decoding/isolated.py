"""Decoding in a process of its own, so that a recording that ends its process becomes a failure row.

A decoder is C code over files from anywhere. After a worker has died (a segmentation fault, memory without end), the
same recordings are decoded here, and a recording that ends the process again is set aside with the kind ``crash``.
"""

import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from embedding.decoding.decode import decode
from embedding.decoding.events import DecodingEvent, Failed, NoMoreWindows, Opened, Windows
from embedding.schema.failures import Failure
from embedding.schema.recordings import PendingRecording
from embedding.schema.windows import WindowSpec

# Deaths of one recording in a process of its own, after one death in a worker: the first may be the choice of the
# kernel's out-of-memory killer.
TRIES = 2
# Above what the process takes once it has imported everything. Decoding takes some 200 MB, whatever the recording.
MEMORY_BYTES = 4 << 30

_OUT_OF_MEMORY = 77  # exit code of the process


@dataclass(frozen=True)
class _Finished:
    """Message: all recordings are decoded."""


@dataclass(frozen=True)
class _Bug:
    """Message: an exception that is nobody's recording's fault, with its traceback."""

    text: str


def decode_isolated(
    recordings: Sequence[PendingRecording], specs: Sequence[WindowSpec], batch_size: int
) -> Iterator[DecodingEvent]:
    """Decode recordings in a process of its own; arguments and events are those of ``decode``.

    After a death a new process goes on behind the last table of windows. Every table but the last is full, so the
    tables are those of a run without the death.

    Raises:
        RuntimeError: The process failed for a reason that lies in no recording; the message has its traceback.
    """
    deaths: Counter[str] = Counter()
    rest = _Rest(tuple(recordings), len(specs))
    while rest.recordings:
        opened: str | None = None
        n_since_opened = 0  # events of this recording so far, tables aside
        n_received = 0
        # Events are yielded with the next table: after a death the events behind the last table come again.
        pending: list[DecodingEvent] = []
        following = rest
        with _child(rest.recordings, specs, batch_size) as (process, messages):
            for message in messages:
                if isinstance(message, _Finished):
                    yield from pending
                    return
                if isinstance(message, _Bug):
                    raise RuntimeError(f"isolated decoding failed:\n{message.text}")
                if isinstance(message, Windows):
                    assert opened is not None
                    following = following.after(message.table, opened, n_since_opened)
                    yield from pending
                    pending = []
                    yield message
                    continue
                if isinstance(message, Opened):
                    opened, n_since_opened = message.file, 0
                n_since_opened += 1
                n_received += 1
                if n_received > rest.n_delivered:
                    pending.append(message)
            death = _describe_death(process.wait())
        if opened is None:
            raise RuntimeError(f"isolated decoding {death} before it opened a recording")
        rest = following
        deaths[opened] += 1
        if deaths[opened] == TRIES:
            yield from _set_aside(rest, opened, death)
            rest = rest.without(opened)


@dataclass(frozen=True)
class _Rest:
    """The recordings that are still to be decoded.

    Attributes:
        n_delivered: Number of leading events, tables aside, that have been yielded already.
    """

    recordings: tuple[PendingRecording, ...]
    n_targets: int
    n_delivered: int = 0

    def after(self, table: pa.Table, opened: str, n_delivered: int) -> "_Rest":
        """Return what follows ``table``, whose last window is of ``opened`` or of a recording before it."""
        first, *others = self.recordings[self._position(opened) :]
        keys = table.select(["file", "window_index"])  # without the samples
        stored = frozenset(keys.filter(pc.field("file") == opened)["window_index"].to_pylist())
        known = first.stored or (frozenset(),) * self.n_targets
        first = replace(first, stored=tuple(of_target | stored for of_target in known))
        return _Rest((first, *others), self.n_targets, n_delivered)

    def without(self, file: str) -> "_Rest":
        """Return the rest without one recording."""
        is_first = self._position(file) == 0
        others = tuple(each for each in self.recordings if each.file != file)
        return _Rest(others, self.n_targets, 0 if is_first else self.n_delivered)

    def _position(self, file: str) -> int:
        return [each.file for each in self.recordings].index(file)


def _set_aside(rest: _Rest, file: str, death: str) -> Iterator[DecodingEvent]:
    for pending in rest.recordings:
        if pending.file == file:
            message = f"the process that read it {death}, {TRIES + 1} times in a row"
            yield Failed(Failure(file, pending.file_id, pending.size, "decode", "crash", message), pending.targets)
            yield NoMoreWindows()


def _describe_death(returncode: int) -> str:
    """Return how a process ended before it had finished, as a part of a sentence."""
    if returncode < 0:
        return f"died of {signal.Signals(-returncode).name}"
    if returncode == _OUT_OF_MEMORY:
        return f"needed more than {MEMORY_BYTES >> 30} GiB"
    return f"ended with exit code {returncode}"


@contextmanager
def _child(
    recordings: Sequence[PendingRecording], specs: Sequence[WindowSpec], batch_size: int
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[Any]]]:
    """Start the process; yield the process and its messages until it ends."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Not `-m`, which would make classes of this module classes of the child's __main__.
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        stdin = process.stdin
        assert stdin is not None
        assert process.stdout is not None
        try:
            for give in (lambda: pickle.dump((recordings, specs, batch_size), stdin), stdin.close):
                with suppress(BrokenPipeError):  # the process has died already; its exit code says how
                    give()
            yield process, _messages(process.stdout)
        finally:
            process.kill()  # where nobody reads the messages any more


def _messages(stream: Any) -> Iterator[Any]:
    """Yield the messages of the process; its death may cut the last message short."""
    while True:
        try:
            yield pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):
            return


# --- in the child -----------------------------------------------------------------------------------------------


def main() -> None:
    """Decode the recordings that stdin holds; send events to stdout."""
    # A library's prints must not get between the messages.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as stream:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        recordings, specs, batch_size = pickle.load(sys.stdin.buffer)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = psutil.Process().memory_info().vms + MEMORY_BYTES
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        try:
            for event in decode(recordings, specs, batch_size):
                _send(event, stream)
            _send(_Finished(), stream)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except Exception:  # noqa: BLE001 — a bug, raised again in the parent
            _send(_Bug(traceback.format_exc()), stream)


def _send(message: object, stream: BinaryIO) -> None:
    pickle.dump(message, stream)
    stream.flush()
