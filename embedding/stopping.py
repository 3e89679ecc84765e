"""How a run is stopped: what is in flight may land first, for a few seconds.

The first SIGTERM or Ctrl-C only asks: stages see it, read and encode no more, and the pipeline runs dry. After GRACE_S,
or at the second signal, the run is broken off. Either way what is stored stays valid.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from embedding.errors import RunError

GRACE_S = 15.0
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(RunError):  # noqa: N818 — nothing went wrong
    """The run ended because it was asked to."""

    def __init__(self, asked_by: str | None) -> None:
        super().__init__(
            f"stopped by {asked_by}; what is stored stays valid, and the same command again goes on from there"
        )


class Stop:
    """Whether somebody has asked to stop: ``asked_by`` names the signal, None until then."""

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
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def _on_grace_over(self, *_: object) -> None:
        raise KeyboardInterrupt


@contextmanager
def on_signals() -> Iterator[Stop]:
    """Watch for signals while the block runs, in the main thread.

    Raises:
        Stopped: somebody asked, and there was nothing in flight or its grace was over.
        KeyboardInterrupt: somebody asked twice, or a block within was asked twice.
    """
    stop = Stop()
    with kept_handlers():
        stop.listen()
        try:
            yield stop
        except KeyboardInterrupt:
            if stop.at_once or stop.asked_by is None:  # twice, or not by a signal to us
                raise
            raise Stopped(stop.asked_by) from None


@contextmanager
def kept_handlers() -> Iterator[None]:
    """The handlers of signals are afterwards what they were; ``ray.init``, for one, puts its own in our place."""
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
