"""Measurement of commands on Linux: wall time, CPU time and memory of all processes that a command starts.

The speed of a machine drifts within minutes, so only measurements of the same round are compared: ``run_rounds`` runs
A B C, then B C A, and so on, and ``tables`` computes ratios per round.
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
# Interval of the samples of the process tree. A sample takes some ms, so the interval is longer where sampling would
# take more than this share of a core.
SAMPLE_S = 0.25
SAMPLE_SHARE = 0.01
TAIL_LINES = 30
TIMEOUT_S = 4 * 3600
# Time that processes may take to end after the command that started them.
ORPHANS_S = 20.0

DRIVER, WORKERS, STORE, RAY, HELPERS, TOTAL = "driver", "workers", "object store", "Ray itself", "helpers", "total"
_RAY_DAEMONS = ("raylet", "gcs_server", "dashboard", "log_monitor", "runtime_env", "ray/autoscaler")
_PR_SET_CHILD_SUBREAPER = 36

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """Command to measure.

    Attributes:
        name: Name in tables.
        argv: Program and arguments.
        output: File or folder that is removed before each run.
        env: Environment variables in addition to those of this process.
    """

    name: str
    argv: Sequence[str]
    output: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the command as a user types it, without the paths of this machine."""
        words = ["python" if word == sys.executable else Path(word).name if "/" in word else word for word in self.argv]
        return " ".join(words)


@dataclass(frozen=True)
class Measurement:
    """One run of a command; ``peak_mb`` is by role, and memory that processes share is counted once."""

    wall_s: float
    cpu_s: float
    peak_mb: dict[str, float]


class CommandError(Exception):
    """A command of a benchmark failed, so there is no result."""


def run_rounds(tasks: Mapping[str, Callable[[], T]], n_rounds: int) -> dict[str, list[T]]:
    """Return the results of each task, one per round; each round starts with another task."""
    results: dict[str, list[T]] = {name: [] for name in tasks}
    names = list(tasks)
    for number in range(n_rounds):
        for name in rotated(names, number):
            log(f"round {number + 1} of {n_rounds}: {name}")
            results[name].append(tasks[name]())
    return results


def rotated(names: Sequence[str], by: int) -> list[str]:
    at = by % len(names)
    return [*names[at:], *names[:at]]


def measure_all(commands: Sequence[Command], n_rounds: int) -> dict[str, list[Measurement]]:
    """Measure each command ``n_rounds`` times, in turns."""
    return run_rounds({command.name: lambda command=command: measure(command) for command in commands}, n_rounds)


def measure(command: Command) -> Measurement:
    """Run a command once.

    Raises:
        CommandError: The exit code is not 0; the message has the last lines of the command's output.
    """
    if command.output is not None:
        remove(command.output)
    _adopt_orphans()
    other_pids = {process.pid for process in psutil.Process().children(recursive=True)}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(command.env)
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        cpu_s_before = _waited_cpu_s()
        began = time.perf_counter()
        process = subprocess.Popen(
            command.argv,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with ProcessSampler(process.pid, other_pids) as sampler:
                code = process.wait(timeout=TIMEOUT_S)
                wall_s = time.perf_counter() - began
        finally:
            _end(process, other_pids)
        if code:
            output.seek(0)
            tail = "".join(output.readlines()[-TAIL_LINES:])
            raise CommandError(f"{command.name}: exit code {code}\n  {command}\n{tail}")
    # Both sums may be too small, so the larger one is used. Waiting misses Ray's workers, which are reaped without the
    # raylet waiting for them; sampling misses processes that live shorter than an interval.
    cpu_s = max(sampler.cpu_s, _waited_cpu_s() - cpu_s_before)
    return Measurement(wall_s, cpu_s, dict(sampler.peak_mb))


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def log(text: str) -> None:
    """Print progress to stderr; tables go to stdout."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


# --- process trees ---------------------------------------------------------------------------------------------


class ProcessSampler:
    """Thread that samples the descendants of this process, except ``other_pids``."""

    def __init__(self, driver_pid: int, other_pids: set[int]) -> None:
        self.peak_mb: dict[str, float] = {}
        self._driver_pid = driver_pid
        self._other_pids = other_pids
        self._cpu_s: dict[tuple[int, float], float] = {}  # by process id and start time
        self._roles: dict[tuple[int, float], str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_end, daemon=True)

    @property
    def cpu_s(self) -> float:
        """User and system time of all sampled processes, by the last sample of each."""
        return sum(self._cpu_s.values())

    def __enter__(self) -> "ProcessSampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample_until_end(self) -> None:
        pause_s = SAMPLE_S
        while not self._ended.wait(pause_s):
            began = time.thread_time()
            self._sample()
            pause_s = max(SAMPLE_S, (time.thread_time() - began) / SAMPLE_SHARE)

    def _sample(self) -> None:
        now_mb: dict[str, float] = {}
        for process in psutil.Process().children(recursive=True):
            if process.pid in self._other_pids:
                continue
            with suppress(psutil.Error, OSError):
                key = (process.pid, process.create_time())
                times = process.cpu_times()
                self._cpu_s[key] = times.user + times.system
                role = self._cached_role(process, key)
                private_mb, shared_mb = memory_mb(process.pid)
                now_mb[role] = now_mb.get(role, 0) + private_mb
                now_mb[STORE] = now_mb.get(STORE, 0) + shared_mb
        now_mb[TOTAL] = sum(now_mb.values())
        for role, mb in now_mb.items():
            self.peak_mb[role] = max(mb, self.peak_mb.get(role, 0))

    def _cached_role(self, process: psutil.Process, key: tuple[int, float]) -> str:
        # The role is determined again for helpers, because Ray's workers rename themselves some time after their start.
        if self._roles.get(key, HELPERS) == HELPERS:
            self._roles[key] = DRIVER if process.pid == self._driver_pid else role_of(process.cmdline())
        return self._roles[key]


def role_of(cmdline: Sequence[str]) -> str:
    """Return the role of a process that is not the driver."""
    words = " ".join(cmdline)
    if words.startswith("ray::") or "default_worker.py" in words:
        return WORKERS
    return RAY if any(name in words for name in _RAY_DAEMONS) else HELPERS


def memory_mb(pid: int) -> tuple[float, float]:
    """Return a process's proportional share (PSS) of private memory and files, and of shared memory (Ray's objects)."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024 / 1e6
    shared = fields.get("Pss_Shmem", 0.0)
    return fields["Pss"] - shared, shared


def _waited_cpu_s() -> float:
    """Return the CPU time of all descendants that this process, or a descendant, has waited for."""
    times = os.times()
    return times.children_user + times.children_system


def _adopt_orphans() -> None:
    """Become the parent of orphaned descendants, so that they can be sampled and ended."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end(process: subprocess.Popen[bytes], other_pids: set[int]) -> None:
    """Wait until all processes of the command have ended; end those that remain."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + ORPHANS_S
    while True:
        left = [child for child in psutil.Process().children(recursive=True) if child.pid not in other_pids]
        if not left:
            return
        for child in left:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)
            if time.monotonic() > deadline:
                with suppress(psutil.Error):
                    child.kill()
        time.sleep(0.05)
