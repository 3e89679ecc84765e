"""The backlog: a listing compared with the inventory of an output."""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.output.backlog import FORMER, Backlog, failures_by_kind, former_versions, pending_recordings
from embedding.output.repair import repair_shards
from embedding.output.store import Store
from embedding.schema.failures import Failure
from tests.support.shards import ids, listing, shard

RUN = "run"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), "{}")


def write(store: Store, name: str, file: str, *windows: tuple[int, int, int], audio: int | None = None) -> str:
    """Write a shard with windows of versions of ``file``; ``audio`` is the hash of their audio."""
    hashes = {} if audio is None else {windows[0][0]: audio}
    return store.write_shard(shard(*windows, hashes=hashes, names=file), name)


def write_failures(store: Store, *rows: tuple[str, int, str], run_id: str = "before") -> None:
    """Store failures, given as (file, file_id, kind)."""
    store.write_failures([Failure(file, i, 9, "decode", kind, "a message") for file, i, kind in rows], run_id)


def former_rows(store: Store, listed: pa.Table, *, thorough: bool = False) -> list[tuple[int, int, int | None]]:
    """Return (file_id, former_id, hash of the audio) of each former version."""
    table = former_versions(listed, store.read(), store, thorough=thorough)
    assert table.schema == FORMER
    return sorted((*row.values(),) for row in table.to_pylist())


def backlog_of(store: Store, listed: pa.Table, *, retry_failed: bool = False, thorough: bool = True) -> Backlog:
    inventory = store.read()
    former = former_versions(listed, inventory, store, thorough=thorough)
    return Backlog.of(listed, former, inventory, retry_failed=retry_failed)


# --- former versions --------------------------------------------------------------------------------------------------


def test_a_former_version_is_found_with_the_hash_of_its_audio(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 2), (1, 1, 2), audio=55)
    assert former_rows(store, listing(("/a.wav", 10), ("/b.wav", 20))) == [(10, 1, 55)]


def test_all_former_versions_are_found(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    write(store, "b", "/a.wav", (2, 0, 1), audio=66)
    assert former_rows(store, listing(("/a.wav", 10))) == [(10, 1, 55), (10, 2, 66)]


def test_a_version_in_several_shards_is_found_once(store: Store) -> None:
    """The hash of a long recording is in the shard with its last window."""
    write(store, "a", "/a.wav", (1, 0, 3))
    write(store, "b", "/a.wav", (1, 1, 3), (1, 2, 3), audio=55)
    assert former_rows(store, listing(("/a.wav", 10))) == [(10, 1, 55)]


@pytest.mark.parametrize("n_windows", [2, 1], ids=["incomplete", "complete"])
@pytest.mark.parametrize("failed", [True, False], ids=["failed", "not failed"])
def test_only_a_complete_version_has_a_known_hash(store: Store, n_windows: int, *, failed: bool) -> None:
    write(store, "a", "/a.wav", (1, 0, n_windows), audio=55)
    if failed:
        write_failures(store, ("/a.wav", 1, "truncated"))
    assert former_rows(store, listing(("/a.wav", 10))) == [(10, 1, 55 if n_windows == 1 and not failed else None)]


def test_a_former_version_without_a_hash_is_found(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1))
    assert former_rows(store, listing(("/a.wav", 10))) == [(10, 1, None)]


def test_recordings_of_other_inputs_are_not_former_versions(store: Store) -> None:
    write(store, "a", "/other/a.wav", (1, 0, 1), audio=55)
    write(store, "b", "/a.wav", (2, 0, 1), audio=55)
    assert former_rows(store, listing(("/a.wav", 2), ("/b.wav", 3)), thorough=True) == []


