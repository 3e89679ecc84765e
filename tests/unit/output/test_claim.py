"""One run at a time on an output: who holds it, when a claim lapses, and what a run that lost it is told."""

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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from embedding import storage
from embedding.errors import RequestError, RunError
from embedding.output import claim as module
from embedding.output.claim import Claim, ClaimHolder, check_holder, hold_claim, read_holder
from tests.support.commands import ROOT

# Run ids, as runs draw them.
OURS, THEIRS, AGAIN = "0000000000aa", "0000000000bb", "0000000000cc"
SECOND, THIRD, FASTER, SLOWER = (f"{number:012x}" for number in range(1, 5))

HOLDER = """
import sys
from embedding.output.claim import hold_claim

with hold_claim(sys.argv[1], "0000000000bb", print):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding_process(root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds ``root`` until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def nobody_waits(owner: ClaimHolder) -> None:
    raise AssertionError(f"its life can be looked up, and was waited for: {owner}")


def leave(root: Path, owner: ClaimHolder) -> None:
    """A claim as a dead run leaves it."""
    storage.write_bytes(str(root / "claim.json"), json.dumps(asdict(owner)).encode())


def elsewhere(**changes: Any) -> ClaimHolder:
    return replace(ClaimHolder.this_process(THEIRS), machine="another", host="far-away", **changes)


def dead(run_id: str = THEIRS) -> ClaimHolder:
    """A former process that had this one's number."""
    return replace(ClaimHolder.this_process(run_id), process_start=ClaimHolder.this_process(OURS).process_start - 1)


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


def test_a_claim_is_there_while_the_block_runs_and_gone_afterwards(tmp_path: Path) -> None:
    root = tmp_path / "out"
    with hold_claim(str(root), OURS, nobody_waits) as claim:
        owner = read_holder(str(root / "claim.json"))
        assert owner == claim.holder
        assert owner is not None
        assert (owner.run_id, owner.pid) == (OURS, os.getpid())
        claim.check()
        check_holder(str(root), OURS)
    assert list(root.iterdir()) == []


def test_a_claim_is_released_also_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold_claim(str(tmp_path), OURS, nobody_waits):
        raise ZeroDivisionError
    with hold_claim(str(tmp_path), AGAIN, nobody_waits):
        pass


def test_the_second_is_refused_naming_the_first(tmp_path: Path) -> None:
    with hold_claim(str(tmp_path), OURS, nobody_waits) as claim:
        with pytest.raises(RequestError) as refused, hold_claim(str(tmp_path), SECOND, nobody_waits):
            pass
        owner = claim.holder
        assert f"process {os.getpid()} on {owner.host}, since {owner.started}" in str(refused.value)
        assert "--output" in str(refused.value)
        check_holder(str(tmp_path), OURS)
        claim.check()


