"""``report.json``: while a run goes on, however it ends, and over the runs of an output."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedding import storage
from embedding.counters import Counters
from embedding.errors import RequestError
from embedding.output import run_report as module
from embedding.output.balance import Balance
from embedding.output.run_report import RunReport
from embedding.output.store import Store
from embedding.planning.placement import Placement
from embedding.stopping import Stopped
from tests.unit.output.test_counters import BALANCE

# Run ids, as runs draw them.
DIED, FOUR, NEXT, ONE, THREE, TWO = (f"{number:012x}" for number in range(6))
PLAN = Placement("cpu", 2, 0.75, 0.0, 1, 0.125, 4, 0.0625, 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), "{}")


def report(store: Store) -> dict[str, Any]:
    content = store.read_json("report.json")
    assert content is not None
    return content


def run(store: Store, run_id: str, books: Balance = BALANCE) -> RunReport:
    ledger = RunReport(store, run_id, listed=1204)
    with ledger.closing(lambda: books):
        pass
    return ledger


def at_once(ledger: RunReport, counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_S", 0.0)
    ledger.refresh(counters)


def encoded() -> Counters:
    counters = Counters()
    counters.add("encode", 2.0, windows_encoded=3, audio_encoded_s=15.0, recordings=1)
    counters.add("decode", 1.0, audio_s=15.0)
    counters.add("write", 0.5, windows_written=3, shards=1)
    return counters


def test_a_run_that_ends_well_leaves_its_books_and_itself(store: Store) -> None:
    run(store, ONE)
    content = report(store)
    assert content["state"] == "complete"
    assert content | BALANCE.as_json() == content
    assert [(each["run_id"], each["state"]) for each in content["runs"]] == [(ONE, "complete")]


def test_books_that_do_not_balance_are_incomplete(store: Store) -> None:
    run(store, ONE, replace(BALANCE, windows_stored=1))
    assert report(store)["state"] == report(store)["runs"][-1]["state"] == "incomplete"


def test_runs_follow_each_other(store: Store) -> None:
    for run_id in (ONE, TWO, THREE):
        run(store, run_id)
    assert [each["run_id"] for each in report(store)["runs"]] == [ONE, TWO, THREE]


def test_a_run_that_died_stays_as_it_was_last_heard_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run(store, ONE)
    died = RunReport(store, DIED, listed=1204)
    died.expect(1000.0)
    died.set_workers(PLAN.workers)
    at_once(died, encoded(), monkeypatch)
    content = report(store)
    assert content["state"] == "running"
    assert content["recordings"] == {"listed": 1204}
    assert content["audio_s"] == {"listed_estimate": 1000}
    run(store, THREE)
    before, dead, last = report(store)["runs"]
    assert (before["state"], dead["state"], last["state"]) == ("complete", "running", "complete")
    assert (dead["run_id"], dead["windows_encoded"], dead["windows_written"]) == (DIED, 3, 3)
    assert report(store)["state"] == "complete"


def test_whether_something_may_be_half_done(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_was_complete() -> bool:
        return RunReport(store, NEXT, listed=1).last_run_was_complete

    assert not last_was_complete()
    run(store, ONE)
    assert last_was_complete()
    at_once(RunReport(store, DIED, listed=1), Counters(), monkeypatch)
    assert not last_was_complete()
    run(store, THREE)
    assert last_was_complete()
    run(store, FOUR, replace(BALANCE, windows_repeated=1))
    assert not last_was_complete()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Stopped("SIGTERM"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (ValueError("a bug"), "failed"),
        (OSError("the storage failed"), "failed"),
    ],
    ids=["stopped", "broken off", "bug", "storage"],
)
def test_a_run_that_ends_early_says_how_and_is_not_made_to_look_better(
    store: Store, error: BaseException, state: str
) -> None:
    ledger = RunReport(store, ONE, listed=1204)
    ledger.refresh(encoded())
    with pytest.raises(type(error)) as caught, ledger.closing(lambda: BALANCE):
        raise error
    assert caught.value is error
    content = report(store)
    assert content["state"] == content["runs"][-1]["state"] == state
    assert content["runs"][-1]["windows_written"] == 3
    assert content["recordings"]["listed"] == 1204


def test_whoever_breaks_a_run_off_does_not_wait_for_its_books(store: Store) -> None:
    def books() -> Balance:
        raise AssertionError("the output is read")

    with pytest.raises(KeyboardInterrupt), RunReport(store, ONE, listed=1204).closing(books):
        raise KeyboardInterrupt
    assert report(store)["state"] == "stopped"


def fails(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", [Stopped("Ctrl-C"), KeyboardInterrupt(), ValueError("the real error")], ids=type)
def test_a_storage_that_fails_at_closing_does_not_hide_the_real_error(
    store: Store, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = RunReport(store, ONE, listed=1204)
    monkeypatch.setattr(storage, "write_bytes", fails(OSError("disk full")))
    with pytest.raises(type(error)) as caught, ledger.closing(lambda: BALANCE):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("at_closing", [OSError("gone"), RequestError("--output: cannot read")], ids=type)
def test_books_that_cannot_be_read_do_not_hide_the_real_error(store: Store, at_closing: Exception) -> None:
    with pytest.raises(ValueError, match="the real error"), RunReport(store, ONE, listed=1).closing(fails(at_closing)):
        raise ValueError("the real error")


def test_a_storage_that_fails_at_a_good_end_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "write_bytes", fails(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run(store, ONE)


def test_a_storage_that_fails_on_the_way_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = RunReport(store, ONE, listed=1204)
    with monkeypatch.context() as broken:
        broken.setattr(storage, "write_bytes", fails(OSError("disk full")))
        at_once(ledger, Counters(), broken)
    assert store.read_json("report.json") is None
    at_once(ledger, encoded(), monkeypatch)
    assert report(store)["runs"][0]["windows_encoded"] == 3


def test_it_is_written_now_and_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    written: list[str] = []
    ledger = RunReport(store, ONE, listed=1204)
    monkeypatch.setattr(Store, "write_json", lambda _, name, __: written.append(name))
    for _ in range(100):
        now_s += 0.5
        ledger.refresh(Counters())
    assert len(written) == 5


def test_busy_time_is_told_as_a_share_of_the_workers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic_s, now_s = time.monotonic(), time.time()
    monkeypatch.setattr(module.time, "monotonic", lambda: monotonic_s)
    monkeypatch.setattr(module.time, "time", lambda: now_s)
    counters = replace(encoded(), encoding_since_s=now_s - 10.0)
    counters.busy_s = {"decode": 10.0, "encode": 10.0, "write": 11.0, "else": 5.0}
    ledger = RunReport(store, ONE, listed=1204)
    monotonic_s += 20
    at_once(ledger, counters, monkeypatch)
    assert report(store)["runs"][0]["busy_share"] == {}, "of how many workers is not known yet"
    ledger.set_workers(PLAN.workers)
    ledger.refresh(counters)
    told = report(store)["runs"][0]
    assert told["busy_share"] == {"decode": 0.25, "encode": 0.5, "write": 1.0}
    assert told["busy_s"] == counters.busy_s


def test_before_the_first_window_there_are_no_shares(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = RunReport(store, ONE, listed=1204)
    ledger.set_workers(PLAN.workers)
    counters = Counters()
    counters.add("decode", 3.0, audio_s=1.0)
    at_once(ledger, counters, monkeypatch)
    told = report(store)["runs"][0]
    assert (told["busy_share"], told["first_window_after_s"], told["times_real_time"]) == ({}, None, 0.0)


def test_speed_counts_the_whole_run_and_the_first_window_from_its_beginning(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monotonic_s, now_s = time.monotonic(), time.time()
    monkeypatch.setattr(module.time, "monotonic", lambda: monotonic_s)
    monkeypatch.setattr(module.time, "time", lambda: now_s)
    ledger = RunReport(store, ONE, listed=1204)
    counters = replace(encoded(), first_window_at_s=now_s + 4.0)
    monotonic_s, now_s = monotonic_s + 10, now_s + 10
    at_once(ledger, counters, monkeypatch)
    told = report(store)["runs"][0]
    assert (told["wall_s"], told["first_window_after_s"], told["times_real_time"]) == (10.0, 4.0, 1.5)


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_by_an_hour_changes_no_figure_to_nonsense(
    store: Store, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    monotonic_s, now_s = time.monotonic(), time.time()
    monkeypatch.setattr(module.time, "monotonic", lambda: monotonic_s)
    monkeypatch.setattr(module.time, "time", lambda: now_s)
    ledger = RunReport(store, ONE, listed=1204)
    ledger.set_workers(PLAN.workers)
    counters = replace(encoded(), first_window_at_s=now_s + 4.0, encoding_since_s=now_s + 2.0)
    monotonic_s, now_s = monotonic_s + 10, now_s + 10 + jump_s
    at_once(ledger, counters, monkeypatch)
    told = report(store)["runs"][0]
    assert (told["wall_s"], told["first_window_after_s"], told["times_real_time"]) == (10.0, None, 1.5)
    assert told["busy_share"] == {"decode": 0.025, "encode": 0.1, "write": 0.05}
    assert counters.encoding_s(10.0) == 10.0
