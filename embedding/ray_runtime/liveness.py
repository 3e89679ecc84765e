"""A watch on the processes of Ray that a driver needs: the head, and the raylet of the driver's node.

Ray 2.60 ends a driver from C++ without a message and without a Python exception: 60 s after the head has fallen silent,
15 s after the raylet has (measured 2026-11-25). A thread notices earlier, and prints what happened.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from embedding.errors import RunError, print_error

ASK_EVERY_S = 2.0
# A head may be restarted, a raylet is not. Both times are shorter than Ray's own patience.
HEAD_GONE_AFTER_S = 45.0
RAYLET_GONE_AFTER_S = 8.0


@dataclass(frozen=True)
class RequiredProcess:
    """A process that accepts connections at ``address`` (``host:port``) as long as it lives."""

    name: str
    address: str
    gone_after_s: float

    def answers(self) -> bool:
        """Return whether the process accepts a connection."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ASK_EVERY_S).close()
        except OSError:
            return False
        return True


@contextmanager
def watch_processes(processes: Sequence[RequiredProcess], on_gone: Callable[[RunError], None]) -> Iterator[None]:
    """Watch processes while the block runs.

    Args:
        processes: The processes.
        on_gone: Called once, from a thread, with the error of the first process that is gone.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(processes, on_gone, over), name="liveness", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(processes: Sequence[RequiredProcess], on_gone: Callable[[RunError], None], over: threading.Event) -> None:
    answered_s = {process: time.monotonic() for process in processes}
    while not over.wait(ASK_EVERY_S):
        for process in processes:
            if process.answers():
                answered_s[process] = time.monotonic()
            elif not over.is_set() and time.monotonic() - answered_s[process] >= process.gone_after_s:
                on_gone(
                    RunError(
                        f"{process.name} ({process.address}) has not answered for {process.gone_after_s:g} s; what is "
                        "stored stays valid, run the same command again to go on"
                    )
                )
                return


def end_process(error: RunError) -> None:
    """Print ``error`` and end this process, whose main thread waits inside Ray without end."""
    print_error(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
