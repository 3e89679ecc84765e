"""The run report, ``report.json``: written while a run goes on and at its end, with the history of former runs."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from embedding.counters import Counters
from embedding.errors import RequestError
from embedding.output.balance import Balance
from embedding.output.store import Store
from embedding.stopping import Stopped
from embedding.timeline import Timeline

NAME = "report.json"
REFRESH_S = 10.0


def is_settled(store: Store) -> bool:
    """Return whether the last run has ended well.

    While a run goes on, or after one that died, rows of an output may be missing, repeated or superseded.
    """
    return (store.read_json(NAME) or {}).get("state") not in ("running", "failed")


def has_ended(store: Store) -> bool:
    """Return whether the last run has come to its end, and has brought the table of recordings up to date."""
    report = store.read_json(NAME) or {}
    return report.get("state") in ("complete", "incomplete") and not report.get("recordings_outdated")


@dataclass(frozen=True)
class RunEntry:
    """One run in the history of an output.

    The entry of a run that died is the last one that it wrote, in the state ``running``. docs/schema.md explains the
    fields.
    """

    run_id: str
    host: str
    started: str  # ISO 8601
    state: str = "running"  # running, complete, incomplete, stopped or failed
    wall_s: float = 0.0
    first_window_after_s: float | None = None
    timeline_s: dict[str, float] = field(default_factory=dict)
    recordings_finished: int = 0
    recordings_failed: int = 0
    windows_encoded: int = 0
    windows_written: int = 0
    shards: int = 0
    audio_decoded_s: float = 0.0
    audio_encoded_s: float = 0.0
    times_real_time: float | None = None
    done_again: dict[str, int] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)
    busy_share: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] | None = None


class RunReport:
    """The report of one run over one output.

    Attributes:
        recordings_outdated: This run could not bring the table of recordings up to date.
        recordings_were_current: The table of recordings was up to date before this run.
    """

    def __init__(self, store: Store, run_id: str, *, listed: int, timeline: Timeline | None = None) -> None:
        """Start the report.

        Args:
            store: The output.
            run_id: Identifier of the run.
            listed: Number of listed recordings.
            timeline: Timeline of the run; None for one that begins now.
        """
        before = store.read_json(NAME) or {}
        self._store = store
        self._history: list[dict[str, Any]] = before.get("runs", [])
        self._entry = RunEntry(run_id, socket.gethostname(), datetime.now(UTC).isoformat(timespec="milliseconds"))
        self._began_s = self._written_s = time.monotonic()
        self._listed = listed
        self._timeline = timeline or Timeline()
        self._audio_listed_s = 0.0
        self._workers: dict[str, int] = {}
        self._counters = Counters()
        self.recordings_outdated = False
        self.recordings_were_current = before.get("state") == "complete" and not before.get("recordings_outdated")

    @property
    def last_run_was_complete(self) -> bool:
        """True if no recording of the output can be half-done."""
        return bool(self._history) and self._history[-1].get("state") == "complete"

    @property
    def wall_s(self) -> float:
        """Seconds since the report was started."""
        return time.monotonic() - self._began_s

    def expect(self, audio_s: float) -> None:
        """Take note of the estimated seconds of audio in all listed recordings."""
        self._audio_listed_s = audio_s

    def set_workers(self, workers: Mapping[str, int]) -> None:
        """Take note of the number of workers by stage; a stage without a fixed number is missing."""
        self._workers = dict(workers)

    def refresh(self, counters: Counters) -> None:
        """Take note of the counters, and write the report every REFRESH_S."""
        self._counters = counters
        if time.monotonic() - self._written_s >= REFRESH_S:
            self._written_s = time.monotonic()
            with suppress(OSError):  # the next refresh tries again; writing shards reports a storage that fails
                self._write("running", None)

    @contextmanager
    def closing(self, read_balance: Callable[[], Balance]) -> Iterator[None]:
        """Close the report when the block ends, however it ends.

        Args:
            read_balance: Reads the balance from the output.
        """
        try:
            yield
        except Stopped:
            self._close_if_possible("stopped", read_balance)
            raise
        except KeyboardInterrupt:
            self._close_if_possible("stopped", lambda: None)  # the run is to end at once: the output is not read
            raise
        except Exception:  # also a bug, which is raised again
            self._close_if_possible("failed", read_balance)
            raise
        balance = read_balance()
        self._write("complete" if balance.balanced else "incomplete", balance)

    def _close_if_possible(self, state: str, read_balance: Callable[[], Balance | None]) -> None:
        with suppress(OSError, RequestError):  # a storage that failed has its own message
            self._write(state, read_balance())

    def _write(self, state: str, balance: Balance | None) -> None:
        counters, wall_s = self._counters, self.wall_s
        first_s = counters.reached_at_s.get("first_window", 0.0) - (time.time() - wall_s)
        entry = replace(
            self._entry,
            state=state,
            wall_s=round(wall_s, 3),
            # None where the clock of the day was set meanwhile.
            first_window_after_s=round(first_s, 3) if 0 <= first_s <= wall_s else None,
            timeline_s=self._timeline.seconds(counters.reached_at_s),
            recordings_finished=counters.recordings,
            recordings_failed=counters.failed,
            windows_encoded=counters.windows_encoded,
            windows_written=counters.windows_written,
            shards=counters.shards,
            audio_decoded_s=round(counters.audio_s, 3),
            audio_encoded_s=round(counters.audio_encoded_s, 3),
            times_real_time=round(counters.audio_encoded_s / wall_s, 1) if wall_s else None,
            done_again=counters.done_again if state != "running" else {},
            busy_s={stage: round(seconds, 3) for stage, seconds in counters.busy_s.items()},
            busy_share=self._busy_share(counters),
            agreement=next(iter(counters.agreements.values()), None),
        )
        so_far = {"recordings": {"listed": self._listed}, "windows": {}, "failures": {}}
        content = balance.as_json() if balance is not None else so_far
        outdated = {"recordings_outdated": True} if self.recordings_outdated else {}
        content = {"state": state} | outdated | content | {"audio_s": {"listed_estimate": round(self._audio_listed_s)}}
        self._store.write_json(NAME, content | {"runs": [*self._history, asdict(entry)]})

    def _busy_share(self, counters: Counters) -> dict[str, float]:
        """Return for each stage the share of its workers' time that was work, since the first batch began."""
        if "first_batch" not in counters.reached_at_s:
            return {}
        since_s = counters.encoding_s(self.wall_s)
        return {
            stage: round(min(1.0, busy_s / (since_s * self._workers[stage])), 3)
            for stage, busy_s in counters.busy_s.items()
            if stage in self._workers
        }
