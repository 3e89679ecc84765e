"""Limits of the system on open files and processes, of which a Ray on this machine takes many.

Where a limit is too low, Ray ends in C++ or with a traceback from deep inside. So limits are raised as far as this user
may raise them, and a limit that stays too low is refused before Ray starts.
"""

import os
import resource

import psutil

from embedding.errors import RequestError

# A run on two CPUs was complete with 128, and Ray could not start with 64. Each CPU and each GPU adds some.
LEAST_FILES = 256
RAISED_LIMIT = 65_536
# Threads of Ray and its workers on two CPUs: 312 to 417 (measured 2026-11-25).
LEAST_PROCESSES = 512


def raise_limits() -> None:
    """Raise the limits of this process, which its child processes inherit.

    Raises:
        RequestError: A limit is too low, and this user may not raise it.
    """
    files = _raised(resource.RLIMIT_NOFILE)
    if files < LEAST_FILES:
        raise RequestError(
            f"this process may open {files:,} files, and Ray needs {LEAST_FILES:,}: raise the limit (`ulimit -n "
            f"{RAISED_LIMIT}`, or LimitNOFILE= of a service)"
        )
    if os.getuid() == 0:  # the limit on processes does not bind root
        return
    processes = _raised(resource.RLIMIT_NPROC)
    if processes < LEAST_PROCESSES + (n_running := _n_threads_of(os.getuid())):
        raise RequestError(
            f"this user may have {processes:,} processes and threads, of which {n_running:,} run, and Ray needs "
            f"{LEAST_PROCESSES:,} more: raise the limit (`ulimit -u {RAISED_LIMIT}`, or TasksMax= of a service)"
        )


def _raised(kind: int) -> int:
    """Raise a soft limit to RAISED_LIMIT, or as near to it as the hard limit allows; return the soft limit."""
    soft, hard = (value if value != resource.RLIM_INFINITY else 1 << 62 for value in resource.getrlimit(kind))
    if soft >= RAISED_LIMIT:
        return soft
    reached = min(RAISED_LIMIT, hard)
    _, unchanged = resource.getrlimit(kind)
    resource.setrlimit(kind, (reached, unchanged))
    return reached


def _n_threads_of(uid: int) -> int:
    """Return the number of threads of a user, which Linux counts as processes."""
    found = psutil.process_iter(["uids", "num_threads"], ad_value=None)
    rows = [(process.info["uids"], process.info["num_threads"]) for process in found]
    return sum(n_threads or 0 for uids, n_threads in rows if uids is not None and uids.real == uid)
