"""The progress of a run: a bar in a terminal, a line every ten seconds in a log."""

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from embedding.cli.terminal import LOG_EVERY_S, Terminal
from embedding.counters import Counters
from embedding.planning.placement import ClusterResources, Placement
from embedding.stopping import GRACE_S
from embedding.text import audio_length, duration, plural

# Seconds without a window after which a line says what the run may be waiting for.
QUIET_S = 60.0


def describe(counters: Counters, audio_s: float, elapsed_s: float) -> str:
    """Return a line like ``2,060 windows · 5.7 h of audio · 184 × real time · 2 failed · 3 min left``.

    Args:
        counters: The counters of the run.
        audio_s: Estimated seconds of audio in the whole run.
        elapsed_s: Seconds since the first batch.
    """
    parts = [plural(counters.windows_encoded, "window"), f"{audio_length(counters.audio_encoded_s)} of audio"]
    if counters.audio_encoded_s and elapsed_s:
        parts.append(f"{counters.audio_encoded_s / elapsed_s:,.0f} × real time")
    if counters.failed:
        parts.append(f"{counters.failed:,} failed")
    if counters.audio_encoded_s and elapsed_s:
        left_s = max(0.0, audio_s - counters.audio_encoded_s) / (counters.audio_encoded_s / elapsed_s)
        parts.append(f"{duration(left_s)} left")
    return " · ".join(parts)


class ProgressDisplay:
    """The display of one run. Enter it as a context, and call it with the counters of the run."""

    def __init__(self, terminal: Terminal, n_recordings: int, audio_s: float) -> None:
        """Start a display.

        Args:
            terminal: The terminal.
            n_recordings: Number of recordings to embed.
            audio_s: Estimated seconds of audio in the recordings.
        """
        self._terminal = terminal
        self._n_recordings = n_recordings
        self._audio_s = audio_s
        self._began_s = time.monotonic()
        self._last_line_s = self._began_s
        self._n_actors = 0
        self._n_windows = 0
        self._last_window_s = self._last_quiet_line_s = self._began_s
        self._is_stopping = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if terminal.shows_bars:
            columns = [MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.description}")]
            self._bar = Progress(*columns, console=terminal.console)
            self._task = self._bar.add_task("starting Ray and loading the model", total=n_recordings)

    def __enter__(self) -> "ProgressDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def starting(self, placement: Placement) -> None:
        """Say that the encoders load their models."""
        self._n_actors = placement.n_actors
        device = "GPU" if placement.device == "cuda" else "CPU"
        workers = plural(placement.n_actors, f"{device} worker")
        self._terminal.say(f"loading the model into {workers} (about 15 s)")
        if placement.may_wait:
            self._terminal.say("not all workers fit yet: starting with those that do, others wait for the autoscaler")

    def stopping(self, signal_name: str) -> None:
        """Say once that the run ends early."""
        if not self._is_stopping:
            self._is_stopping = True
            self._terminal.say(
                f"{signal_name}: finishing open shards for up to {GRACE_S:.0f} s; once more stops at once"
            )

    def __call__(self, counters: Counters, read_resources: Callable[[], ClusterResources]) -> None:
        """Show the counters.

        Args:
            counters: The counters of the run.
            read_resources: Reads the resources of the cluster; called only while no window comes.
        """
        self._say_if_quiet(counters, read_resources)
        if not counters.windows_encoded and not counters.failed:
            return
        # Speed counts from the first batch: with the start-up the estimate of the first minute would be absurd.
        encoding_s = counters.encoding_s(time.monotonic() - self._began_s)
        text = describe(counters, self._audio_s, encoding_s)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=counters.recordings, description=text)
        elif time.monotonic() - self._last_line_s >= LOG_EVERY_S:
            self._last_line_s = time.monotonic()
            self._terminal.say(f"{counters.recordings:,}/{self._n_recordings:,} recordings · {text}")

    def _say_if_quiet(self, counters: Counters, read_resources: Callable[[], ClusterResources]) -> None:
        now_s = time.monotonic()
        if counters.windows_encoded != self._n_windows:
            self._n_windows, self._last_window_s = counters.windows_encoded, now_s
        if now_s - max(self._last_window_s, self._last_quiet_line_s) < QUIET_S:
            return
        self._last_quiet_line_s = now_s
        cluster = read_resources()
        self._terminal.say(
            f"no window for {duration(now_s - self._last_window_s)}: {min(counters.encoders, self._n_actors)} of "
            f"{plural(self._n_actors, 'encoder')} have loaded; Ray has {cluster.n_cpus:g} CPUs and "
            f"{cluster.n_gpus:g} GPUs on {plural(cluster.n_nodes, 'node')}"
        )
