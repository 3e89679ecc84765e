"""Stopping of a run by signals. Work in flight has some seconds to finish.

The first SIGTERM or Ctrl-C is a request: stages notice it, read and encode no more, and the pipeline empties. After
GRACE_S, or at the second signal, the run is interrupted. An interrupted run has EXIT_S to write its report and to end;
then the process ends, even if a thread does not respond. In every case what is stored stays valid.
"""

import gc
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
EXIT_S = 15.0
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(RunError):  # noqa: N818 — a stop is not an error
    """The run ended because the user stopped it."""

    def __init__(self, signal_name: str | None) -> None:
        super().__init__(f"stopped by {signal_name}; what is stored stays valid, run the same command again to go on")


class _Deadline:
    """A time at which the process ends, even if its threads are waiting. A signal sets the time.

    The deadline needs its own thread, because the main thread may be in a call that does not return. This thread starts
    before any signal: a signal handler may have interrupted the creation of a thread, so it must not create one.

    Attributes:
        was_set: Whether a signal has set a deadline.
    """

    def __init__(self) -> None:
        self._depth = 0
        # Each item is an end time and the name of the signal; None ends the thread. A signal may interrupt put().
        self._orders: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        self.was_set = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Run the thread during the outermost of these blocks; the end of the block cancels the deadline."""
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

    def set(self, seconds: float, signal_name: str) -> None:
        """End the process after some seconds; a later call replaces this one. Without ``watching`` do nothing."""
        if self._depth:
            self.was_set = True
            self._orders.put((time.monotonic() + seconds, signal_name))

    @staticmethod
    def _watch(orders: "queue.SimpleQueue[tuple[float, str] | None]") -> None:
        order = orders.get()
        while order is not None:
            end_s, signal_name = order
            try:
                order = orders.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                with suppress(OSError, ValueError):  # stderr may be closed
                    sys.stderr.write(f"avex-batch: {Stopped(signal_name)} (something did not answer)\n")
                    sys.stderr.flush()
                os._exit(1)


_deadline = _Deadline()


class Stop:
    """The user's request to stop.

    Attributes:
        signal_name: Name of the signal; None if the user has not asked to stop.
        is_immediate: Whether the user has sent a second signal.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.is_immediate = False
        self._graceful = False

    @contextmanager
    def gracefully(self) -> Iterator[None]:
        """Let the first signal set ``signal_name`` without interrupting the block, which has to check the attribute.

        Raises:
            Stopped: At the end of the block, if there was a signal.
        """
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.signal_name is not None:
            raise Stopped(self.signal_name)

    def install_handlers(self) -> None:
        """Install the signal handlers."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_end_of_grace)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.is_immediate = self.signal_name is not None
        self.signal_name = _SIGNALS[signal.Signals(number)]
        if self.is_immediate or not self._graceful:
            _deadline.set(EXIT_S, self.signal_name)
            raise KeyboardInterrupt
        _deadline.set(GRACE_S + EXIT_S, self.signal_name)
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def _on_end_of_grace(self, *_: object) -> None:
        raise KeyboardInterrupt


@contextmanager
def stop_on_signals(*, ends_process: bool = False) -> Iterator[Stop]:
    """Handle signals during the block. Outside of the main thread do nothing: only the main thread receives signals.

    Args:
        ends_process: End the process if a thread does not respond; for commands, not for notebooks.

    Raises:
        Stopped: There was a signal, and no work was in flight or the grace was over.
        KeyboardInterrupt: There was a second signal, here or in a block within this block.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with preserved_handlers(), _deadline.watching() if ends_process else nullcontext():
        stop.install_handlers()
        try:
            yield stop
        except KeyboardInterrupt:
            if stop.is_immediate or stop.signal_name is None:  # a second signal, or an interrupt that is not a signal
                raise
            raise Stopped(stop.signal_name) from None


@contextmanager
def preserved_handlers() -> Iterator[None]:
    """Restore the signal handlers after the block; ``ray.init``, for example, installs its own."""
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
def thread_pool(n: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of ``n`` threads; if the block fails or is interrupted, do not wait for them: one may hang."""
    pool = ThreadPoolExecutor(n)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def end_process(code: int) -> NoReturn:
    """End the process with an exit code. After a signal, do not wait for threads that hang."""
    if _deadline.was_set:
        end_s = time.monotonic() + 1
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join(max(0.0, end_s - time.monotonic()))
                if thread.is_alive():
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
    # Otherwise the interpreter looks through all objects before it ends, which takes 0.3 s where Ray is imported. But
    # DuckDB prints a page about objects that are then still alive.
    if "_duckdb" not in sys.modules:
        gc.freeze()
    sys.exit(code)
