"""Limits of the system on open files and processes, of which a Ray of our own takes many.

Where a limit is too low, Ray dies of it in C++, or with a traceback from deep inside. So limits are raised as far as
this user may raise them, and what stays too low is refused before Ray starts.
"""

import os
import resource

import psutil

from embedding.errors import RequestError

# A run on two CPUs was complete with 128, and Ray could not start with 64. Each CPU and each GPU adds some.
LEAST_FILES = 256
WANTED_FILES = 65_536
# Threads of Ray and its workers on two CPUs: 312 to 417 (measured 2026-11-25).
LEAST_PROCESSES = 512


def refuse_low() -> None:
    """Raise the limits of this process, which those that it starts inherit.

    Raises:
        RequestError: a limit that this user may not raise is too low.
    """
    files = _raised(resource.RLIMIT_NOFILE, WANTED_FILES)
    if files < LEAST_FILES:
        raise RequestError(
            f"this process may open {files:,} files, and Ray needs {LEAST_FILES:,}: raise the limit (`ulimit -n "
            f"{WANTED_FILES}`, or LimitNOFILE= of a service)"
        )
    if os.getuid() == 0:  # whom the limit on processes does not bind
        return
    processes = _raised(resource.RLIMIT_NPROC, WANTED_FILES)
    if processes < LEAST_PROCESSES + (n_running := _n_threads_of(os.getuid())):
        raise RequestError(
            f"this user may have {processes:,} processes and threads, of which {n_running:,} run, and Ray needs "
            f"{LEAST_PROCESSES:,} more: raise the limit (`ulimit -u {WANTED_FILES}`, or TasksMax= of a service)"
        )


def _raised(kind: int, wanted: int) -> int:
    """Raise the soft limit to ``wanted``, or as near to it as the hard limit allows; return the soft limit."""
    soft, hard = (value if value != resource.RLIM_INFINITY else 1 << 62 for value in resource.getrlimit(kind))
    if soft >= wanted:
        return soft
    reached = min(wanted, hard)
    _, unchanged = resource.getrlimit(kind)
    resource.setrlimit(kind, (reached, unchanged))
    return reached


def _n_threads_of(uid: int) -> int:
    """Number of threads of a user, which Linux counts as processes."""
    found = psutil.process_iter(["uids", "num_threads"], ad_value=None)
    rows = [(process.info["uids"], process.info["num_threads"]) for process in found]
    return sum(n_threads or 0 for uids, n_threads in rows if uids is not None and uids.real == uid)
