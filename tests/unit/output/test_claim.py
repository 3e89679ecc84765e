"""Claims on an output: held, lapsed, lost, and taken over by one of several runs."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from embedding import storage
from embedding.errors import RequestError, RunError
from embedding.output import claim as module
from embedding.output.claim import Claim, ClaimHolder, check_holder, hold_claim, read_holder
from tests.support.claims import OURS, THEIRS, dead_holder, leave_claim, remote_holder
from tests.support.commands import ROOT

AGAIN = "0000000000cc"
SECOND, THIRD, FASTER, SLOWER = (f"{number:012x}" for number in range(1, 5))

HOLDING_PROGRAM = """
import sys
from embedding.output.claim import hold_claim

with hold_claim(sys.argv[1], "0000000000bb", print):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding_process(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds ``root`` until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING_PROGRAM, str(root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def refuse_to_wait(holder: ClaimHolder) -> None:
    raise AssertionError(f"the process can be looked up, and the run waited for it: {holder}")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.05)
    monkeypatch.setattr(module, "LAPSE_S", 0.6)


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


# --- held and released ------------------------------------------------------------------------------------------------


def test_a_claim_exists_while_the_block_runs(tmp_path: Path) -> None:
    root = tmp_path / "out"
    with hold_claim(str(root), OURS, refuse_to_wait) as claim:
        holder = read_holder(str(root / "claim.json"))
        assert holder == claim.holder
        assert holder is not None
        assert (holder.run_id, holder.pid) == (OURS, os.getpid())
        claim.check()
        check_holder(str(root), OURS)
    assert list(root.iterdir()) == []


def test_a_claim_is_released_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold_claim(str(tmp_path), OURS, refuse_to_wait):
        raise ZeroDivisionError
    with hold_claim(str(tmp_path), AGAIN, refuse_to_wait):
        pass


def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    with hold_claim(str(tmp_path), OURS, refuse_to_wait) as claim:
        with pytest.raises(RequestError) as refused, hold_claim(str(tmp_path), SECOND, refuse_to_wait):
            pass
        assert f"process {os.getpid()} on {claim.holder.host}, since {claim.holder.started}" in str(refused.value)
        assert "--output" in str(refused.value)
        check_holder(str(tmp_path), OURS)
        claim.check()


def test_the_claim_of_a_live_process_is_not_changed_by_a_run_that_is_refused(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        before = (tmp_path / "claim.json").read_bytes()
        with pytest.raises(RequestError, match=f"process {process.pid} on "):
            Claim(str(tmp_path), ClaimHolder.this_process(OURS))._take(refuse_to_wait)
        assert json.loads((tmp_path / "claim.json").read_bytes()) | {"renewals": 0} == json.loads(before)


@pytest.mark.usefixtures("fast")
def test_a_claim_is_renewed(tmp_path: Path) -> None:
    with hold_claim(str(tmp_path), OURS, refuse_to_wait) as claim:

        def renewals() -> int:
            holder = read_holder(str(tmp_path / "claim.json"))
            assert holder is not None
            return holder.renewals

        assert eventually(lambda: renewals() >= 3)
        claim.check()


@pytest.mark.usefixtures("fast")
def test_a_renewal_that_fails_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_claim(str(tmp_path), OURS, refuse_to_wait) as claim:
        with monkeypatch.context() as broken:

            def fail(*_: object) -> None:
                raise OSError("the storage failed")

            broken.setattr(storage, "write_bytes", fail)
            time.sleep(0.3)
        renewals = claim.holder.renewals
        assert eventually(lambda: claim.holder.renewals > renewals + 1)
        claim.check()


# --- lapsed -----------------------------------------------------------------------------------------------------------


def test_the_claim_of_a_killed_process_lapses_at_once(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        process.kill()
        process.wait()
        with hold_claim(str(tmp_path), OURS, refuse_to_wait):
            check_holder(str(tmp_path), OURS)
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_zombie_lapses_at_once(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        process.kill()
        assert eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        with hold_claim(str(tmp_path), OURS, refuse_to_wait):
            check_holder(str(tmp_path), OURS)


def test_the_claim_of_a_dead_process_lapses_at_once_where_another_process_has_its_number(tmp_path: Path) -> None:
    leave_claim(tmp_path, dead_holder())
    with hold_claim(str(tmp_path), OURS, refuse_to_wait):
        check_holder(str(tmp_path), OURS)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels keep the time of day at which a process began")
def test_a_process_is_recognised_after_the_clock_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holding_process(tmp_path):
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: time.time() + 3600)  # type: ignore[attr-defined]
        with pytest.raises(RequestError):
            Claim(str(tmp_path), ClaimHolder.this_process(OURS))._take(refuse_to_wait)


def test_a_hidden_process_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(pid: int) -> float:
        raise psutil.NoSuchProcess(pid)

    def forbidden(pid: int, _: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(pid))

    holder = ClaimHolder.this_process(THEIRS)
    monkeypatch.setattr(module, "_start_of", hidden)
    monkeypatch.setattr(os, "kill", forbidden)
    assert holder.is_dead() is False


@pytest.mark.usefixtures("fast")
def test_the_claim_of_another_machine_lapses_after_a_wait_without_renewals(tmp_path: Path) -> None:
    leave_claim(tmp_path, remote_holder())
    waited_for: list[ClaimHolder] = []
    began = time.monotonic()
    with hold_claim(str(tmp_path), OURS, waited_for.append):
        assert time.monotonic() - began >= module.LAPSE_S
        check_holder(str(tmp_path), OURS)
    assert [holder.host for holder in waited_for] == ["far-away"]


@pytest.mark.usefixtures("fast")
def test_a_run_is_refused_while_another_machine_renews_its_claim(tmp_path: Path) -> None:
    leave_claim(tmp_path, remote_holder())

    def renew(_: ClaimHolder) -> None:
        threading.Timer(module.LAPSE_S / 2, leave_claim, (tmp_path, remote_holder(renewals=1))).start()

    with pytest.raises(RequestError, match="far-away"):
        Claim(str(tmp_path), ClaimHolder.this_process(OURS))._take(renew)
    check_holder(str(tmp_path), THEIRS)


@pytest.mark.usefixtures("fast")
def test_a_claim_that_is_released_during_the_wait_can_be_taken(tmp_path: Path) -> None:
    leave_claim(tmp_path, remote_holder())
    with hold_claim(str(tmp_path), OURS, lambda _: (tmp_path / "claim.json").unlink()):
        check_holder(str(tmp_path), OURS)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("content", [b"", b'{"run_id": "the', b"[]", b'{"run_id": THEIRS}', b"\xff\xfe"])
def test_a_half_written_claim_lapses_after_a_wait(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "claim.json").write_bytes(content)
    waited_for: list[ClaimHolder] = []
    with hold_claim(str(tmp_path), OURS, waited_for.append):
        check_holder(str(tmp_path), OURS)
    assert len(waited_for) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fast")
def test_a_run_is_refused_where_a_half_written_claim_is_completed(tmp_path: Path) -> None:
    (tmp_path / "claim.json").touch()
    with pytest.raises(RequestError, match="far-away"):
        Claim(str(tmp_path), ClaimHolder.this_process(OURS))._take(lambda _: leave_claim(tmp_path, remote_holder()))


# --- lost -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("is_removed", [True, False], ids=["removed", "taken over"])
def test_a_run_that_lost_its_claim_gets_an_error_and_changes_no_other_claim(
    tmp_path: Path, *, is_removed: bool
) -> None:
    with hold_claim(str(tmp_path), OURS, refuse_to_wait) as claim:
        if is_removed:
            (tmp_path / "claim.json").unlink()
        else:
            leave_claim(tmp_path, remote_holder())

        def error_message() -> str:
            try:
                claim.check()
            except RunError as error:
                return str(error)
            return ""

        assert eventually(lambda: bool(error_message()))
        expected = "lost this run's claim" if is_removed else "belongs to another run now (process "
        assert expected in error_message()
    holder = read_holder(str(tmp_path / "claim.json"))
    assert (holder and holder.run_id) == (None if is_removed else THEIRS)


def test_a_claim_that_another_run_has_taken_over_is_not_removed_at_the_end(tmp_path: Path) -> None:
    with hold_claim(str(tmp_path), OURS, refuse_to_wait):
        leave_claim(tmp_path, remote_holder())
    check_holder(str(tmp_path), THEIRS)


def test_a_task_that_outlives_its_run_gets_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="lost this run's claim"):
        check_holder(str(tmp_path), OURS)
    leave_claim(tmp_path, remote_holder())
    with pytest.raises(RunError, match="far-away"):
        check_holder(str(tmp_path), OURS)
    (tmp_path / "claim.json").write_bytes(b"{")
    with pytest.raises(RunError, match="an unknown host"):
        check_holder(str(tmp_path), OURS)


# --- taken over by one of several runs --------------------------------------------------------------------------------


def test_the_slower_of_two_runs_does_not_remove_the_claim_of_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs find the claim lapsed; then one takes it over before the other removes it."""
    leave_claim(tmp_path, dead_holder())
    faster = Claim(str(tmp_path), ClaimHolder.this_process(FASTER))
    slower = Claim(str(tmp_path), ClaimHolder.this_process(SLOWER))
    n_waits = 0
    wait_for_lapse = module._wait_for_lapse

    def overtaken(uri: str, holder: ClaimHolder, on_wait: Callable[[ClaimHolder], None]) -> bool:
        nonlocal n_waits
        n_waits += 1
        has_lapsed = wait_for_lapse(uri, holder, on_wait)
        if n_waits == 1:
            faster._take(on_wait)
        return has_lapsed

    monkeypatch.setattr(module, "_wait_for_lapse", overtaken)
    try:
        with pytest.raises(RequestError, match="is being written by another run"):
            slower._take(refuse_to_wait)
        check_holder(str(tmp_path), FASTER)
    finally:
        faster._release()
    assert list(tmp_path.iterdir()) == []


def test_takeover_claims_of_dead_runs_do_not_block_a_run(tmp_path: Path) -> None:
    leave_claim(tmp_path, dead_holder())
    leave_claim(tmp_path, dead_holder(SECOND), f"claim.json.{THEIRS}")
    leave_claim(tmp_path, dead_holder(THIRD), f"claim.json.{THEIRS}.{SECOND}")
    with hold_claim(str(tmp_path), OURS, refuse_to_wait):
        check_holder(str(tmp_path), OURS)
    assert list(tmp_path.iterdir()) == []


def _delayed(function: Callable[..., Any], rng: random.Random) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        time.sleep(rng.random() * 2e-3)
        return function(*arguments)

    return call


def _race(root: str, runner: int, n_races: int, barrier: Any, results: Any) -> None:
    """Race in a process of its own. Requests to the storage are delayed, so that any order of requests may occur."""
    rng = random.Random(runner)
    for name in ("create_bytes", "read_bytes", "delete"):
        setattr(storage, name, _delayed(getattr(storage, name), rng))
    for race in range(n_races):
        folder = Path(root, str(race))
        if runner == 0:
            leave_claim(folder, dead_holder())
        barrier.wait(60)
        claim = Claim(str(folder), ClaimHolder.this_process(f"{runner:012x}"))
        try:
            claim._take(lambda _: None)
            won = True
        except RequestError:
            won = False
        results.put((race, runner, won))
        barrier.wait(60)
        if won:
            check_holder(str(folder), f"{runner:012x}")
            claim._release()


def test_exactly_one_of_several_runs_takes_over_a_lapsed_claim(tmp_path: Path) -> None:
    n_runners, n_races = 3, 60
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(n_runners), context.Queue()
    runners = [
        context.Process(target=_race, args=(str(tmp_path), number, n_races, barrier, results))
        for number in range(n_runners)
    ]
    for runner in runners:
        runner.start()
    outcomes = [results.get(timeout=120) for _ in range(n_runners * n_races)]
    for runner in runners:
        runner.join(60)
        assert runner.exitcode == 0
    winners = {race: [runner for number, runner, won in outcomes if won and number == race] for race in range(n_races)}
    assert {race: runners for race, runners in winners.items() if len(runners) != 1} == {}
    assert len({runners[0] for runners in winners.values()}) > 1, "the same run wins every race"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
