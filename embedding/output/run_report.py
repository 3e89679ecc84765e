"""``report.json``, written while a run goes on and at its end; and the history of the runs before."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from embedding.counters import Counters
from embedding.errors import RequestError
from embedding.output.balance import Balance
from embedding.output.store import Store
from embedding.planning.placement import Placement
from embedding.stopping import Stopped

NAME = "report.json"
REFRESH_S = 10.0


def is_settled(store: Store) -> bool:
    """Whether no run is under way or died: then rows may be missing, there twice, or of former versions."""
    return (store.read_json(NAME) or {}).get("state") not in ("running", "failed")


@dataclass(frozen=True)
class RunEntry:
    """One run in the history of an output. A run that died is there as it was last heard of, in state ``running``."""

    run_id: str
    host: str
    started: str  # ISO 8601
    state: str = "running"  # running, complete, incomplete, stopped or failed
    wall_s: float = 0.0
    first_window_after_s: float | None = None
    recordings_finished: int = 0
    recordings_failed: int = 0
    windows_encoded: int = 0
    windows_written: int = 0
    shards: int = 0
    audio_decoded_s: float = 0.0
    audio_encoded_s: float = 0.0
    times_real_time: float | None = None
    done_again: dict[str, int] = field(default_factory=dict)  # Counters.done_again
    busy_s: dict[str, float] = field(default_factory=dict)
    busy_share: dict[str, float] = field(default_factory=dict)


class RunReport:
    """The report of one run, and where it is written."""

    def __init__(self, store: Store, run_id: str, *, listed: int) -> None:
        before = store.read_json(NAME) or {}
        self._store = store
        self._history: list[dict[str, Any]] = before.get("runs", [])
        self._run = RunEntry(run_id, socket.gethostname(), datetime.now(UTC).isoformat(timespec="milliseconds"))
        self._began_s = self._written_s = time.monotonic()
        self._listed = listed
        self._audio_listed_s = 0.0
        self._workers: dict[str, int] = {}
        self._tally = Counters()

    @property
    def last_run_was_complete(self) -> bool:
        """Whether nothing can be half-done in the output."""
        return bool(self._history) and self._history[-1].get("state") == "complete"

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self._began_s

    def expect(self, audio_s: float) -> None:
        """About so much audio is listed."""
        self._audio_listed_s = audio_s

    def employ(self, plan: Placement) -> None:
        """With so many workers: busy time is told as a share of theirs, where a stage has a known number of them."""
        self._workers = {"encode": plan.n_actors, "write": plan.n_writers}
        if not plan.may_wait:
            self._workers["decode"] = plan.n_decoders

    def refresh(self, tally: Counters) -> None:
        """Note the counts, and write them down every REFRESH_S."""
        self._tally = tally
        if time.monotonic() - self._written_s >= REFRESH_S:
            self._written_s = time.monotonic()
            with suppress(OSError):  # it is tried again, and what matters fails elsewhere
                self._write("running", None)

    @contextmanager
    def closing(self, books: Callable[[], Balance]) -> Iterator[None]:
        """Close the report when the block ends, however it ends; ``books`` reads them from the output."""
        try:
            yield
        except Stopped:
            self._close_if_possible("stopped", books)
            raise
        except KeyboardInterrupt:
            self._close_if_possible("stopped", lambda: None)  # the output is not read: it is to end at once
            raise
        except Exception:  # a bug, too: it goes on up, and the report says that the run ended
            self._close_if_possible("failed", books)
            raise
        balance = books()
        self._write("complete" if balance.balanced else "incomplete", balance)

    def _close_if_possible(self, state: str, books: Callable[[], Balance | None]) -> None:
        with suppress(OSError, RequestError):  # the storage may be what failed, and says so itself
            self._write(state, books())

    def _write(self, state: str, books: Balance | None) -> None:
        tally, wall_s = self._tally, self.wall_s
        first_s = (tally.first_window_at_s or 0.0) - (time.time() - wall_s)
        run = replace(
            self._run,
            state=state,
            wall_s=round(wall_s, 3),
            first_window_after_s=round(first_s, 3) if 0 <= first_s <= wall_s else None,  # else the clock was set
            recordings_finished=tally.recordings,
            recordings_failed=tally.failed,
            windows_encoded=tally.windows_encoded,
            windows_written=tally.windows_written,
            shards=tally.shards,
            audio_decoded_s=round(tally.audio_s, 3),
            audio_encoded_s=round(tally.audio_encoded_s, 3),
            times_real_time=round(tally.audio_encoded_s / wall_s, 1) if wall_s else None,
            done_again=tally.done_again if state != "running" else {},
            busy_s={stage: round(seconds, 3) for stage, seconds in tally.busy_s.items()},
            busy_share=self._busy_share(tally),
        )
        so_far = {"recordings": {"listed": self._listed}, "windows": {}, "failures": {}}
        content = books.as_json() if books is not None else so_far
        content = {"state": state} | content | {"audio_s": {"listed_estimate": round(self._audio_listed_s)}}
        self._store.write_json(NAME, content | {"runs": [*self._history, asdict(run)]})

    def _busy_share(self, tally: Counters) -> dict[str, float]:
        """Of the time since the first batch was begun, over all workers of a stage."""
        if tally.encoding_since_s is None:
            return {}
        since_s = tally.encoding_s(self.wall_s)
        return {
            stage: round(min(1.0, busy_s / (since_s * self._workers[stage])), 3)
            for stage, busy_s in tally.busy_s.items()
            if stage in self._workers
        }
