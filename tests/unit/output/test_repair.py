"""Repair: every window is stored once and belongs to the present version of its recording, and nothing is lost."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding import storage
from embedding.output.repair import WITHOUT_WINDOWS, repair_failures, repair_shards
from embedding.output.store import Store, embeddings_schema
from tests.support.outputs import store_failures, stored_failures, stored_windows
from tests.support.shards import DIM, ids, listing, shard

TRUE_S = 12.5
PROMISED_S = 99.0

# --- an arbitrary output ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """One version of a recording, of whose windows some are stored, once or several times.

    Attributes:
        file_id: Identity of the version.
        n: Number of windows.
        rows: The stored rows, as (shard, window_index).
        n_early: Number of first windows whose rows have the values that the header promised.
        promised: Number of windows that the header promised.
        hash: Hash of the audio.
    """

    file_id: int
    n: int
    rows: list[tuple[int, int]]
    n_early: int
    promised: int
    hash: int

    def row(self, index: int) -> dict[str, Any]:
        is_early = index < min(self.n_early, self.n - 1)
        return {
            "file": f"/a/{self.file_id}.wav",
            "file_id": self.file_id,
            "window_index": index,
            "n_windows": self.promised if is_early else self.n,
            "start_time": 5.0 * index,
            "end_time": 5.0 * index + 5,
            "sample_rate": 48_000,
            "channels": 1,
            "duration": PROMISED_S if is_early else TRUE_S,
            "embedding": [float(self.file_id), float(index), 0.5, -1.0],
            "recorder_facts": f'[{{"source":"bext","recorder":"{self.file_id}"}}]' if self.file_id % 2 else "",
            "audio_hash": self.hash if index == self.n - 1 else None,  # known at the end of the audio
        }


@dataclass
class Output:
    """An output before its repair.

    Attributes:
        versions: Versions of recordings.
        superseded: ``file_id`` of versions whose rows are removed.
        new_ids: Former and present ``file_id`` of versions whose rows are kept.
    """

    versions: list[Version]
    superseded: list[int]
    new_ids: dict[int, int]

    def write(self, store: Store, n_shards: int) -> None:
        for number in range(n_shards):
            rows = [v.row(index) for v in self.versions for shard_number, index in v.rows if shard_number == number]
            rows.sort(key=lambda row: hash((row["file_id"] * 31 + row["window_index"] * 7) % (number + 5)))
            if rows:
                schema = embeddings_schema(DIM, ("recorder_facts", pa.string()), ("audio_hash", pa.int64()))
                store.write_shard(pa.Table.from_pylist(rows, schema), f"{number}")

    def repaired(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Return the rows that the output should hold after its repair, by (file_id, window_index)."""
        rows = {}
        for version in self.versions:
            present = {index for _, index in version.rows}
            if version.file_id in self.superseded:
                continue
            is_complete = present == set(range(version.n))
            for index in present:
                row = version.row(index)
                if is_complete:
                    row |= {"n_windows": version.n, "duration": TRUE_S}
                row["file_id"] = self.new_ids.get(version.file_id, version.file_id)
                rows[row["file_id"], index] = row
        return rows


N_SHARDS = 4


@st.composite
def outputs(draw: st.DrawFn) -> Output:
    versions = []
    for file_id in draw(st.lists(st.integers(-9, 9), unique=True, max_size=6)):
        n = draw(st.integers(1, 5))
        present = draw(st.one_of(st.just(set(range(n))), st.sets(st.integers(0, n - 1))))
        more = draw(st.lists(st.sampled_from(sorted(present)), max_size=4)) if present else []
        rows = [(draw(st.integers(0, N_SHARDS - 1)), index) for index in [*sorted(present), *more]]
        promised = draw(st.sampled_from([n, n + 3]))
        versions.append(Version(file_id, n, rows, draw(st.integers(0, n)), promised, file_id * 1000 - (1 << 62)))
    known = [version.file_id for version in versions]
    superseded = draw(st.lists(st.sampled_from([*known, 77]), unique=True, max_size=3))
    others = [file_id for file_id in known if file_id not in superseded]
    new_ids = {i: i + 100 for i in (draw(st.lists(st.sampled_from(others), unique=True)) if others else [])}
    return Output(versions, superseded, new_ids)


def repair(store: Store, output: Output) -> list[str]:
    return repair_shards(store, store.read(), ids(output.superseded), output.new_ids)


def files(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(store.root).rglob("*") if path.is_file()}


