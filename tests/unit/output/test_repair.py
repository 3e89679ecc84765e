"""Settling: whatever a run left behind, every window once, of the present version of its recording; nothing lost."""

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
from embedding.schema.failures import Failure
from tests.support.shards import DIM, ids, listing, shard

TRUE_S = 12.5
PROMISED_S = 99.0

# --- an arbitrary output ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """One version of a recording, as it may be stored: of ``n`` windows some are there, each as often as it comes."""

    file_id: int
    n: int
    rows: list[tuple[int, int]]  # (shard, window_index)
    n_early: int  # rows of the first windows carry what the header promised
    promised: int  # … windows
    hash: int

    def row(self, index: int) -> dict[str, Any]:
        early = index < min(self.n_early, self.n - 1)
        return {
            "file": f"/a/{self.file_id}.wav",
            "file_id": self.file_id,
            "window_index": index,
            "n_windows": self.promised if early else self.n,
            "start_time": 5.0 * index,
            "end_time": 5.0 * index + 5,
            "sample_rate": 48_000,
            "channels": 1,
            "duration": PROMISED_S if early else TRUE_S,
            "embedding": [float(self.file_id), float(index), 0.5, -1.0],
            "audio_hash": self.hash if index == self.n - 1 else None,  # known at its end
        }


@dataclass
class Output:
    versions: list[Version]
    gone: list[int]
    touched: dict[int, int]

    def write(self, store: Store, n_shards: int) -> None:
        for at in range(n_shards):
            rows = [v.row(index) for v in self.versions for shard_at, index in v.rows if shard_at == at]
            rows.sort(key=lambda row: hash((row["file_id"] * 31 + row["window_index"] * 7) % (at + 5)))
            if rows:
                schema = embeddings_schema(DIM).append(pa.field("audio_hash", pa.int64()))
                store.write_shard(pa.Table.from_pylist(rows, schema), f"{at}")

    def settled(self) -> dict[tuple[int, int], dict[str, Any]]:
        """What it should hold: key → row."""
        rows = {}
        for version in self.versions:
            present = {index for _, index in version.rows}
            if version.file_id in self.gone:
                continue
            whole = present == set(range(version.n))
            for index in present:
                row = version.row(index)
                if whole:
                    row |= {"n_windows": version.n, "duration": TRUE_S}
                row["file_id"] = self.touched.get(version.file_id, version.file_id)
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
    gone = draw(st.lists(st.sampled_from([*known, 77]), unique=True, max_size=3))
    others = [file_id for file_id in known if file_id not in gone]
    touched = {i: i + 100 for i in (draw(st.lists(st.sampled_from(others), unique=True)) if others else [])}
    return Output(versions, gone, touched)


def contents(store: Store) -> dict[tuple[int, int], dict[str, Any]]:
    """Key → row of all shards; each key must be there once."""
    rows = [row for uri in store.read().shards for row in store.read_shard(uri).to_pylist()]
    keys = [(row["file_id"], row["window_index"]) for row in rows]
    assert len(keys) == len(set(keys)), "a window is there twice"
    return dict(zip(keys, rows, strict=True))


def settle_once(store: Store, output: Output) -> list[str]:
    return repair_shards(store, store.read(), ids(output.gone), output.touched)


def files(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(store.root).rglob("*") if path.is_file()}


