"""The claim on an output: one run at a time writes there, and a claim lasts as long as the process that holds it.

    OUTPUT/claim.json   the holder, and the number of renewals

The file is created exclusively, renewed by a thread, and removed at the end of the run. A run that dies leaves its
claim behind; the next run takes the claim over once the holder is known to be dead: at once where the holder's process
can be looked up, otherwise after LAPSE_S without a renewal. Clocks of two machines are never compared: the run that
waits measures the time with its own clock.

Two runs may find the same lapsed claim, and the slower run must not remove the claim that the faster run has put in its
place. So a run removes a lapsed claim only while it holds a takeover claim (``claim.json.RUN``, with the identifier of
the dead run), and only after it has read the lapsed claim once more.
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
LAPSE_S = 30.0  # six renewals, or one request to the storage that is retried for long


@dataclass(frozen=True)
class ClaimHolder:
    """The run that holds an output, and its process.

    Attributes:
        run_id: Identifier of the run.
        host: Name of the machine.
        machine: Namespace of process identifiers; equal for two holders only where ``pid`` means the same process.
        pid: Process identifier.
        process_start: Start of the process in seconds since a fixed moment; distinguishes the process from a later
            process with the same ``pid``.
        started: Start of the run, ISO 8601, for the user.
        renewals: Number of renewals of the claim.
    """

    run_id: RunId
    host: str
    machine: str
    pid: ProcessId
    process_start: Seconds
    started: str
    renewals: Count = 0

    @classmethod
    def this_process(cls, run_id: str) -> "ClaimHolder":
        """Return this process as the holder for a run."""
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
        """Return whether the process has ended; None where this machine cannot look it up."""
        if self.machine != _machine():
            return None
        try:
            is_same = abs(_start_of(self.pid) - self.process_start) < 0.005
            return not is_same or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return not _is_hidden(self.pid)
        except psutil.AccessDenied:  # the process lives, and belongs to another user
            return False


# The holder of a claim that cannot be read. No machine has this name, so the process is never looked up.
UNKNOWN_HOLDER = ClaimHolder("unknown", "an unknown host", "", 0, 0.0, "an unknown time")


def _machine() -> str:
    """Return the boot and, in containers, the process namespace; on other systems than Linux network card and name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 — not a path
    except OSError:
        return f"{uuid.getnode():x}/{socket.gethostname()}"


def _start_of(pid: int) -> float:
    """Return the start of a process in seconds.

    On Linux the seconds count from the boot. psutil returns a time of day, which moves with every correction of the
    clock: a process that lives would look like another process with the same number.

    Raises:
        psutil.Error: There is no such process, or the system hides it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process has ended, or this is not Linux
        return psutil.Process(pid).create_time()
    return int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def _is_hidden(pid: int) -> bool:
    """Return whether a process exists that belongs to another user and that /proc hides (``hidepid``)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    return False


