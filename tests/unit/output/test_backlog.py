"""What is done, what is left, what has changed since: a listing against what an output holds."""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.output.backlog import FORMER, Backlog, failures_by_kind, former_versions
from embedding.output.backlog import pending_recordings as work_left
from embedding.output.repair import repair_shards
from embedding.output.store import Store
from embedding.schema.failures import Failure
from tests.support.shards import ids, listing, shard

RUN = "run"
NONE = FORMER.empty_table()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), "{}")


def write(store: Store, name: str, file: str, *windows: tuple[int, int, int], audio: int | None = None) -> str:
    """A shard with windows of versions of ``file``."""
    hashes = {} if audio is None else {windows[0][0]: audio}
    return store.write_shard(shard(*windows, hashes=hashes, names=file), name)


def fail(store: Store, *rows: tuple[str, int, str], run_id: str = "before") -> None:
    store.write_failures([Failure(file, i, 9, "decode", kind, "so it is") for file, i, kind in rows], run_id)


def former(store: Store, listed: pa.Table, *, thorough: bool = False) -> list[tuple[int, int, int | None]]:
    """(file_id, former_id, hash)."""
    table = former_versions(listed, store.read(), store, thorough=thorough)
    assert table.schema == FORMER
    return sorted((*row.values(),) for row in table.to_pylist())


def work(store: Store, listed: pa.Table, *, retry_failed: bool = False, thorough: bool = True) -> Backlog:
    inventory = store.read()
    versions = former_versions(listed, inventory, store, thorough=thorough)
    return Backlog.of(listed, versions, inventory, retry_failed=retry_failed)


# --- former versions --------------------------------------------------------------------------------------------------


def test_another_version_of_what_is_listed_is_found_with_the_hash_of_its_audio(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 2), (1, 1, 2), audio=55)
    assert former(store, listing(("/a.wav", 10), ("/b.wav", 20))) == [(10, 1, 55)]


def test_all_former_versions_are_found(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    write(store, "b", "/a.wav", (2, 0, 1), audio=66)
    assert former(store, listing(("/a.wav", 10))) == [(10, 1, 55), (10, 2, 66)]


def test_a_version_in_several_shards_is_one(store: Store) -> None:
    """A long recording: its hash is in the shard it ends in."""
    write(store, "a", "/a.wav", (1, 0, 3))
    write(store, "b", "/a.wav", (1, 1, 3), (1, 2, 3), audio=55)
    assert former(store, listing(("/a.wav", 10))) == [(10, 1, 55)]


@pytest.mark.parametrize("n_windows", [2, 1], ids=["incomplete", "complete"])
@pytest.mark.parametrize("failed", [True, False], ids=["failed", "well"])
def test_only_what_is_all_there_can_be_recognised(store: Store, n_windows: int, *, failed: bool) -> None:
    write(store, "a", "/a.wav", (1, 0, n_windows), audio=55)
    if failed:
        fail(store, ("/a.wav", 1, "truncated"))
    assert former(store, listing(("/a.wav", 10))) == [(10, 1, 55 if n_windows == 1 and not failed else None)]


def test_a_former_version_of_unknown_audio_is_one_all_the_same(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1))
    assert former(store, listing(("/a.wav", 10))) == [(10, 1, None)]


def test_recordings_of_other_inputs_are_left_alone(store: Store) -> None:
    write(store, "a", "/other/a.wav", (1, 0, 1), audio=55)
    write(store, "b", "/a.wav", (2, 0, 1), audio=55)
    assert former(store, listing(("/a.wav", 2), ("/b.wav", 3)), thorough=True) == []