def test_a_former_version_beside_the_present_version_is_found_only_with_thorough(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    write(store, "b", "/a.wav", (10, 0, 1), audio=66)
    listed = listing(("/a.wav", 10))
    assert former_rows(store, listed, thorough=False) == []
    assert former_rows(store, listed, thorough=True) == [(10, 1, 55)]


@pytest.mark.parametrize("listed", [[("/a.wav", 1)], [("/a.wav", 1), ("/b.wav", 5)]])
def test_names_are_not_read_where_nothing_can_have_changed(
    store: Store, listed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either everything listed is stored, or everything stored is listed."""
    write(store, "a", "/a.wav", (1, 0, 1))
    if len(listed) == 1:
        write(store, "b", "/z.wav", (9, 0, 1))
    monkeypatch.setattr(Store, "read_shard", lambda *_: pytest.fail("names are read"))
    assert former_rows(store, listing(*listed)) == []


def test_names_are_read_only_from_shards_with_unlisted_recordings(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, "a", "/b.wav", (2, 0, 1))
    write(store, "b", "/a.wav", (1, 0, 1))
    read: list[str] = []
    read_shard = Store.read_shard
    monkeypatch.setattr(Store, "read_shard", lambda self, uri, names: read.append(uri) or read_shard(self, uri, names))
    assert former_rows(store, listing(("/a.wav", 10), ("/b.wav", 2))) == [(10, 1, None)]
    assert [uri.rpartition("/")[2] for uri in read] == ["b.parquet"]


def test_an_output_that_does_not_exist_has_no_former_versions(store: Store) -> None:
    assert former_rows(store, listing(("/a.wav", 10)), thorough=True) == []


# --- done, to do and left ---------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(store: Store) -> Store:
    """Recording 1 is complete, 2 begun, 3 failed, 4 failed and complete, 5 new; 9 belongs to another input."""
    write(store, "a", "/{}.wav", (1, 0, 1), (2, 1, 3), (4, 0, 1), (9, 0, 1))
    write_failures(store, ("/3.wav", 3, "corrupt"), ("/4.wav", 4, "truncated"))
    return store


MIXED = listing(*((f"/{i}.wav", i) for i in (5, 4, 3, 2, 1)))


def test_recordings_that_are_neither_complete_nor_failed_are_to_do(mixed: Store) -> None:
    backlog = backlog_of(mixed, MIXED)
    assert backlog.todo.tolist() == [5, 2]
    assert backlog.done_before.tolist() == [1]
    assert backlog.failed_before.tolist() == [4, 3]


def test_retry_failed_adds_failed_recordings_to_the_backlog(mixed: Store) -> None:
    backlog = backlog_of(mixed, MIXED, retry_failed=True)
    assert backlog.todo.tolist() == [5, 4, 3, 2]
    assert backlog.done_before.tolist() == [1]
    assert backlog.failed_before.tolist() == []


def left_rows(
    backlog: Backlog, store: Store, run_id: str | None = None
) -> list[tuple[int, list[int] | None, int | None]]:
    """Return (file_id, indices of stored windows, known hash) of each recording that is left."""
    table = pending_recordings([(backlog, store.read())], run_id)
    assert table.schema.field("stored").type == pa.list_(pa.list_(pa.int32()))
    assert table.schema.field("known_hash").type == pa.list_(pa.int64())
    assert set(table["targets"].to_pylist()) <= {1}
    return [
        (row["file_id"], *(row[name] and row[name][0] for name in ("stored", "known_hash")))
        for row in table.to_pylist()
    ]


def test_a_begun_recording_is_left_with_the_indices_of_its_stored_windows(mixed: Store) -> None:
    assert left_rows(backlog_of(mixed, MIXED), mixed) == [(5, None, None), (2, [1], None)]


def test_recordings_that_the_run_completed_or_failed_are_not_left(mixed: Store) -> None:
    backlog = backlog_of(mixed, MIXED, retry_failed=True)
    assert [row[0] for row in left_rows(backlog, mixed)] == [5, 4, 3, 2]
    # Recording 4 is complete, although it failed before; 3 failed before, and this run has not tried it yet.
    assert [row[0] for row in left_rows(backlog, mixed, RUN)] == [5, 3, 2]
    write_failures(mixed, ("/3.wav", 3, "corrupt"), run_id=RUN)
    write(mixed, "b", "/{}.wav", (2, 0, 3), (5, 0, 2))
    assert left_rows(backlog, mixed, RUN) == [(5, [0], None), (2, [0, 1], None)]
    write(mixed, "c", "/{}.wav", (2, 2, 3), (5, 1, 2))
    assert left_rows(backlog, mixed, RUN) == []


def test_an_empty_listing_leaves_nothing(store: Store) -> None:
    assert left_rows(backlog_of(store, listing()), store) == []


def test_a_changed_recording_is_left_with_the_hash_of_its_former_version(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    backlog = backlog_of(store, listing(("/b.wav", 20), ("/a.wav", 10)))
    assert left_rows(backlog, store) == [(20, None, None), (10, None, 55)]
    assert backlog.n_changed == 1


# --- unchanged and superseded -----------------------------------------------------------------------------------------


def test_recordings_with_unchanged_audio_keep_the_rows_of_their_former_version(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    write(store, "b", "/b.wav", (2, 0, 1), audio=66)
    backlog = backlog_of(store, listing(("/a.wav", 10), ("/b.wav", 20)))
    assert backlog.new_ids({10}) == {1: 10}
    assert backlog.new_ids({10, 20}) == {1: 10, 2: 20}
    assert backlog.new_ids(set()) == {}
    assert backlog.new_ids({99}) == {}


@pytest.mark.parametrize("audio", [(55, 66), (66, 55), (55, 55)], ids=["first", "second", "both"])
def test_only_the_former_version_whose_hash_was_compared_is_kept(store: Store, audio: tuple[int, int]) -> None:
    """A run that died may have left two versions; rows of both must not be kept."""
    uris = [
        write(store, "a", "/a.wav", (1, 0, 1), audio=audio[0]),
        write(store, "b", "/a.wav", (2, 0, 1), audio=audio[1]),
    ]
    backlog = backlog_of(store, listing(("/a.wav", 10)))
    ((_, _, known_hash),) = left_rows(backlog, store)
    new_ids = backlog.new_ids({10})
    ((compared_id, _),) = new_ids.items()
    assert {1: audio[0], 2: audio[1]}[compared_id] == known_hash
    vectors = [store.read_shard(uri)["embedding"].to_pylist() for uri in uris]
    repair_shards(store, store.read(), ids([]), new_ids)
    superseded = backlog.superseded(store.read())
    repair_shards(store, store.read(), superseded, {})
    rows = [row for uri in store.read().shards for row in store.read_shard(uri).to_pylist()]
    assert [(row["file_id"], row["audio_hash"]) for row in rows] == [(10, known_hash)]
    assert [row["embedding"] for row in rows] == vectors[compared_id - 1]


def test_a_former_version_is_superseded_once_the_present_version_is_complete(store: Store) -> None:
    write(store, "a", "/a.wav", (1, 0, 2), (1, 1, 2), audio=55)
    write(store, "b", "/a.wav", (2, 0, 1))
    backlog = backlog_of(store, listing(("/a.wav", 10)))
    assert backlog.superseded(store.read()).tolist() == []
    write(store, "c", "/a.wav", (10, 0, 2))
    assert backlog.superseded(store.read()).tolist() == []
    write(store, "d", "/a.wav", (10, 1, 2))
    assert sorted(backlog.superseded(store.read()).tolist()) == [1, 2]


@pytest.mark.parametrize(("kind", "is_superseded"), [("corrupt", True), ("empty", True), ("io", False)])
def test_a_present_version_without_audio_supersedes_the_former_version_unless_it_could_not_be_read(
    store: Store, kind: str, *, is_superseded: bool
) -> None:
    write(store, "a", "/a.wav", (1, 0, 1), audio=55)
    backlog = backlog_of(store, listing(("/a.wav", 10)))
    write_failures(store, ("/a.wav", 10, kind), run_id=RUN)
    assert backlog.superseded(store.read()).tolist() == ([1] if is_superseded else [])


# --- the balance ------------------------------------------------------------------------------------------------------


def test_the_balance_counts_what_the_output_holds(mixed: Store) -> None:
    write(mixed, "f", "/6.wav", (1006, 0, 1), audio=66)
    write(mixed, "g", "/7.wav", (1007, 0, 1), audio=77)
    listed = pa.concat_tables([MIXED, listing(("/6.wav", 6), ("/7.wav", 7), ("/8.wav", 8))])
    backlog = backlog_of(mixed, listed)
    # Recording 2 is completed, 5 fails, 6 has a new time and the same audio, 7 has changed, 8 lacks a window.
    write(mixed, "h", "/{}.wav", (2, 0, 3), (2, 2, 3), (2, 2, 3), (7, 0, 1), (8, 0, 2))
    write_failures(mixed, ("/5.wav", 5, "empty"), run_id=RUN)
    repair_shards(mixed, mixed.read(), ids([]), backlog.new_ids({6}))
    write(mixed, "j", "/{}.wav", (1, 0, 1))
    balance = backlog.balance(mixed.read(), {6})
    assert (balance.listed, balance.already_done, balance.embedded, balance.failed) == (8, 2, 2, 3)
    assert (balance.changed, balance.unchanged, balance.failed_before) == (1, 1, 2)
    assert (balance.windows_expected, balance.windows_stored, balance.windows_repeated) == (6, 6, 1)
    assert not balance.balanced
    assert balance.failures.keys() == {"corrupt", "truncated", "empty"}
    write(mixed, "i", "/{}.wav", (8, 1, 2))
    repair_shards(mixed, mixed.read(), ids([]), {})
    balance = backlog.balance(mixed.read(), {6})
    assert balance.balanced
    assert (balance.embedded, balance.windows_expected) == (3, 8)


STATE = st.sampled_from(["new", "begun", "complete", "failed", "failed and complete"])


@given(before=st.lists(STATE, max_size=8), data=st.data(), retry_failed=st.booleans())
def test_a_run_that_loses_no_window_is_balanced(before: list[str], data: st.DataObject, *, retry_failed: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = Store(root, "{}")
        listed = listing(*((f"/{i}.wav", i) for i in range(len(before))))
        _write_states(store, dict(enumerate(before)), "before")
        backlog = backlog_of(store, listed, retry_failed=retry_failed)
        final_states = st.sampled_from(["complete", "failed", "failed and complete"])
        _write_states(store, {int(i): data.draw(final_states) for i in backlog.todo}, RUN)
        repair_shards(store, store.read(), ids([]), {})
        assert backlog.balance(store.read(), set()).balanced
        assert len(pending_recordings([(backlog, store.read())], RUN)) == 0


def _write_states(store: Store, states: dict[int, str], run_id: str) -> None:
    windows: dict[str, list[int]] = {"begun": [0], "complete": [0, 1], "failed and complete": [0, 1]}
    rows = [(i, index, 2) for i, state in states.items() for index in windows.get(state, [])]
    if rows:
        store.write_shard(shard(*rows), run_id)
    write_failures(store, *((f"/{i}.wav", i, "truncated") for i, s in states.items() if "failed" in s), run_id=run_id)


def test_failures_are_counted_by_kind_with_the_most_frequent_kind_first(store: Store) -> None:
    write_failures(store, ("/1", 1, "io"), *((f"/{i}", i, "empty") for i in range(2, 9)))
    write_failures(store, ("/2", 2, "empty"), ("/3", 3, "corrupt"), run_id="again")
    kinds: dict[str, Any] = failures_by_kind(store.read().failures)
    assert {kind: failed["recordings"] for kind, failed in kinds.items()} == {"empty": 7, "io": 1, "corrupt": 1}
    assert next(iter(kinds)) == "empty"
    assert [len(failed["examples"]) for failed in kinds.values()] == [3, 1, 1]
    assert kinds["io"]["examples"] == ["/1: a message"]
    assert failures_by_kind(store.read().failures, ids([1])).keys() == {"io"}
