"""The run report: during a run, after each kind of end, and over several runs of an output."""

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
from tests.support.balances import BALANCE

# Identifiers of runs, of the form that runs have.
DIED, FOUR, NEXT, ONE, THREE, TWO = (f"{number:012x}" for number in range(6))
PLACEMENT = Placement("cpu", 2, 0.75, 0.0, 1, 0.125, 4, 0.0625, 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), "{}")


def read_report(store: Store) -> dict[str, Any]:
    content = store.read_json("report.json")
    assert content is not None
    return content


def complete_run(store: Store, run_id: str, balance: Balance = BALANCE) -> None:
    with RunReport(store, run_id, listed=1204).closing(lambda: balance):
        pass


def refresh_at_once(report: RunReport, counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_S", 0.0)
    report.refresh(counters)


def some_counters() -> Counters:
    counters = Counters()
    counters.add("encode", 2.0, windows_encoded=3, audio_encoded_s=15.0, recordings=1)
    counters.add("decode", 1.0, audio_s=15.0)
    counters.add("write", 0.5, windows_written=3, shards=1)
    return counters


def test_a_complete_run_leaves_its_balance_and_its_entry(store: Store) -> None:
    complete_run(store, ONE)
    content = read_report(store)
    assert content["state"] == "complete"
    assert content | BALANCE.as_json() == content
    assert [(entry["run_id"], entry["state"]) for entry in content["runs"]] == [(ONE, "complete")]


def test_a_run_whose_balance_does_not_add_up_is_incomplete(store: Store) -> None:
    complete_run(store, ONE, replace(BALANCE, windows_stored=1))
    assert read_report(store)["state"] == read_report(store)["runs"][-1]["state"] == "incomplete"


def test_the_history_keeps_the_order_of_runs(store: Store) -> None:
    for run_id in (ONE, TWO, THREE):
        complete_run(store, run_id)
    assert [entry["run_id"] for entry in read_report(store)["runs"]] == [ONE, TWO, THREE]


def test_the_entry_of_a_run_that_died_is_the_last_one_that_it_wrote(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete_run(store, ONE)
    died = RunReport(store, DIED, listed=1204)
    died.expect(1000.0)
    died.set_workers(PLACEMENT.workers)
    refresh_at_once(died, some_counters(), monkeypatch)
    content = read_report(store)
    assert content["state"] == "running"
    assert content["recordings"] == {"listed": 1204}
    assert content["audio_s"] == {"listed_estimate": 1000}
    complete_run(store, THREE)
    before, died_entry, last = read_report(store)["runs"]
    assert (before["state"], died_entry["state"], last["state"]) == ("complete", "running", "complete")
    assert (died_entry["run_id"], died_entry["windows_encoded"], died_entry["windows_written"]) == (DIED, 3, 3)
    assert read_report(store)["state"] == "complete"


def test_only_a_complete_last_run_excludes_half_done_recordings(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_was_complete() -> bool:
        return RunReport(store, NEXT, listed=1).last_run_was_complete

    assert not last_was_complete()
    complete_run(store, ONE)
    assert last_was_complete()
    refresh_at_once(RunReport(store, DIED, listed=1), Counters(), monkeypatch)
    assert not last_was_complete()
    complete_run(store, THREE)
    assert last_was_complete()
    complete_run(store, FOUR, replace(BALANCE, windows_repeated=1))
    assert not last_was_complete()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Stopped("SIGTERM"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (ValueError("a bug"), "failed"),
        (OSError("the storage failed"), "failed"),
    ],
    ids=["stopped", "interrupted", "bug", "storage"],
)
def test_a_run_that_ends_early_is_reported_with_its_reason(store: Store, error: BaseException, state: str) -> None:
    report = RunReport(store, ONE, listed=1204)
    report.refresh(some_counters())
    with pytest.raises(type(error)) as caught, report.closing(lambda: BALANCE):
        raise error
    assert caught.value is error
    content = read_report(store)
    assert content["state"] == content["runs"][-1]["state"] == state
    assert content["runs"][-1]["windows_written"] == 3
    assert content["recordings"]["listed"] == 1204


def test_an_interrupted_run_does_not_read_its_balance(store: Store) -> None:
    def read_balance() -> Balance:
        raise AssertionError("the output is read")

    with pytest.raises(KeyboardInterrupt), RunReport(store, ONE, listed=1204).closing(read_balance):
        raise KeyboardInterrupt
    assert read_report(store)["state"] == "stopped"


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", [Stopped("Ctrl-C"), KeyboardInterrupt(), ValueError("the real error")], ids=type)
def test_a_storage_that_fails_at_closing_does_not_hide_the_real_error(
    store: Store, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = RunReport(store, ONE, listed=1204)
    monkeypatch.setattr(storage, "write_bytes", failing(OSError("disk full")))
    with pytest.raises(type(error)) as caught, report.closing(lambda: BALANCE):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("at_closing", [OSError("gone"), RequestError("--output: cannot read")], ids=type)
def test_a_balance_that_cannot_be_read_does_not_hide_the_real_error(store: Store, at_closing: Exception) -> None:
    with (
        pytest.raises(ValueError, match="the real error"),
        RunReport(store, ONE, listed=1).closing(failing(at_closing)),
    ):
        raise ValueError("the real error")


def test_a_storage_that_fails_at_the_end_of_a_complete_run_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "write_bytes", failing(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        complete_run(store, ONE)


def test_a_report_that_could_not_be_written_during_the_run_is_written_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = RunReport(store, ONE, listed=1204)
    with monkeypatch.context() as broken:
        broken.setattr(storage, "write_bytes", failing(OSError("disk full")))
        refresh_at_once(report, Counters(), broken)
    assert store.read_json("report.json") is None
    refresh_at_once(report, some_counters(), monkeypatch)
    assert read_report(store)["runs"][0]["windows_encoded"] == 3


def test_the_report_is_written_every_ten_seconds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    written: list[str] = []
    report = RunReport(store, ONE, listed=1204)
    monkeypatch.setattr(Store, "write_json", lambda _, name, __: written.append(name))
    for _ in range(100):
        now_s += 0.5
        report.refresh(Counters())
    assert len(written) == 5


def test_busy_time_is_a_share_of_the_time_of_all_workers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic_s, now_s = time.monotonic(), time.time()
    monkeypatch.setattr(module.time, "monotonic", lambda: monotonic_s)
    monkeypatch.setattr(module.time, "time", lambda: now_s)
    counters = replace(some_counters(), reached_at_s={"first_batch": now_s - 10.0})
    counters.busy_s = {"decode": 10.0, "encode": 10.0, "write": 11.0, "else": 5.0}
    report = RunReport(store, ONE, listed=1204)
    monotonic_s += 20
    refresh_at_once(report, counters, monkeypatch)
    assert read_report(store)["runs"][0]["busy_share"] == {}, "the number of workers is not known yet"
    report.set_workers(PLACEMENT.workers)
    report.refresh(counters)
    entry = read_report(store)["runs"][0]
    assert entry["busy_share"] == {"decode": 0.25, "encode": 0.5, "write": 1.0}
    assert entry["busy_s"] == counters.busy_s


def test_there_are_no_busy_shares_before_the_first_window(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    report = RunReport(store, ONE, listed=1204)
    report.set_workers(PLACEMENT.workers)
    counters = Counters()
    counters.add("decode", 3.0, audio_s=1.0)
    refresh_at_once(report, counters, monkeypatch)
    entry = read_report(store)["runs"][0]
    assert (entry["busy_share"], entry["first_window_after_s"], entry["times_real_time"]) == ({}, None, 0.0)


def test_speed_and_time_to_the_first_window_count_from_the_start_of_the_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monotonic_s, now_s = time.monotonic(), time.time()
    monkeypatch.setattr(module.time, "monotonic", lambda: monotonic_s)
    monkeypatch.setattr(module.time, "time", lambda: now_s)
    report = RunReport(store, ONE, listed=1204)
    counters = replace(some_counters(), reached_at_s={"first_window": now_s + 4.0})
    monotonic_s, now_s = monotonic_s + 10, now_s + 10
    refresh_at_once(report, counters, monkeypatch)
    entry = read_report(store)["runs"][0]
    assert (entry["wall_s"], entry["first_window_after_s"], entry["times_real_time"]) == (10.0, 4.0, 1.5)


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_figures_stay_plausible_when_the_clock_is_set(
    store: Store, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    monotonic_s, now_s = time.monotonic(), time.time()
    monkeypatch.setattr(module.time, "monotonic", lambda: monotonic_s)
    monkeypatch.setattr(module.time, "time", lambda: now_s)
    report = RunReport(store, ONE, listed=1204)
    report.set_workers(PLACEMENT.workers)
    counters = replace(some_counters(), reached_at_s={"first_window": now_s + 4.0, "first_batch": now_s + 2.0})
    monotonic_s, now_s = monotonic_s + 10, now_s + 10 + jump_s
    refresh_at_once(report, counters, monkeypatch)
    entry = read_report(store)["runs"][0]
    assert (entry["wall_s"], entry["first_window_after_s"], entry["times_real_time"]) == (10.0, None, 1.5)
    assert entry["timeline_s"] == {}
    assert entry["busy_share"] == {"decode": 0.025, "encode": 0.1, "write": 0.05}
    assert counters.encoding_s(10.0) == 10.0