class Claim:
    """A claim that this process holds.

    Attributes:
        holder: This process, with the renewals so far.
    """

    def __init__(self, root: str, holder: ClaimHolder) -> None:
        self._root = root
        self._uri = storage.join(root, NAME)
        self.holder = holder
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, name="claim", daemon=True)

    def check(self) -> None:
        """Check that this process still holds the claim, before a step that two runs must not take at once.

        Raises:
            RunError: Another run has taken the output over.
            OSError: The storage failed.
        """
        check_holder(self._root, self.holder.run_id)

    def _take(self, on_wait: Callable[[ClaimHolder], None]) -> None:
        self._create(NAME, on_wait)
        self._thread.start()

    def _create(self, name: str, on_wait: Callable[[ClaimHolder], None]) -> None:
        """Create the claim file ``name``, after removing a lapsed one."""
        uri = storage.child(self._root, name)
        while not storage.create_bytes(uri, _encode(self.holder)):
            holder = read_holder(uri)
            if holder is None:  # released meanwhile, or a read of S3 that lags behind
                time.sleep(RENEW_S / 50)
                continue
            if not _wait_for_lapse(uri, holder, on_wait):
                raise RequestError(
                    f"--output: {self._root} is being written by another run ({read_holder(uri) or holder}); wait for "
                    "it, stop it, or choose another --output"
                )
            # A run that dies while it holds the takeover claim leaves a lapsed claim, too, so this recurs.
            takeover = f"{name}.{holder.run_id}"
            self._create(takeover, on_wait)
            try:
                if read_holder(uri) == holder:
                    storage.delete(uri)
            finally:
                storage.delete(storage.child(self._root, takeover))

    def _remove_old_takeovers(self) -> None:
        """Remove takeover claims (``claim.json.RUN``) of runs that died.

        No run can use them any more: the lapsed claim no longer exists, because this run holds another claim.
        """
        for uri in storage.list_prefix(self._root, f"{NAME}."):
            holder = read_holder(uri)
            if holder is not None and holder.is_dead():
                storage.delete(uri)

    def _renew_until_released(self) -> None:
        # A renewal that fails is repeated at the next time: a run that waits for this one allows for several.
        while not self._released.wait(RENEW_S):
            try:
                holder = read_holder(self._uri)
                if holder is None or holder.run_id != self.holder.run_id:
                    return  # another run holds the output; `check` raises
                self.holder = replace(self.holder, renewals=self.holder.renewals + 1)
                storage.write_bytes(self._uri, _encode(self.holder))
            except OSError:
                continue

    def _release(self) -> None:
        self._released.set()
        self._thread.join()
        with suppress(OSError):  # the claim lapses with this process; a storage that fails has its own message
            holder = read_holder(self._uri)
            if holder is not None and holder.run_id == self.holder.run_id:
                storage.delete(self._uri)


@contextmanager
def hold_claim(root: str, run_id: str, on_wait: Callable[[ClaimHolder], None]) -> Iterator[Claim]:
    """Hold an output while the block runs.

    Args:
        root: Directory or prefix of the output.
        run_id: Identifier of the run.
        on_wait: Called before a wait for a holder whose process this machine cannot look up.

    Raises:
        RequestError: Another run holds the output, or the output cannot be written to.
    """
    claim = Claim(root, ClaimHolder.this_process(run_id))
    try:
        claim._take(on_wait)
    except OSError as error:
        where = f" ({error.filename})" if isinstance(error.filename, str) else ""
        raise RequestError(f"--output: cannot write to {root}: {error.strerror or error}{where}") from error
    try:
        with suppress(OSError):  # old takeover claims do no harm
            claim._remove_old_takeovers()
        yield claim
    finally:
        claim._release()


def check_holder(root: str, run_id: str) -> None:
    """Check in any process that a run holds an output: a task may outlive the run that started it.

    Args:
        root: Directory or prefix of the output.
        run_id: Identifier of the run.

    Raises:
        RunError: The run does not hold the output, or no longer.
        OSError: The storage failed.
    """
    holder = read_holder(storage.join(root, NAME))
    if holder is None:
        raise RunError(f"{root} lost this run's claim: {NAME} or the whole output was removed; the run stops")
    if holder.run_id != run_id:
        raise RunError(f"{root} belongs to another run now ({holder}); this one stops")


def read_holder(uri: str) -> ClaimHolder | None:
    """Return the holder of the claim at ``uri``.

    Returns:
        None where there is no claim; UNKNOWN_HOLDER where the file is not a claim, or not written to its end yet.

    Raises:
        OSError: The storage failed.
    """
    try:
        return json_files.parse(ClaimHolder, storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except json_files.BadRecordError:
        return UNKNOWN_HOLDER


def _wait_for_lapse(uri: str, holder: ClaimHolder, on_wait: Callable[[ClaimHolder], None]) -> bool:
    """Return whether a claim has lapsed; wait up to LAPSE_S where the holder's process cannot be looked up."""
    is_dead = holder.is_dead()
    if is_dead is not None:
        return is_dead
    on_wait(holder)
    until_s = time.monotonic() + LAPSE_S
    while time.monotonic() < until_s:
        time.sleep(RENEW_S / 5)
        present_holder = read_holder(uri)
        if present_holder is None:
            return True
        if present_holder != holder:
            return False
    return True


def _encode(holder: ClaimHolder) -> bytes:
    return (json.dumps(asdict(holder), indent=2) + "\n").encode()