def test_a_live_process_is_refused_and_its_claim_left_alone(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        before = (tmp_path / "claim.json").read_bytes()
        with pytest.raises(RequestError, match=f"process {process.pid} on "):
            Claim(str(tmp_path), ClaimHolder.this_process(OURS))._take(nobody_waits)
        assert json.loads((tmp_path / "claim.json").read_bytes()) | {"renewals": 0} == json.loads(before)


@pytest.mark.usefixtures("fast")
def test_a_claim_is_renewed(tmp_path: Path) -> None:
    with hold_claim(str(tmp_path), OURS, nobody_waits) as claim:

        def renewals() -> int:
            owner = read_holder(str(tmp_path / "claim.json"))
            assert owner is not None
            return owner.renewals

        assert eventually(lambda: renewals() >= 3)
        claim.check()


@pytest.mark.usefixtures("fast")
def test_a_renewal_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_claim(str(tmp_path), OURS, nobody_waits) as claim:
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
        with hold_claim(str(tmp_path), OURS, nobody_waits):
            check_holder(str(tmp_path), OURS)
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_zombie_lapses_at_once(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        process.kill()
        assert eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        with hold_claim(str(tmp_path), OURS, nobody_waits):
            check_holder(str(tmp_path), OURS)


def test_the_claim_of_a_process_whose_number_another_has_now_lapses_at_once(tmp_path: Path) -> None:
    leave(tmp_path, dead())
    with hold_claim(str(tmp_path), OURS, nobody_waits):
        check_holder(str(tmp_path), OURS)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel keeps the time of day a process began")
def test_a_process_stays_the_same_when_the_clock_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holding_process(tmp_path):
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: time.time() + 3600)  # type: ignore[attr-defined]
        with pytest.raises(RequestError):
            Claim(str(tmp_path), ClaimHolder.this_process(OURS))._take(nobody_waits)


def test_a_process_that_is_hidden_from_us_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(pid: int) -> float:
        raise psutil.NoSuchProcess(pid)

    def forbidden(pid: int, _: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(pid))

    owner = ClaimHolder.this_process(THEIRS)
    monkeypatch.setattr(module, "_start_of", hidden)
    monkeypatch.setattr(os, "kill", forbidden)
    assert owner.is_dead() is False


@pytest.mark.usefixtures("fast")
def test_the_claim_of_another_machine_lapses_without_renewals_and_is_waited_for(tmp_path: Path) -> None:
    leave(tmp_path, elsewhere())
    waited_for: list[ClaimHolder] = []
    began = time.monotonic()
    with hold_claim(str(tmp_path), OURS, waited_for.append):
        assert time.monotonic() - began >= module.LAPSE_S
        check_holder(str(tmp_path), OURS)
    assert [owner.host for owner in waited_for] == ["far-away"]


@pytest.mark.usefixtures("fast")
def test_a_renewed_claim_of_another_machine_is_refused(tmp_path: Path) -> None:
    leave(tmp_path, elsewhere())

    def renew(_: ClaimHolder) -> None:
        threading.Timer(module.LAPSE_S / 2, leave, (tmp_path, elsewhere(renewals=1))).start()

    with pytest.raises(RequestError, match="far-away"):
        Claim(str(tmp_path), ClaimHolder.this_process(OURS))._take(renew)
    check_holder(str(tmp_path), THEIRS)


@pytest.mark.usefixtures("fast")
def test_a_claim_that_is_released_while_it_is_watched_can_be_taken(tmp_path: Path) -> None:
    leave(tmp_path, elsewhere())
    with hold_claim(str(tmp_path), OURS, lambda _: (tmp_path / "claim.json").unlink()):
        check_holder(str(tmp_path), OURS)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("content", [b"", b'{"run_id": "the', b"[]", b'{"run_id": THEIRS}', b"\xff\xfe"])
def test_a_half_written_claim_lapses_when_nobody_goes_on_with_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "claim.json").write_bytes(content)
    waited_for: list[ClaimHolder] = []
    with hold_claim(str(tmp_path), OURS, waited_for.append):
        check_holder(str(tmp_path), OURS)
    assert len(waited_for) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fast")
def test_a_half_written_claim_that_somebody_goes_on_with_is_refused_naming_who(tmp_path: Path) -> None:
    (tmp_path / "claim.json").touch()
    with pytest.raises(RequestError, match="far-away"):
        Claim(str(tmp_path), ClaimHolder.this_process(OURS))._take(lambda _: leave(tmp_path, elsewhere()))


# --- lost -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("gone", [True, False], ids=["gone", "another's"])
def test_a_run_that_lost_its_claim_is_told_and_leaves_the_other_alone(tmp_path: Path, *, gone: bool) -> None:
    with hold_claim(str(tmp_path), OURS, nobody_waits) as claim:
        if gone:
            (tmp_path / "claim.json").unlink()
        else:
            leave(tmp_path, elsewhere())

        def told() -> str:
            try:
                claim.check()
            except RunError as error:
                return str(error)
            return ""

        assert eventually(lambda: bool(told()))
        assert ("lost this run's claim" if gone else "belongs to another run now (process ") in told()
    owner = read_holder(str(tmp_path / "claim.json"))
    assert (owner and owner.run_id) == (None if gone else THEIRS)


