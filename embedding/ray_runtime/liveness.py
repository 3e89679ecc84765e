"""A watch on the processes of Ray that a driver cannot do without: the head, and the raylet of the driver's node.

Ray 2.60 ends a driver from C++, without a word and past Python's exceptions: 60 s after the head has fallen silent,
15 s after the raylet has (measured 2026-11-25). So a thread asks earlier, and says what happened.
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
# A head may be started anew, a raylet is not. Both are shorter than Ray's own patience.
HEAD_GONE_AFTER_S = 45.0
RAYLET_GONE_AFTER_S = 8.0


@dataclass(frozen=True)
class Watched:
    """A process that takes connections at ``address`` (``host:port``) as long as it lives."""

    name: str
    address: str
    gone_after_s: float

    def answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ASK_EVERY_S).close()
        except OSError:
            return False
        return True


@contextmanager
def watching(processes: Sequence[Watched], on_gone: Callable[[RunError], None]) -> Iterator[None]:
    """Watch ``processes`` while the block runs; ``on_gone`` is called once, in a thread, when one of them is gone."""
    over = threading.Event()
    threading.Thread(target=_watch, args=(processes, on_gone, over), name="head", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(processes: Sequence[Watched], on_gone: Callable[[RunError], None], over: threading.Event) -> None:
    answered_s = {each: time.monotonic() for each in processes}
    while not over.wait(ASK_EVERY_S):
        for each in processes:
            if each.answers():
                answered_s[each] = time.monotonic()
            elif not over.is_set() and time.monotonic() - answered_s[each] >= each.gone_after_s:
                on_gone(
                    RunError(
                        f"{each.name} ({each.address}) has not answered for {each.gone_after_s:g} s; what is stored "
                        "stays valid, run the same command again to go on"
                    )
                )
                return


def end_process(error: RunError) -> None:
    """Say ``error`` in one line and end the process: the main thread waits inside Ray, for good."""
    print_error(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
