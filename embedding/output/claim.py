"""One run at a time on an output: a claim that lives as long as the process that made it.

    OUTPUT/claim.json   who writes here, and how often it has said so

The file is created exclusively, renewed by a thread, and removed at the end. A run that dies leaves it behind; the next
one takes it over once the owner is known to be dead: at once where its process can be looked up, else after LAPSE_S
without a renewal. Clocks of two machines are never compared: the one that waits uses its own.

A lapsed claim is removed only under a claim of its own on that (``claim.json.RUN``, of the dead run's id), after
another look: of two that find it lapsed, the slower would otherwise remove what the faster has put in its place.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from embedding import storage
from embedding.errors import RequestError, RunError
from embedding.output import json_files
from embedding.output.json_files import Count, ProcessId, RunId, Seconds

NAME = "claim.json"
RENEW_S = 5.0
LAPSE_S = 30.0  # six renewals, or one request that is tried again for long


@dataclass(frozen=True)
class Owner:
    """Who holds an output."""

    run_id: RunId
    host: str
    machine: str  # what process ids are looked up in: equal only where `pid` means the same process
    pid: ProcessId
    process_start: Seconds  # since some point that does not move: tells it from a later one of the same number
    started: str  # the run; ISO 8601, for people
    renewals: Count = 0

    @classmethod
    def this_process(cls, run_id: str) -> "Owner":
        return cls(
            run_id=run_id,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_start=_start_of(os.getpid()),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"

    def is_dead(self) -> bool | None:
        """Whether its process has ended; None where that cannot be seen from here."""
        if self.machine != _machine():
            return None
        try:
            same = abs(_start_of(self.pid) - self.process_start) < 0.005
            return not same or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return not _is_hidden(self.pid)
        except psutil.AccessDenied:  # alive, and somebody else's
            return False


# Of a claim that cannot be read. No machine has this owner's name, so its life is watched for, never looked up.
UNKNOWN = Owner("unknown", "an unknown host", "", 0, 0.0, "an unknown time")


def _machine() -> str:
    """The boot and, in containers, the process namespace; elsewhere than on Linux the network card and the name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 — not a path
    except OSError:
        return f"{uuid.getnode():x}/{socket.gethostname()}"


def _start_of(pid: int) -> float:
    """When a process began. On Linux since boot: the time of day that psutil makes of it moves with every correction
    of the clock, and a run that lives would be taken for another one of its number.

    Raises:
        psutil.Error: there is no such process, or it is hidden from us.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # gone, or not Linux
        return psutil.Process(pid).create_time()
    return int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, which is somebody else's and not shown to us (/proc with hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    return False


class Claim:
    """A held claim. ``check`` before anything that two runs must not do at once."""

    def __init__(self, root: str, owner: Owner) -> None:
        self._root = root
        self._uri = storage.join(root, NAME)
        self.owner = owner
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)

    def check(self) -> None:
        """Look whether the claim still is ours.

        Raises:
            RunError: another run has taken the output over.
            OSError: the storage failed.
        """
        check_holder(self._root, self.owner.run_id)

    def _take(self, on_wait: Callable[[Owner], None]) -> None:
        self._create(NAME, on_wait)
        self._thread.start()

    def _sweep(self) -> None:
        """Remove the rights (``claim.json.RUN``) of runs that died over a lapsed claim.

        Nobody can use such a right any more: the claim that it is about is gone, since this run holds another one.
        """
        for uri in storage.list_prefix(self._root, f"{NAME}."):
            holder = read_owner(uri)
            if holder is not None and holder.is_dead():
                storage.delete(uri)

    def _create(self, name: str, on_wait: Callable[[Owner], None]) -> None:
        uri = storage.child(self._root, name)
        while not storage.create_bytes(uri, _encode(self.owner)):
            holder = read_owner(uri)
            if holder is None:  # released this moment; in S3 a read may also lag behind
                time.sleep(RENEW_S / 50)
                continue
            if not _has_lapsed(uri, holder, on_wait):
                raise RequestError(
                    f"--output: {self._root} is being written by another run ({read_owner(uri) or holder}); wait for "
                    "it, stop it, or choose another --output"
                )
            # Whoever holds this alone may remove the lapsed claim; if it dies meanwhile, the same goes for its own.
            right = f"{name}.{holder.run_id}"
            self._create(right, on_wait)
            try:
                now = read_owner(uri)
                if now == holder:
                    storage.delete(uri)
            finally:
                storage.delete(storage.child(self._root, right))

    def _keep(self) -> None:
        # A renewal that fails is tried again at the next: whoever waits for us waits for several.
        while not self._released.wait(RENEW_S):
            try:
                holder = read_owner(self._uri)
                if holder is None or holder.run_id != self.owner.run_id:
                    return  # another run's now: `check` says so
                self.owner = replace(self.owner, renewals=self.owner.renewals + 1)
                storage.write_bytes(self._uri, _encode(self.owner))
            except OSError:
                continue

    def _release(self) -> None:
        self._released.set()
        self._thread.join()
        with suppress(OSError):  # it lapses with this process; what failed here has been told elsewhere
            holder = read_owner(self._uri)
            if holder is not None and holder.run_id == self.owner.run_id:
                storage.delete(self._uri)


@contextmanager
def claimed(root: str, run_id: str, on_wait: Callable[[Owner], None]) -> Iterator[Claim]:
    """Hold the output ``root`` while the block runs; ``on_wait`` hears of an owner whose life has to be watched for.

    Raises:
        RequestError: another run holds it, or it cannot be written to.
    """
    claim = Claim(root, Owner.this_process(run_id))
    try:
        claim._take(on_wait)
    except OSError as error:
        where = f" ({error.filename})" if isinstance(error.filename, str) else ""
        raise RequestError(f"--output: cannot write to {root}: {error.strerror or error}{where}") from error
    try:
        with suppress(OSError):  # rights of the dead are in nobody's way
            claim._sweep()
        yield claim
    finally:
        claim._release()


def check_holder(root: str, run_id: str) -> None:
    """The same check from another process, by looking: a task may outlive the run that started it.

    Raises:
        RunError: the output is not, or no longer, this run's.
        OSError: the storage failed.
    """
    holder = read_owner(storage.join(root, NAME))
    if holder is None:
        raise RunError(f"{root} lost this run's claim: somebody removed {NAME}, or all of it; the run stops")
    if holder.run_id != run_id:
        raise RunError(f"{root} belongs to another run now ({holder}); this one stops")


def read_owner(uri: str) -> Owner | None:
    """Return the owner of the claim at ``uri``.

    Returns:
        None where there is no claim; ``UNKNOWN`` where the file is no claim, or not one yet.

    Raises:
        OSError: the storage failed.
    """
    try:
        return json_files.parse(Owner, storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except json_files.BadRecordError:
        return UNKNOWN


def _has_lapsed(uri: str, holder: Owner, on_wait: Callable[[Owner], None]) -> bool:
    dead = holder.is_dead()
    if dead is not None:
        return dead
    on_wait(holder)
    until = time.monotonic() + LAPSE_S
    while time.monotonic() < until:
        time.sleep(RENEW_S / 5)
        now = read_owner(uri)
        if now is None:
            return True
        if now != holder:
            return False
    return True


def _encode(owner: Owner) -> bytes:
    return (json.dumps(asdict(owner), indent=2) + "\n").encode()