def test_a_claim_that_is_another_s_by_the_end_is_not_removed(tmp_path: Path) -> None:
    with hold_claim(str(tmp_path), OURS, nobody_waits):
        leave(tmp_path, elsewhere())
    check_holder(str(tmp_path), THEIRS)


def test_a_task_that_outlived_its_run_finds_out_by_looking(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="lost this run's claim"):
        check_holder(str(tmp_path), OURS)
    leave(tmp_path, elsewhere())
    with pytest.raises(RunError, match="far-away"):
        check_holder(str(tmp_path), OURS)
    (tmp_path / "claim.json").write_bytes(b"{")
    with pytest.raises(RunError, match="an unknown host"):
        check_holder(str(tmp_path), OURS)


# --- raced for --------------------------------------------------------------------------------------------------------


def test_whoever_is_slower_leaves_the_claim_of_whoever_was_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find it lapsed; then one is done before the other removes it."""
    leave(tmp_path, dead())
    faster = Claim(str(tmp_path), ClaimHolder.this_process(FASTER))
    slower = Claim(str(tmp_path), ClaimHolder.this_process(SLOWER))
    looks = 0
    has_lapsed = module._has_lapsed

    def overtaken(uri: str, holder: ClaimHolder, on_wait: Callable[[ClaimHolder], None]) -> bool:
        nonlocal looks
        looks += 1
        lapsed = has_lapsed(uri, holder, on_wait)
        if looks == 1:
            faster._take(on_wait)
        return lapsed

    monkeypatch.setattr(module, "_has_lapsed", overtaken)
    try:
        with pytest.raises(RequestError, match="is being written by another run"):
            slower._take(nobody_waits)
        check_holder(str(tmp_path), FASTER)
    finally:
        faster._release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_died_taking_a_claim_over_is_no_obstacle(tmp_path: Path) -> None:
    leave(tmp_path, dead())
    for name, owner in ((f"claim.json.{THEIRS}", dead(SECOND)), (f"claim.json.{THEIRS}.{SECOND}", dead(THIRD))):
        storage.write_bytes(str(tmp_path / name), json.dumps(asdict(owner)).encode())
    with hold_claim(str(tmp_path), OURS, nobody_waits):
        check_holder(str(tmp_path), OURS)
    assert list(tmp_path.iterdir()) == []


def _slowly(do: Callable[..., Any], dice: random.Random) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(dice.random() * 2e-3)
        return do(*arguments)

    return slow


def _race(root: str, runner: int, n_races: int, barrier: Any, results: Any) -> None:
    """In a process of its own. Storage answers when it likes, so that anything may come between two requests."""
    dice = random.Random(runner)
    for name in ("create_bytes", "read_bytes", "delete"):
        setattr(storage, name, _slowly(getattr(storage, name), dice))
    for race in range(n_races):
        folder = Path(root, str(race))
        if runner == 0:
            leave(folder, dead())
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


def test_of_runs_that_race_for_a_lapsed_claim_exactly_one_wins(tmp_path: Path) -> None:
    n_runners, n_races = 3, 60
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(n_runners), context.Queue()
    runners = [
        context.Process(target=_race, args=(str(tmp_path), at, n_races, barrier, results)) for at in range(n_runners)
    ]
    for runner in runners:
        runner.start()
    outcomes = [results.get(timeout=120) for _ in range(n_runners * n_races)]
    for runner in runners:
        runner.join(60)
        assert runner.exitcode == 0
    winners = {race: [at for number, at, won in outcomes if won and number == race] for race in range(n_races)}
    assert {race: won for race, won in winners.items() if len(won) != 1} == {}
    assert len({won[0] for won in winners.values()}) > 1, "it is no race if the same one always wins"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