def without_hash(rows: dict[tuple[int, int], dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    return {key: {name: value for name, value in row.items() if name != "audio_hash"} for key, row in rows.items()}


def hashes(rows: dict[tuple[int, int], dict[str, Any]]) -> dict[int, int]:
    return {row["file_id"]: row["audio_hash"] for row in rows.values() if row["audio_hash"] is not None}


@given(output=outputs())
@settings(max_examples=100)
def test_every_window_is_there_once_of_the_present_version_and_nothing_else_is_altered(output: Output) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = Store(root, '{"model": "m"}')
        output.write(store, N_SHARDS)
        before = files(store)
        changed = settle_once(store, output)
        expected = output.settled()
        assert without_hash(contents(store)) == without_hash(expected)
        assert hashes(contents(store)) == hashes(expected)
        after = files(store)
        assert {uri.rpartition("/")[2] for uri in changed} == {n for n in before if after.get(n) != before[n]}
        # Again: nothing changes, whether what was touched is told again or not.
        assert settle_once(store, output) == []
        assert repair_shards(store, store.read(), ids([]), {}) == []
        assert files(store) == after


class Interrupted(Exception):  # noqa: N818
    pass


@contextmanager
def interrupted_at(call: int) -> Iterator[Callable[[], bool]]:
    """The ``call``-th write or removal is not done any more. Yields whether it came to that."""
    left = call
    write_shard, delete = Store.write_shard, storage.delete

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
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
        yield lambda: left < 0


@given(output=outputs())
@settings(max_examples=40)
def test_an_interruption_loses_nothing_and_the_next_settling_ends_in_the_same_place(output: Output) -> None:
    with tempfile.TemporaryDirectory() as root:
        whole = Store(f"{root}/whole", "{}")
        output.write(whole, N_SHARDS)
        settle_once(whole, output)
        expected = output.settled()
        was_interrupted, call = True, 0
        while was_interrupted:
            store = Store(f"{root}/{call}", "{}")
            output.write(store, N_SHARDS)
            with interrupted_at(call) as over:
                with suppress(Interrupted):
                    settle_once(store, output)
                was_interrupted = over()
            present = {
                (output.touched.get(row["file_id"], row["file_id"]), row["window_index"])
                for uri in store.read().shards
                for row in store.read_shard(uri).to_pylist()
            }
            assert present >= expected.keys()
            settle_once(store, output)
            assert without_hash(contents(store)) == without_hash(expected)
            assert hashes(contents(store)) == hashes(expected)
            call += 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), "{}")


def test_shards_that_are_in_order_are_not_even_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_shard(shard((1, 0, 2), (1, 1, 2)), "a")
    store.write_shard(shard((2, 0, 1), (2, 0, 1)), "b")
    read: list[str] = []
    read_shard = Store.read_shard
    monkeypatch.setattr(Store, "read_shard", lambda self, uri: read.append(uri) or read_shard(self, uri))
    assert [uri.rpartition("/")[2] for uri in repair_shards(store, store.read(), ids([]), {})] == ["b.parquet"]
    assert [uri.rpartition("/")[2] for uri in read] == ["b.parquet"]


def test_what_a_header_promised_stays_while_a_recording_is_not_complete(store: Store) -> None:
    """Else its last window would never be asked for."""
    store.write_shard(shard((1, 0, 9), (1, 1, 9)), "a")
    assert repair_shards(store, store.read(), ids([]), {}) == []


def test_an_output_that_does_not_exist_is_in_order(store: Store) -> None:
    assert repair_shards(store, store.read(), ids([1]), {2: 3}) == []
    assert not repair_failures(store, store.read(), listing(), ids([]), "run")


# --- failures ---------------------------------------------------------------------------------------------------------


def fail(store: Store, run_id: str, *rows: tuple[int, str, str]) -> None:
    """Record (file_id, stage, kind), each in a file of its own."""
    for file_id, stage, kind in rows:
        store.write_failures([Failure(f"/a/{file_id}.wav", file_id, 9, stage, kind, f"as of {run_id}")], run_id)


def failures(store: Store) -> list[tuple[int, str, str, str]]:
    rows = store.read().failures.to_pylist()
    return sorted((row["file_id"], row["stage"], row["kind"], row["message"]) for row in rows)


def settle_them(store: Store, *, retried: tuple[int, ...] = (), listed: pa.Table | None = None) -> bool:
    return repair_failures(store, store.read(), listing() if listed is None else listed, ids(retried), "now")


def test_what_a_recording_failed_of_before_makes_place_for_what_it_fails_of_now(store: Store) -> None:
    fail(store, "before", (1, "decode", "io"), (1, "encode", "nonfinite"), (2, "decode", "io"))
    fail(store, "now", (1, "decode", "corrupt"))
    assert settle_them(store)
    assert failures(store) == [(1, "decode", "corrupt", "as of now"), (2, "decode", "io", "as of before")]


def test_one_row_per_recording_and_stage(store: Store) -> None:
    row = (1, "decode", "truncated")
    fail(store, "one", row, (1, "encode", "nonfinite"))
    fail(store, "two", row)
    assert settle_them(store)
    assert [each[:3] for each in failures(store)] == [row, (1, "encode", "nonfinite")]


