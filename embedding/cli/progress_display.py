"""The progress of a run: a bar in a terminal, a line every ten seconds in a log."""

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from embedding.cli.terminal import LOG_EVERY_S, Terminal
from embedding.counters import Counters
from embedding.planning.placement import ClusterResources, Placement
from embedding.stopping import GRACE_S
from embedding.text import audio_length, duration, plural

# Without a window for so long it is said what the run may be waiting for.
QUIET_S = 60.0


def describe(tally: Counters, audio_s: float, elapsed_s: float) -> str:
    """``2,060 windows · 5.7 h of audio · 184 × real time · 2 failed · 3 min left``."""
    parts = [plural(tally.windows_encoded, "window"), f"{audio_length(tally.audio_encoded_s)} of audio"]
    if tally.audio_encoded_s and elapsed_s:
        parts.append(f"{tally.audio_encoded_s / elapsed_s:,.0f} × real time")
    if tally.failed:
        parts.append(f"{tally.failed:,} failed")
    if tally.audio_encoded_s and elapsed_s:
        left_s = max(0.0, audio_s - tally.audio_encoded_s) / (tally.audio_encoded_s / elapsed_s)
        parts.append(f"{duration(left_s)} left")
    return " · ".join(parts)


class ProgressDisplay:
    """Shows the tally of a run: call it with each new one."""

    def __init__(self, terminal: Terminal, n_recordings: int, audio_s: float) -> None:
        self._terminal = terminal
        self._n_recordings = n_recordings
        self._audio_s = audio_s
        self._began_s = time.monotonic()
        self._last_line_s = self._began_s
        self._n_actors = 0
        self._n_windows = 0
        self._heard_s = self._said_quiet_s = self._began_s
        self._is_stopping = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if terminal.console.is_terminal:
            self._bar = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                console=terminal.console,
            )
            self._task = self._bar.add_task("starting Ray and loading the model", total=n_recordings)

    def __enter__(self) -> "ProgressDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def starting(self, placement: Placement) -> None:
        self._n_actors = placement.n_actors
        self._terminal.say(f"{plural(placement.n_actors, 'actor')} on {placement.device} · loading the model")
        if placement.may_wait:
            self._terminal.say("Ray has not so many yet: it begins with what there is, and waits for its autoscaler")

    def stopping(self, asked_by: str) -> None:
        """Say once that the run ends early."""
        if not self._is_stopping:
            self._is_stopping = True
            self._terminal.say(f"{asked_by}: shards in flight may land, {GRACE_S:.0f} s at most; again stops at once")

    def __call__(self, tally: Counters, look: Callable[[], ClusterResources]) -> None:
        """Show ``tally``; ``look`` at the cluster only if nothing moves."""
        self._say_if_quiet(tally, look)
        if not tally.windows_encoded and not tally.failed:
            return
        # Speed counts from the first window: start-up would make the first minute's estimate absurd.
        encoding_s = tally.encoding_s(time.monotonic() - self._began_s)
        text = describe(tally, self._audio_s, encoding_s)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=tally.recordings, description=text)
        elif time.monotonic() - self._last_line_s >= LOG_EVERY_S:
            self._last_line_s = time.monotonic()
            self._terminal.say(f"{tally.recordings:,}/{self._n_recordings:,} recordings · {text}")

    def _say_if_quiet(self, tally: Counters, look: Callable[[], ClusterResources]) -> None:
        now_s = time.monotonic()
        if tally.windows_encoded != self._n_windows:
            self._n_windows, self._heard_s = tally.windows_encoded, now_s
        if now_s - max(self._heard_s, self._said_quiet_s) < QUIET_S:
            return
        self._said_quiet_s = now_s
        cluster = look()
        self._terminal.say(
            f"no window for {duration(now_s - self._heard_s)}: {min(tally.encoders, self._n_actors)} of "
            f"{plural(self._n_actors, 'encoder')} have loaded; Ray has {cluster.n_cpus:g} CPUs and "
            f"{cluster.n_gpus:g} GPUs on {plural(cluster.n_nodes, 'node')}"
        )
