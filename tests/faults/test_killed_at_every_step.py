"""Repair and claim, killed at every write and removal, on a disk and in S3.

A kill comes just before a step or just after it. Then all stored files are whole, and the next run gives the same
output as a run without a kill. tests/unit/output/test_claim.py tests a kill between the name and the bytes of a claim.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedding import storage
from embedding.output import claim
from embedding.output.claim import ClaimHolder, hold_claim, read_holder
from embedding.output.repair import repair_failures, repair_shards
from embedding.output.store import Store
from tests.support.outputs import store_failures, stored_failures, stored_windows
from tests.support.shards import ids, listing, shard

STEPS = ("create_bytes", "write_bytes", "delete")
MOST_STEPS = 40
ORIGINAL = {name: getattr(storage, name) for name in STEPS}

Moment = str
MOMENTS = ("before", "after")


class Killed(BaseException):
    """The simulated end of the process."""


@contextmanager
def killed_at(step: int, moment: Moment) -> Iterator[list[str]]:
    """Raise ``Killed`` before or after a step, and instead of all later steps; yield the names of the steps so far."""
    taken: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            taken.append(name)
            if len(taken) - 1 > step:
                raise Killed
            result = None if len(taken) - 1 == step and moment == "before" else original(*arguments)
            if len(taken) - 1 == step:
                raise Killed
            return result

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in STEPS:
            patched.setattr(storage, name, watched(name, getattr(storage, name)))
        yield taken


def at_every_step(moment: Moment, do: Callable[[int], None], check: Callable[[int], None]) -> int:
    """Kill ``do`` at its first step, its second and so on, and ``check`` after each; return the number of steps."""
    for step in range(MOST_STEPS):
        with killed_at(step, moment) as taken, suppress(Killed):
            do(step)
        check(step)
        if len(taken) <= step:
            return len(taken)
    raise AssertionError("there are more than MOST_STEPS steps")


@pytest.fixture(params=["disk", "S3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"s3://{request.getfixturevalue('bucket')}" if request.param == "S3" else str(tmp_path)


# New identity of a recording whose file was touched, and identities that are superseded.
NEW_IDS, SUPERSEDED = {5: 105}, ids([3])


def write_unrepaired_output(root: str) -> Store:
    """Write an output with repeated windows, a superseded and a touched recording, and failures; no step is killed."""
    store = Store(root, "{}")
    with pytest.MonkeyPatch.context() as patched:
        for name, original in ORIGINAL.items():
            patched.setattr(storage, name, original)
        store.write_shard(shard((1, 0, 2), (1, 1, 2), (3, 0, 1)), "a")
        store.write_shard(shard((1, 1, 2), (2, 0, 1), (5, 0, 1)), "b")
        store.write_shard(shard((3, 0, 1)), "c")  # repair removes this shard
        store_failures(store, "before", (1, "decode", "io"), (7, "decode", "corrupt"), (8, "decode", "corrupt"))
        store_failures(store, "now", (8, "decode", "empty"))
    return store


def repair(store: Store) -> None:
    repair_shards(store, store.read(), SUPERSEDED, NEW_IDS)
    repair_failures(store, store.read(), listing(), ids([]), "now")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_repair_is_finished_by_the_next_one(location: str, moment: Moment) -> None:
    uninterrupted = write_unrepaired_output(f"{location}/uninterrupted")
    repair(uninterrupted)
    rows, failures = stored_windows(uninterrupted), stored_failures(uninterrupted)
    assert rows.keys() == {(1, 0), (1, 1), (2, 0), (105, 0)}

    def check(step: int) -> None:
        store = Store(f"{location}/{step}", "{}")
        inventory = store.read()  # all files are whole
        present = {(NEW_IDS.get(row["file_id"], row["file_id"]), row["window_index"]) for row in rows_of(store)}
        assert present >= rows.keys()
        assert {row["file_id"] for row in inventory.failures.to_pylist()} >= {failure[0] for failure in failures}
        repair(store)
        assert (stored_windows(store), stored_failures(store)) == (rows, failures)

    n_steps = at_every_step(moment, lambda step: repair(write_unrepaired_output(f"{location}/{step}")), check)
    assert n_steps >= 6  # two shards are written, one is removed; one file of failures replaces several


def rows_of(store: Store) -> Iterator[dict[str, Any]]:
    for uri in store.read().shards:
        yield from store.read_shard(uri).to_pylist()


@pytest.fixture(scope="module")
def dead() -> ClaimHolder:
    """A holder whose process on this machine has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = replace(ClaimHolder.this_process("0" * 12), pid=process.pid)
    process.communicate()
    return holder


@contextmanager
def claims_of(holder: ClaimHolder, run_id: str) -> Iterator[None]:
    """Let ``holder`` hold the claims that are made in this block."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ClaimHolder, "this_process", lambda _: replace(holder, run_id=run_id))
        patched.setattr(claim, "RENEW_S", 0.05)
        yield


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("lapsed", [False, True], ids=["without a claim", "with a lapsed claim"])
def test_a_killed_claim_is_taken_over_at_once(
    location: str, dead: ClaimHolder, moment: Moment, *, lapsed: bool
) -> None:
    """Kills happen while a claim is made, taken over and released. The next run leaves no file behind."""

    def hold(step: int) -> None:
        root = f"{location}/{step}"
        if lapsed:
            ORIGINAL["write_bytes"](f"{root}/claim.json", claim._encode(replace(dead, run_id="1" * 12)))
        with claims_of(dead, "2" * 12), hold_claim(root, "2" * 12, refuse_to_wait):
            pass

    def check(step: int) -> None:
        root = f"{location}/{step}"
        with hold_claim(root, "3" * 12, refuse_to_wait) as held_claim:
            held_claim.check()
        assert read_holder(f"{root}/claim.json") is None
        assert not list(storage.list_names(root, ""))

    assert at_every_step(moment, hold, check) >= (5 if lapsed else 2)


def refuse_to_wait(holder: ClaimHolder) -> None:
    raise AssertionError(f"{holder} is known to be dead")