def test_a_version_beside_the_present_one_is_found_by_a_thorough_look_alone(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    write(store, "b", "/a.wav", (10, 0, 1), audio=66)
    listed = listing(("/a.wav", 10))
    assert former(store, listed, thorough=False) == []
    assert former(store, listed, thorough=True) == [(10, 1, 55)]


@pytest.mark.parametrize("listed", [[("/a.wav", 1)], [("/a.wav", 1), ("/b.wav", 5)]])
def test_names_are_read_only_where_something_may_have_changed(
    store: Store, listed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is new; or nothing stored is a stranger."""
    write(store, "a", "/a.wav", (1, 0, 1))
    if len(listed) == 1:
        write(store, "b", "/z.wav", (9, 0, 1))
    monkeypatch.setattr(Store, "read_shard", lambda *_: pytest.fail("names are read"))
    assert former(store, listing(*listed)) == []


def test_only_shards_with_strangers_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, "a", "/b.wav", (2, 0, 1))
    write(store, "b", "/a.wav", (1, 0, 1))
    read: list[str] = []
    read_shard = Store.read_shard
    monkeypatch.setattr(Store, "read_shard", lambda self, uri, names: read.append(uri) or read_shard(self, uri, names))
    assert former(store, listing(("/a.wav", 10), ("/b.wav", 2))) == [(10, 1, None)]
    assert [uri.rpartition("/")[2] for uri in read] == ["b.parquet"]


def test_an_output_that_does_not_exist_has_no_former_versions(store: Store) -> None:
    assert former(store, listing(("/a.wav", 10)), thorough=True) == []


# --- what is done and what is left ------------------------------------------------------------------------------------


@pytest.fixture
def mixed(store: Store) -> Store:
    """1 complete, 2 begun, 3 failed, 4 failed and complete, 5 new; 9 is of another input."""
    write(store, "a", "/{}.wav", (1, 0, 1), (2, 1, 3), (4, 0, 1), (9, 0, 1))
    fail(store, ("/3.wav", 3, "corrupt"), ("/4.wav", 4, "truncated"))
    return store


MIXED = listing(*((f"/{i}.wav", i) for i in (5, 4, 3, 2, 1)))


def test_what_is_neither_complete_nor_failed_is_to_do(mixed: Store) -> None:
    found = work(mixed, MIXED)
    assert (found.todo.tolist(), found.done_before.tolist(), found.failed_before.tolist()) == ([5, 2], [1], [4, 3])


def test_failures_are_to_do_when_they_are_to_be_tried_again(mixed: Store) -> None:
    found = work(mixed, MIXED, retry_failed=True)
    assert (found.todo.tolist(), found.done_before.tolist(), found.failed_before.tolist()) == ([5, 4, 3, 2], [1], [])


def left(found: Backlog, store: Store, run_id: str | None = None) -> list[tuple[int, list[int] | None, int | None]]:
    table = work_left([(found, store.read())], run_id)
    assert table.schema.field("stored").type == pa.list_(pa.list_(pa.int32()))
    assert table.schema.field("known_hash").type == pa.list_(pa.int64())
    assert set(table["targets"].to_pylist()) <= {1}
    return [
        (row["file_id"], *(row[name] and row[name][0] for name in ("stored", "known_hash")))
        for row in table.to_pylist()
    ]


def test_of_what_is_begun_the_windows_that_are_there_are_named(mixed: Store) -> None:
    assert left(work(mixed, MIXED), mixed) == [(5, None, None), (2, [1], None)]


def test_what_a_run_has_finished_is_not_left_one_way_or_the_other(mixed: Store) -> None:
    found = work(mixed, MIXED, retry_failed=True)
    assert [row[0] for row in left(found, mixed)] == [5, 4, 3, 2]
    # 4 is complete, failed as it may have before; 3 failed before, and nothing is known of it yet.
    assert [row[0] for row in left(found, mixed, RUN)] == [5, 3, 2]
    fail(mixed, ("/3.wav", 3, "corrupt"), run_id=RUN)
    write(mixed, "b", "/{}.wav", (2, 0, 3), (5, 0, 2))
    assert left(found, mixed, RUN) == [(5, [0], None), (2, [0, 1], None)]
    write(mixed, "c", "/{}.wav", (2, 2, 3), (5, 1, 2))
    assert left(found, mixed, RUN) == []


def test_nothing_is_left_of_nothing(store: Store) -> None:
    assert left(work(store, listing()), store) == []


def test_what_has_changed_is_left_with_the_hash_it_had(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    found = work(store, listing(("/b.wav", 20), ("/a.wav", 10)))
    assert left(found, store) == [(20, None, None), (10, None, 55)]
    assert found.n_changed == 1


# --- touched and superseded -------------------------------------------------------------------------------------------


def test_what_is_recognised_keeps_the_rows_of_its_former_version(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    write(store, "b", "/b.wav", (2, 0, 1), audio=66)
    found = work(store, listing(("/a.wav", 10), ("/b.wav", 20)))
    assert found.new_ids({10}) == {1: 10}
    assert found.new_ids({10, 20}) == {1: 10, 2: 20}
    assert found.new_ids(set()) == {}
    assert found.new_ids({99}) == {}


@pytest.mark.parametrize("audio", [(55, 66), (66, 55), (55, 55)], ids=["one", "the other", "both"])
def test_of_several_former_versions_only_the_one_that_was_compared_is_kept(
    store: Store, audio: tuple[int, int]
) -> None:
    """A run that died may have left two. The rows of the other are of other audio, and would be there besides."""
    uris = [
        write(store, "a", "/a.wav", (1, 0, 1), audio=audio[0]),
        write(store, "b", "/a.wav", (2, 0, 1), audio=audio[1]),
    ]
    found = work(store, listing(("/a.wav", 10)))
    ((_, _, known),) = left(found, store)
    touched = found.new_ids({10})
    ((compared, _),) = touched.items()
    assert {1: audio[0], 2: audio[1]}[compared] == known
    vectors = [store.read_shard(uri)["embedding"].to_pylist() for uri in uris]
    repair_shards(store, store.read(), ids([]), touched)
    superseded = found.superseded(store.read())
    repair_shards(store, store.read(), superseded, {})
    rows = [row for uri in store.read().shards for row in store.read_shard(uri).to_pylist()]
    assert [(row["file_id"], row["audio_hash"]) for row in rows] == [(10, known)]
    assert [row["embedding"] for row in rows] == vectors[compared - 1]


def test_a_former_version_can_go_once_the_present_one_is_there(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 2), (1, 1, 2), audio=55)
    write(store, "b", "/a.wav", (2, 0, 1))
    found = work(store, listing(("/a.wav", 10)))
    assert found.superseded(store.read()).tolist() == []
    write(store, "c", "/a.wav", (10, 0, 2))
    assert found.superseded(store.read()).tolist() == []
    write(store, "d", "/a.wav", (10, 1, 2))
    assert sorted(found.superseded(store.read()).tolist()) == [1, 2]


@pytest.mark.parametrize(("kind", "goes"), [("corrupt", True), ("empty", True), ("io", False)])
def test_a_former_version_can_go_when_the_present_one_is_no_audio_but_not_when_it_was_not_had(
    store: Store, kind: str, *, goes: bool
) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    found = work(store, listing(("/a.wav", 10)))
    fail(store, ("/a.wav", 10, kind), run_id=RUN)
    assert found.superseded(store.read()).tolist() == ([1] if goes else [])


# --- the books --------------------------------------------------------------------------------------------------------


def test_the_books_are_what_the_output_holds(mixed: Store) -> None:
    write(mixed, "f", "/6.wav", (1006, 0, 1), audio=66)
    write(mixed, "g", "/7.wav", (1007, 0, 1), audio=77)
    listed = pa.concat_tables([MIXED, listing(("/6.wav", 6), ("/7.wav", 7), ("/8.wav", 8))])
    found = work(mixed, listed)
    # 2 is done, 5 fails, 6 was touched and 7 changed since; 8 was lost.
    write(mixed, "h", "/{}.wav", (2, 0, 3), (2, 2, 3), (2, 2, 3), (7, 0, 1), (8, 0, 2))
    fail(mixed, ("/5.wav", 5, "empty"), run_id=RUN)
    repair_shards(mixed, mixed.read(), ids([]), found.new_ids({6}))
    write(mixed, "j", "/{}.wav", (1, 0, 1))
    books = found.balance(mixed.read(), {6})
    assert (books.listed, books.already_done, books.embedded, books.failed) == (8, 2, 2, 3)
    assert (books.changed, books.unchanged, books.failed_before) == (1, 1, 2)
    assert (books.windows_expected, books.windows_stored, books.windows_repeated) == (6, 6, 1)
    assert not books.balanced
    assert books.failures.keys() == {"corrupt", "truncated", "empty"}
    write(mixed, "i", "/{}.wav", (8, 1, 2))
    repair_shards(mixed, mixed.read(), ids([]), {})
    books = found.balance(mixed.read(), {6})
    assert books.balanced
    assert (books.embedded, books.windows_expected) == (3, 8)


STATE = st.sampled_from(["new", "begun", "complete", "failed", "failed and complete"])


@given(before=st.lists(STATE, max_size=8), data=st.data(), retry_failed=st.booleans())
def test_the_books_of_a_run_that_loses_nothing_balance(
    before: list[str], data: st.DataObject, *, retry_failed: bool
) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = Store(root, "{}")
        listed = listing(*((f"/{i}.wav", i) for i in range(len(before))))
        _bring(store, dict(enumerate(before)), "before")
        found = work(store, listed, retry_failed=retry_failed)
        afterwards = st.sampled_from(["complete", "failed", "failed and complete"])
        _bring(store, {int(i): data.draw(afterwards) for i in found.todo}, RUN)
        repair_shards(store, store.read(), ids([]), {})
        assert found.balance(store.read(), set()).balanced
        assert len(work_left([(found, store.read())], RUN)) == 0


def _bring(store: Store, states: dict[int, str], run_id: str) -> None:
    windows: dict[str, list[int]] = {"begun": [0], "complete": [0, 1], "failed and complete": [0, 1]}
    rows = [(i, index, 2) for i, state in states.items() for index in windows.get(state, [])]
    if rows:
        store.write_shard(shard(*rows), run_id)
    fail(store, *((f"/{i}.wav", i, "truncated") for i, s in states.items() if "failed" in s), run_id=run_id)


def test_failures_are_counted_by_kind_the_most_frequent_first(store: Store) -> None:
    fail(store, ("/1", 1, "io"), *((f"/{i}", i, "empty") for i in range(2, 9)))
    fail(store, ("/2", 2, "empty"), ("/3", 3, "corrupt"), run_id="again")
    found: dict[str, Any] = failures_by_kind(store.read().failures)
    assert {kind: told["recordings"] for kind, told in found.items()} == {"empty": 7, "io": 1, "corrupt": 1}
    assert next(iter(found)) == "empty"
    assert [len(told["examples"]) for told in found.values()] == [3, 1, 1]
    assert found["io"]["examples"] == ["/1: so it is"]
    assert failures_by_kind(store.read().failures, ids([1])).keys() == {"io"}