@pytest.mark.parametrize("kind", [*WITHOUT_WINDOWS, "truncated", "nonfinite"])
@pytest.mark.parametrize("run_id", ["before", "now"])
def test_a_failure_that_leaves_no_windows_is_overcome_by_a_complete_recording(
    store: Store, kind: str, run_id: str
) -> None:
    fail(store, run_id, (1, "decode", kind), (2, "decode", kind))
    store.write_shard(shard((1, 0, 1), (2, 0, 2)), "a")  # of the second one window is missing
    settle_them(store)
    stays = kind not in WITHOUT_WINDOWS
    assert [each[0] for each in failures(store)] == ([1, 2] if stays else [2])


def test_what_is_tried_again_and_does_not_fail_leaves_its_failure_behind(store: Store) -> None:
    fail(store, "before", (1, "decode", "truncated"), (2, "decode", "truncated"), (3, "decode", "io"))
    fail(store, "now", (2, "decode", "truncated"))
    assert settle_them(store, retried=(1, 2))
    assert failures(store) == [(2, "decode", "truncated", "as of now"), (3, "decode", "io", "as of before")]


def test_failures_of_a_former_version_go_and_those_of_other_inputs_stay(store: Store) -> None:
    fail(store, "before", (1, "decode", "corrupt"), (2, "decode", "corrupt"), (3, "decode", "corrupt"))
    assert settle_them(store, listed=listing(("/a/1.wav", 11), ("/a/2.wav", 2), ("/b/9.wav", 9)))
    assert [each[0] for each in failures(store)] == [2, 3]


def test_many_files_become_one_and_one_stays_as_it_is(store: Store) -> None:
    fail(store, "before", (1, "decode", "io"), (2, "decode", "io"), (3, "decode", "io"))
    assert settle_them(store)
    assert store.n_failure_files() == 1
    before = files(store)
    assert not settle_them(store)
    assert files(store) == before


def test_when_the_last_failure_is_overcome_none_is_left(store: Store) -> None:
    fail(store, "before", (1, "decode", "io"))
    store.write_shard(shard((1, 0, 1)), "a")
    assert settle_them(store)
    assert store.n_failure_files() == 0
    assert not settle_them(store)


@pytest.mark.parametrize("call", range(4))
def test_an_interruption_loses_no_failure_and_doubles_none_in_the_end(store: Store, call: int) -> None:
    fail(store, "before", (1, "decode", "io"), (2, "decode", "io"), (3, "decode", "io"))
    expected = failures(store)
    with interrupted_at(call) as over:
        try:
            settle_them(store)
        except Interrupted:
            assert over()
        else:
            assert call == 3
    assert set(failures(store)) == set(expected)
    settle_them(store)
    assert failures(store) == expected
    assert store.n_failure_files() == 1


ROW = st.tuples(st.integers(1, 4), st.sampled_from(["decode", "encode"]), st.sampled_from(["io", "truncated"]))


@given(
    before=st.lists(ROW, max_size=6),
    now=st.lists(ROW, max_size=6),
    retried=st.sets(st.integers(1, 5)),
    complete=st.sets(st.integers(1, 5)),
    replaced=st.sets(st.integers(1, 5)),
)
@settings(max_examples=40)
def test_failures_follow_their_rules(
    before: list[tuple[int, str, str]],
    now: list[tuple[int, str, str]],
    retried: set[int],
    complete: set[int],
    replaced: set[int],
) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = Store(root, "{}")
        fail(store, "before", *before)
        fail(store, "now", *now)
        if complete:
            store.write_shard(shard(*((i, 0, 1) for i in complete)), "a")
        listed = listing(*((f"/a/{i}.wav", 100 + i if i in replaced else i) for i in range(1, 6)))
        told_now = {row[0] for row in now}
        # One file per recording and stage: what is told again takes the place of what was told.
        last = {("before", *row[:2]): row[2] for row in before} | {("now", *row[:2]): row[2] for row in now}
        expected = {
            (file_id, stage, kind)
            for (run_id, file_id, stage), kind in last.items()
            if (run_id == "now" or not (file_id in told_now or file_id in retried))
            and not (file_id in complete and kind in WITHOUT_WINDOWS)
            and file_id not in replaced
        }
        for _ in range(2):
            settle_them(store, retried=tuple(retried), listed=listed)
            assert [each[:3] for each in failures(store)] == sorted(expected)
