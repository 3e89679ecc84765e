"""Whole commands, run by turns and measured: wall time, CPU time and memory of everything they start. Linux.

Machines drift within minutes, so nothing is compared that was not measured in the same round: ``rounds`` runs A B C,
then B C A, and so on, and ``tables`` computes ratios round by round.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

ROOT = Path(__file__).resolve().parent.parent
# Looking at a tree of processes costs some ms: as often as this, and never more than a hundredth of a core.
SAMPLE_S = 0.25
SAMPLE_SHARE = 0.01
TAIL_LINES = 30
TIMEOUT_S = 4 * 3600
# After a command has ended, what it started may take some time to do so.
ORPHANS_S = 20.0

DRIVER, WORKERS, STORE, RAY, HELPERS, TOTAL = "driver", "workers", "object store", "Ray itself", "helpers", "total"
_RAY_DAEMONS = ("raylet", "gcs_server", "dashboard", "log_monitor", "runtime_env", "ray/autoscaler")
_PR_SET_CHILD_SUBREAPER = 36

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """A command to run, with its name in tables. ``output``, a file or folder, is removed before each run."""

    name: str
    argv: Sequence[str]
    output: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As one would type it: without the paths of this machine."""
        words = ["python" if word == sys.executable else Path(word).name if "/" in word else word for word in self.argv]
        return " ".join(words)


@dataclass(frozen=True)
class Measured:
    """One run of a command. Peaks are in MB by role; nothing is counted twice."""

    wall_s: float
    cpu_s: float
    peak_mb: dict[str, float]


class CommandError(Exception):
    """A command of a benchmark failed: nothing can be said."""


def rounds(tasks: Mapping[str, Callable[[], T]], n_rounds: int) -> dict[str, list[T]]:
    """Results of each task, one per round; each round begins with another task."""
    results: dict[str, list[T]] = {name: [] for name in tasks}
    names = list(tasks)
    for number in range(n_rounds):
        for name in rotated(names, number):
            say(f"round {number + 1} of {n_rounds}: {name}")
            results[name].append(tasks[name]())
    return results


def rotated(names: Sequence[str], by: int) -> list[str]:
    at = by % len(names)
    return [*names[at:], *names[:at]]


def measure_all(commands: Sequence[Command], n_rounds: int) -> dict[str, list[Measured]]:
    """Each command ``n_rounds`` times, by turns."""
    return rounds({command.name: lambda command=command: measure(command) for command in commands}, n_rounds)


def measure(command: Command) -> Measured:
    """Run it once.

    Raises:
        CommandError: it did not end with exit code 0; with its last lines.
    """
    if command.output is not None:
        remove(command.output)
    _adopt_orphans()
    strangers = {process.pid for process in psutil.Process().children(recursive=True)}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(command.env)
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        before = _waited_for_s()
        began = time.perf_counter()
        process = subprocess.Popen(
            command.argv,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with Watch(process.pid, strangers) as watch:
                code = process.wait(timeout=TIMEOUT_S)
                wall_s = time.perf_counter() - began
        finally:
            _end(process, strangers)
        if code:
            said.seek(0)
            tail = "".join(said.readlines()[-TAIL_LINES:])
            raise CommandError(f"{command.name}: exit code {code}\n  {command}\n{tail}")
    # Ray's raylet lets its workers be reaped unseen, so waiting does not tell their time; and what lives shorter than
    # a sample is only told by waiting. Each falls short, if at all: the larger one it is.
    cpu_s = max(watch.cpu_s, _waited_for_s() - before)
    return Measured(wall_s, cpu_s, dict(watch.peak_mb))


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def say(text: str) -> None:
    """Print progress to stderr; tables go to stdout."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


# --- a tree of processes ----------------------------------------------------------------------------------------


class Watch:
    """Samples the processes below this one, except ``strangers``, from a thread of its own."""

    def __init__(self, driver: int, strangers: set[int]) -> None:
        self.peak_mb: dict[str, float] = {}
        self._driver = driver
        self._strangers = strangers
        self._cpu_s: dict[tuple[int, float], float] = {}  # by process id and its start
        self._roles: dict[tuple[int, float], str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def cpu_s(self) -> float:
        """User and system time of every process that was seen, as it was last seen."""
        return sum(self._cpu_s.values())

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        pause_s = SAMPLE_S
        while not self._over.wait(pause_s):
            began = time.thread_time()
            self._sample()
            pause_s = max(SAMPLE_S, (time.thread_time() - began) / SAMPLE_SHARE)

    def _sample(self) -> None:
        now_mb: dict[str, float] = {}
        for process in psutil.Process().children(recursive=True):
            if process.pid in self._strangers:
                continue
            with suppress(psutil.Error, OSError):
                key = (process.pid, process.create_time())
                times = process.cpu_times()
                self._cpu_s[key] = times.user + times.system
                role = self._role(process, key)
                private_mb, shared_mb = memory_mb(process.pid)
                now_mb[role] = now_mb.get(role, 0) + private_mb
                now_mb[STORE] = now_mb.get(STORE, 0) + shared_mb
        now_mb[TOTAL] = sum(now_mb.values())
        for role, mb in now_mb.items():
            self.peak_mb[role] = max(mb, self.peak_mb.get(role, 0))

    def _role(self, process: psutil.Process, key: tuple[int, float]) -> str:
        if key not in self._roles or self._roles[key] == HELPERS:  # Ray's workers rename themselves after a while
            self._roles[key] = DRIVER if process.pid == self._driver else role_of(process.cmdline())
        return self._roles[key]


def role_of(cmdline: Sequence[str]) -> str:
    """Return the role of a process that is not the driver."""
    words = " ".join(cmdline)
    if words.startswith("ray::") or "default_worker.py" in words:
        return WORKERS
    return RAY if any(name in words for name in _RAY_DAEMONS) else HELPERS


def memory_mb(pid: int) -> tuple[float, float]:
    """A process's proportional share: of its own memory and of files'; of shared memory, where Ray keeps objects."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024 / 1e6
    shared = fields.get("Pss_Shmem", 0.0)
    return fields["Pss"] - shared, shared


def _waited_for_s() -> float:
    """CPU seconds of all processes that this one has waited for, and that those have waited for."""
    times = os.times()
    return times.children_user + times.children_system


def _adopt_orphans() -> None:
    """Make processes that outlive their parents children of this process, so that they can be measured and ended."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end(process: subprocess.Popen[bytes], strangers: set[int]) -> None:
    """Wait for what the command left behind, and end what stays."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + ORPHANS_S
    while True:
        left = [child for child in psutil.Process().children(recursive=True) if child.pid not in strangers]
        if not left:
            return
        for child in left:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)
            if time.monotonic() > deadline:
                with suppress(psutil.Error):
                    child.kill()
        time.sleep(0.05)
