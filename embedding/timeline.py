"""Times at which a run reached its steps, counted from the start of its command."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import psutil


def _process_age_s() -> float:
    """Return the seconds since this process was started.

    On Linux by the clock that runs since the machine was started, to 10 ms. psutil adds the time of that start, which
    the kernel gives in whole seconds.
    """
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return time.time() - psutil.Process().create_time()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


class Timeline:
    """The steps of a run in the driver, each with its time."""

    def __init__(self, before_s: float = 0.0) -> None:
        """Start the timeline.

        Args:
            before_s: Seconds since the start of the command.
        """
        self._began_s = time.monotonic() - before_s
        self._steps_s: dict[str, float] = {}

    @classmethod
    def of_process(cls) -> "Timeline":
        """Return a timeline that began with this process."""
        return cls(max(0.0, _process_age_s()))  # negative where the clock of the day was set

    def reached(self, step: str) -> None:
        """Take note that a step is reached now."""
        self._steps_s[step] = time.monotonic() - self._began_s

    def seconds(self, workers_at_s: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds from the start of the command to each step, in their order.

        Args:
            workers_at_s: Steps that workers reached, in seconds since 1970. Those that lie outside of the run are left
                out: the clock of the day was set meanwhile.
        """
        now_s = time.monotonic() - self._began_s
        began_at_s = time.time() - now_s
        workers_s = {step: at_s - began_at_s for step, at_s in workers_at_s.items()}
        steps = self._steps_s | {step: seconds for step, seconds in workers_s.items() if 0 <= seconds <= now_s}
        return {step: round(steps[step], 3) for step in sorted(steps, key=steps.__getitem__)}
