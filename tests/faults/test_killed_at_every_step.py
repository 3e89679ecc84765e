"""A run that is killed at any write or removal of settling, of failures or of a claim, on a disk and in S3.

A kill comes just before a step or just after it. Whatever is there then is whole, and the next run ends in the same
place as a run that was never killed. A claim that is killed between its name and its bytes:
tests/unit/output/test_claim.py.
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

Moment = str
MOMENTS = ("before", "after")


class Killed(BaseException):
    """The end of the process."""


@contextmanager
def killed_at(step: int, moment: Moment) -> Iterator[list[str]]:
    """Raise ``Killed`` at this step and in place of all later ones; yields the names of the steps so far."""
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
    """Kill ``do`` at its first step, its second and so on, and ``check`` after each; the number of its steps."""
    for step in range(MOST_STEPS):
        with killed_at(step, moment) as taken, suppress(Killed):
            do(step)
        check(step)
        if len(taken) <= step:
            return len(taken)
    raise AssertionError("there was always one step more")


@pytest.fixture(params=["disk", "S3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"s3://{request.getfixturevalue('bucket')}" if request.param == "S3" else str(tmp_path)


TOUCHED, GONE = {5: 105}, ids([3])


def write_disorder(root: str) -> Store:
    """An output with windows that are there twice, a recording that is gone, one that was touched, and failures."""
    store = Store(root, "{}")
    store.write_shard(shard((1, 0, 2), (1, 1, 2), (3, 0, 1)), "a")
    store.write_shard(shard((1, 1, 2), (2, 0, 1), (5, 0, 1)), "b")
    store.write_shard(shard((3, 0, 1)), "c")  # nothing is left of this shard
    store_failures(store, "before", (1, "decode", "io"), (7, "decode", "corrupt"), (8, "decode", "corrupt"))
    store_failures(store, "now", (8, "decode", "empty"))
    return store


def settle_all(store: Store) -> None:
    repair_shards(store, store.read(), GONE, TOUCHED)
    repair_failures(store, store.read(), listing(), ids([]), "now")


@pytest.mark.parametrize("moment", MOMENTS)
def test_settling(place: str, moment: Moment) -> None:
    whole = write_disorder(f"{place}/whole")
    settle_all(whole)
    rows, failed = stored_windows(whole), stored_failures(whole)
    assert rows.keys() == {(1, 0), (1, 1), (2, 0), (105, 0)}

    def check(step: int) -> None:
        store = Store(f"{place}/{step}", "{}")
        stored = store.read()  # what a reader meets is whole
        present = {(TOUCHED.get(row["file_id"], row["file_id"]), row["window_index"]) for row in rows_of(store)}
        assert present >= rows.keys()
        assert {row["file_id"] for row in stored.failures.to_pylist()} >= {each[0] for each in failed}
        settle_all(store)
        assert (stored_windows(store), stored_failures(store)) == (rows, failed)

    n_steps = at_every_step(moment, lambda step: settle_all(write_disorder_unharmed(f"{place}/{step}")), check)
    assert n_steps >= 6  # two shards are written, one is removed; one file of failures takes the place of several


def write_disorder_unharmed(root: str) -> Store:
    """``write_disorder``, whose own writes are no steps."""
    with pytest.MonkeyPatch.context() as patched:
        for name, original in ORIGINAL.items():
            patched.setattr(storage, name, original)
        return write_disorder(root)


ORIGINAL = {name: getattr(storage, name) for name in STEPS}


def rows_of(store: Store) -> Iterator[dict[str, Any]]:
    for uri in store.read().shards:
        yield from store.read_shard(uri).to_pylist()


@pytest.fixture(scope="module")
def dead() -> ClaimHolder:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(ClaimHolder.this_process("0" * 12), pid=process.pid)
    process.communicate()
    return owner


@contextmanager
def dead_soon(owner: ClaimHolder, run_id: str) -> Iterator[None]:
    """Claims in this block are those of ``owner``, which lives until they are looked at."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ClaimHolder, "this_process", lambda _: replace(owner, run_id=run_id))
        patched.setattr(claim, "RENEW_S", 0.05)
        yield


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("lapsed", [False, True], ids=["a free output", "an output with a lapsed claim"])
def test_a_claim(place: str, dead: ClaimHolder, moment: Moment, *, lapsed: bool) -> None:
    """Taking, taking over and releasing; whoever comes next takes over at once, and leaves nothing."""

    def hold(step: int) -> None:
        root = f"{place}/{step}"
        if lapsed:
            ORIGINAL["write_bytes"](f"{root}/claim.json", claim._encode(replace(dead, run_id="1" * 12)))
        with dead_soon(dead, "2" * 12), hold_claim(root, "2" * 12, refuse_to_wait):
            pass

    def check(step: int) -> None:
        root = f"{place}/{step}"
        with hold_claim(root, "3" * 12, refuse_to_wait) as held:
            held.check()
        assert read_holder(f"{root}/claim.json") is None
        assert not list(storage.list_names(root, ""))

    assert at_every_step(moment, hold, check) >= (5 if lapsed else 2)


def refuse_to_wait(owner: ClaimHolder) -> None:
    raise AssertionError(f"{owner} is known to be dead")