def without_hash(rows: dict[tuple[int, int], dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    return {key: {name: value for name, value in row.items() if name != "audio_hash"} for key, row in rows.items()}


def hashes(rows: dict[tuple[int, int], dict[str, Any]]) -> dict[int, int]:
    return {row["file_id"]: row["audio_hash"] for row in rows.values() if row["audio_hash"] is not None}


@given(output=outputs())
@settings(max_examples=100)
def test_repair_keeps_every_window_of_the_present_version_once_and_changes_nothing_else(output: Output) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = Store(root, '{"model": "m"}')
        output.write(store, N_SHARDS)
        before = files(store)
        changed = repair(store, output)
        expected = output.repaired()
        assert without_hash(stored_windows(store)) == without_hash(expected)
        assert hashes(stored_windows(store)) == hashes(expected)
        after = files(store)
        assert {uri.rpartition("/")[2] for uri in changed} == {n for n in before if after.get(n) != before[n]}
        # A second repair changes nothing, with the same new identities or without them.
        assert repair(store, output) == []
        assert repair_shards(store, store.read(), ids([]), {}) == []
        assert files(store) == after


class Interrupted(Exception):  # noqa: N818
    pass


@contextmanager
def interrupted_at(call: int) -> Iterator[Callable[[], bool]]:
    """Interrupt all writes and removals after the first ``call``; yield a function that returns whether it happened."""
    n_left = call
    write_shard, delete = Store.write_shard, storage.delete

    def count() -> None:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise Interrupted

    def write(self: Store, table: pa.Table, name: str) -> str:
        count()
        return write_shard(self, table, name)

    def remove(uri: str) -> None:
        count()
        delete(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write_shard", write)
        patch.setattr(storage, "delete", remove)
        yield lambda: n_left < 0


@given(output=outputs())
@settings(max_examples=40)
def test_an_interrupted_repair_loses_nothing_and_the_next_repair_completes_it(output: Output) -> None:
    with tempfile.TemporaryDirectory() as root:
        whole = Store(f"{root}/whole", "{}")
        output.write(whole, N_SHARDS)
        repair(whole, output)
        expected = output.repaired()
        was_interrupted, call = True, 0
        while was_interrupted:
            store = Store(f"{root}/{call}", "{}")
            output.write(store, N_SHARDS)
            with interrupted_at(call) as is_interrupted:
                with suppress(Interrupted):
                    repair(store, output)
                was_interrupted = is_interrupted()
            present = {
                (output.new_ids.get(row["file_id"], row["file_id"]), row["window_index"])
                for uri in store.read().shards
                for row in store.read_shard(uri).to_pylist()
            }
            assert present >= expected.keys()
            repair(store, output)
            assert without_hash(stored_windows(store)) == without_hash(expected)
            assert hashes(stored_windows(store)) == hashes(expected)
            call += 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), "{}")


def test_shards_without_repeated_rows_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_shard(shard((1, 0, 2), (1, 1, 2)), "a")
    store.write_shard(shard((2, 0, 1), (2, 0, 1)), "b")
    read: list[str] = []
    read_shard = Store.read_shard
    monkeypatch.setattr(Store, "read_shard", lambda self, uri: read.append(uri) or read_shard(self, uri))
    assert [uri.rpartition("/")[2] for uri in repair_shards(store, store.read(), ids([]), {})] == ["b.parquet"]
    assert [uri.rpartition("/")[2] for uri in read] == ["b.parquet"]


def test_the_promised_number_of_windows_stays_while_a_recording_is_incomplete(store: Store) -> None:
    """Otherwise the recording would count as complete, and its last windows would never be embedded."""
    store.write_shard(shard((1, 0, 9), (1, 1, 9)), "a")
    assert repair_shards(store, store.read(), ids([]), {}) == []


def test_an_output_that_does_not_exist_needs_no_repair(store: Store) -> None:
    assert repair_shards(store, store.read(), ids([1]), {2: 3}) == []
    assert not repair_failures(store, store.read(), listing(), ids([]), "run")


# --- failures ---------------------------------------------------------------------------------------------------------


def repair_failures_of(store: Store, *, retried: tuple[int, ...] = (), listed: pa.Table | None = None) -> bool:
    return repair_failures(store, store.read(), listing() if listed is None else listed, ids(retried), "now")


def test_failures_of_this_run_replace_earlier_failures_of_the_recording(store: Store) -> None:
    store_failures(store, "before", (1, "decode", "io"), (1, "encode", "nonfinite"), (2, "decode", "io"))
    store_failures(store, "now", (1, "decode", "corrupt"))
    assert repair_failures_of(store)
    assert stored_failures(store) == [(1, "decode", "corrupt", "as of now"), (2, "decode", "io", "as of before")]


def test_one_failure_per_recording_and_stage_is_kept(store: Store) -> None:
    row = (1, "decode", "truncated")
    store_failures(store, "one", row, (1, "encode", "nonfinite"))
    store_failures(store, "two", row)
    assert repair_failures_of(store)
    assert [row[:3] for row in stored_failures(store)] == [row, (1, "encode", "nonfinite")]


@pytest.mark.parametrize("kind", [*WITHOUT_WINDOWS, "truncated", "nonfinite"])
@pytest.mark.parametrize("run_id", ["before", "now"])
def test_a_complete_recording_has_overcome_failures_that_leave_no_windows(store: Store, kind: str, run_id: str) -> None:
    store_failures(store, run_id, (1, "decode", kind), (2, "decode", kind))
    store.write_shard(shard((1, 0, 1), (2, 0, 2)), "a")  # a window of the second recording is missing
    repair_failures_of(store)
    is_kept = kind not in WITHOUT_WINDOWS
    assert [row[0] for row in stored_failures(store)] == ([1, 2] if is_kept else [2])


def test_a_recording_that_is_retried_without_a_failure_loses_its_earlier_failure(store: Store) -> None:
    store_failures(store, "before", (1, "decode", "truncated"), (2, "decode", "truncated"), (3, "decode", "io"))
    store_failures(store, "now", (2, "decode", "truncated"))
    assert repair_failures_of(store, retried=(1, 2))
    assert stored_failures(store) == [(2, "decode", "truncated", "as of now"), (3, "decode", "io", "as of before")]


def test_failures_of_a_former_version_are_removed_and_failures_of_other_inputs_stay(store: Store) -> None:
    store_failures(store, "before", (1, "decode", "corrupt"), (2, "decode", "corrupt"), (3, "decode", "corrupt"))
    assert repair_failures_of(store, listed=listing(("/a/1.wav", 11), ("/a/2.wav", 2), ("/b/9.wav", 9)))
    assert [row[0] for row in stored_failures(store)] == [2, 3]


def test_several_failure_files_become_one_which_stays_unchanged(store: Store) -> None:
    store_failures(store, "before", (1, "decode", "io"), (2, "decode", "io"), (3, "decode", "io"))
    assert repair_failures_of(store)
    assert store.n_failure_files() == 1
    before = files(store)
    assert not repair_failures_of(store)
    assert files(store) == before


def test_no_failure_file_is_left_when_the_last_failure_is_overcome(store: Store) -> None:
    store_failures(store, "before", (1, "decode", "io"))
    store.write_shard(shard((1, 0, 1)), "a")
    assert repair_failures_of(store)
    assert store.n_failure_files() == 0
    assert not repair_failures_of(store)


@pytest.mark.parametrize("call", range(4))
def test_an_interrupted_repair_loses_no_failure_and_the_next_repair_leaves_each_once(store: Store, call: int) -> None:
    store_failures(store, "before", (1, "decode", "io"), (2, "decode", "io"), (3, "decode", "io"))
    expected = stored_failures(store)
    with interrupted_at(call) as is_interrupted:
        try:
            repair_failures_of(store)
        except Interrupted:
            assert is_interrupted()
        else:
            assert call == 3
    assert set(stored_failures(store)) == set(expected)
    repair_failures_of(store)
    assert stored_failures(store) == expected
    assert store.n_failure_files() == 1


ROW = st.tuples(st.integers(1, 4), st.sampled_from(["decode", "encode"]), st.sampled_from(["io", "truncated"]))


@given(
    before=st.lists(ROW, max_size=6),
    now=st.lists(ROW, max_size=6),
    retried=st.sets(st.integers(1, 5)),
    complete=st.sets(st.integers(1, 5)),
    superseded=st.sets(st.integers(1, 5)),
)
@settings(max_examples=40)
def test_repair_keeps_the_failures_that_its_rules_keep(
    before: list[tuple[int, str, str]],
    now: list[tuple[int, str, str]],
    retried: set[int],
    complete: set[int],
    superseded: set[int],
) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = Store(root, "{}")
        store_failures(store, "before", *before)
        store_failures(store, "now", *now)
        if complete:
            store.write_shard(shard(*((i, 0, 1) for i in complete)), "a")
        listed = listing(*((f"/a/{i}.wav", 100 + i if i in superseded else i) for i in range(1, 6)))
        failed_now = {row[0] for row in now}
        # Within a run there is one file per recording and stage, so the last kind counts.
        last = {("before", *row[:2]): row[2] for row in before} | {("now", *row[:2]): row[2] for row in now}
        expected = {
            (file_id, stage, kind)
            for (run_id, file_id, stage), kind in last.items()
            if (run_id == "now" or not (file_id in failed_now or file_id in retried))
            and not (file_id in complete and kind in WITHOUT_WINDOWS)
            and file_id not in superseded
        }
        for _ in range(2):
            repair_failures_of(store, retried=tuple(retried), listed=listed)
            assert [row[:3] for row in stored_failures(store)] == sorted(expected)
