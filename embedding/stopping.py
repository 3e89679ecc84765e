"""The stop of a run: open shards may be finished first, for a few seconds.

The first SIGTERM or Ctrl-C only asks: stages see it, read and encode no more, and the pipeline runs dry. After GRACE_S,
or at the second signal, the run is broken off. A run that is broken off has LEAVE_S to close its books and to leave;
then the process ends, whatever does not answer. In every case what is stored stays valid.
"""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import NoReturn

from embedding.errors import RunError

GRACE_S = 15.0
LEAVE_S = 15.0
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(RunError):  # noqa: N818 — nothing went wrong
    """The run ended because it was asked to."""

    def __init__(self, asked_by: str | None) -> None:
        super().__init__(
            f"stopped by {asked_by}; what is stored stays valid, and the same command again goes on from there"
        )


class _Deadline:
    """Ends the process at a time that a signal sets, whatever its threads are waiting for.

    A thread of its own: the main thread may be in a call that does not return, and a handler of signals, which may
    have interrupted the making of a thread, must not make one.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._orders: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()  # its put() may be interrupted
        self.was_set = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """In the outermost of these blocks a deadline holds; at its end there is none."""
        self._depth += 1
        if self._depth == 1:
            threading.Thread(target=self._watch, args=(self._orders,), name="deadline", daemon=True).start()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._orders.put(None)
                self._orders = queue.SimpleQueue()

    def set(self, seconds: float, asked_by: str) -> None:
        """End the process so many seconds from now; a later call replaces this one. Without ``watching`` do nothing."""
        if self._depth:
            self.was_set = True
            self._orders.put((time.monotonic() + seconds, asked_by))

    @staticmethod
    def _watch(orders: "queue.SimpleQueue[tuple[float, str] | None]") -> None:
        order = orders.get()
        while order is not None:
            until, asked_by = order
            try:
                order = orders.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                with suppress(OSError, ValueError):  # a stderr that is closed
                    sys.stderr.write(f"avex-batch: {Stopped(asked_by)} (something did not answer)\n")
                    sys.stderr.flush()
                os._exit(1)


_deadline = _Deadline()


class Stop:
    """A request to stop; ``asked_by`` names the signal, None before it."""

    def __init__(self) -> None:
        self.asked_by: str | None = None
        self.at_once = False  # asked a second time
        self._graceful = False

    @contextmanager
    def gracefully(self) -> Iterator[None]:
        """In this block the first signal does not interrupt: whoever runs it looks at ``asked_by``.

        Raises:
            Stopped: at its end, if somebody asked.
        """
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.asked_by is not None:
            raise Stopped(self.asked_by)

    def listen(self) -> None:
        """Install the handlers."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_grace_over)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.at_once = self.asked_by is not None
        self.asked_by = _SIGNALS[signal.Signals(number)]
        if self.at_once or not self._graceful:
            _deadline.set(LEAVE_S, self.asked_by)
            raise KeyboardInterrupt
        _deadline.set(GRACE_S + LEAVE_S, self.asked_by)
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def _on_grace_over(self, *_: object) -> None:
        raise KeyboardInterrupt


@contextmanager
def on_signals(*, ends_process: bool = False) -> Iterator[Stop]:
    """Watch for signals while the block runs. In another thread than the main thread do nothing: signals do not come.

    Args:
        ends_process: end the process where something does not answer; for commands, not for a notebook.

    Raises:
        Stopped: somebody asked, and there was nothing in flight or its grace was over.
        KeyboardInterrupt: somebody asked twice, or a block within was asked twice.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with kept_handlers(), _deadline.watching() if ends_process else nullcontext():
        stop.listen()
        try:
            yield stop
        except KeyboardInterrupt:
            if stop.at_once or stop.asked_by is None:  # twice, or not by a signal to us
                raise
            raise Stopped(stop.asked_by) from None


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Restore the handlers of signals after the block; ``ray.init``, for example, installs its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def threads_of(n: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of ``n`` threads, which are waited for unless the block fails or is interrupted: one of them may hang."""
    pool = ThreadPoolExecutor(n)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def end_process(code: int) -> NoReturn:
    """End the process with this exit code. After a signal, threads that hang are not waited for."""
    if _deadline.was_set:
        until = time.monotonic() + 1
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join(max(0.0, until - time.monotonic()))
                if thread.is_alive():
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
    sys.exit(code)
