"""What is read back from the shards equals what a plain set of keys says."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.output.inventory import KEYS, Inventory, map_in_threads, find_window_ranges
from embedding.output.store import STORED_FAILURES, Store
from embedding.schema.failures import Failure
from tests.support.shards import shard

NO_FAILURES = STORED_FAILURES.empty_table()

KEY = st.tuples(st.integers(-3, 3), st.integers(0, 9))


@given(shards=st.lists(st.lists(KEY, max_size=30), max_size=4), n_windows=st.integers(1, 10))
def test_spans_count_what_a_set_of_keys_counts(shards: list[list[tuple[int, int]]], n_windows: int) -> None:
    spans = [find_window_ranges(keys_of(*((*key, n_windows) for key in keys)), at) for at, keys in enumerate(shards)]
    inventory = Inventory.of([str(at) for at in range(len(shards))], spans, NO_FAILURES)
    keys = [key for shard in shards for key in shard]
    recordings = inventory.recordings()
    assert recordings.file_id.tolist() == sorted({file_id for file_id, _ in keys})
    for at, file_id in enumerate(recordings.file_id):
        index = [i for id_, i in keys if id_ == file_id]
        assert recordings.n_present[at] == len(set(index))
        assert recordings.n_repeated[at] == len(index) - len(set(index))
        assert recordings.n_windows[at] == n_windows
        assert inventory.window_indices(int(file_id)) == sorted(set(index))
    ids = np.arange(-4, 5)
    expected = [len({i for id_, i in keys if id_ == file_id}) == n_windows for file_id in ids]
    assert recordings.is_complete(ids).tolist() == [done and bool(keys) for done in expected]


def keys_of(*windows: tuple[int, int, int], duration_s: float = 60.0) -> pa.Table:
    """The key columns of a shard with rows (file_id, window_index, n_windows)."""
    return shard(*windows).select(KEYS).set_column(3, "duration", pa.array([duration_s] * len(windows), pa.float64()))


def test_the_row_of_the_last_window_says_how_many_there_are_and_how_long() -> None:
    """A long recording that ends early: its first rows still carry what the header promised."""
    early = find_window_ranges(keys_of((7, 0, 9), (7, 1, 9), duration_s=45.0), 0)
    late = find_window_ranges(keys_of((7, 2, 3), duration_s=14.5), 1)
    recordings = Inventory.of(["a", "b"], [late, early], NO_FAILURES).recordings()
    assert recordings.n_windows.tolist() == [3]
    assert recordings.duration_s.tolist() == [14.5]
    assert recordings.is_complete(np.array([7])).tolist() == [True]
    assert recordings.consistent.tolist() == [False]


@pytest.mark.parametrize("together", [True, False], ids=["in one shard", "in two"])
def test_rows_that_differ_in_duration_alone_do_not_agree(*, together: bool) -> None:
    """A header's promise may be off by less than a window."""
    early, late = keys_of((7, 0, 2), duration_s=9.5), keys_of((7, 1, 2), duration_s=9.0)
    spans = [find_window_ranges(pa.concat_tables([early, late]), 0)] if together else [find_window_ranges(early, 0), find_window_ranges(late, 1)]
    recordings = Inventory.of(["a", "b"], spans, NO_FAILURES).recordings()
    assert recordings.duration_s.tolist() == [9.0]
    assert recordings.consistent.tolist() == [False]


def test_what_recordings_have_together_is_counted() -> None:
    spans = find_window_ranges(keys_of((1, 0, 3), (1, 1, 3), (1, 1, 3), (2, 0, 1), (3, 0, 9)), 0)
    recordings = Inventory.of(["a"], [spans], NO_FAILURES).recordings()
    assert recordings.count_windows(np.array([1, 2, 99])) == (4, 3, 1)
    assert recordings.count_windows(np.array([], np.int64)) == (0, 0, 0)


SHARD = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 9), st.integers(1, 10)), max_size=12)


@given(shards=st.lists(SHARD, max_size=5), data=st.data())
@settings(max_examples=40)
def test_shards_that_are_known_are_not_read_again_and_nothing_else_differs(
    shards: list[list[tuple[int, int, int]]], data: st.DataObject
) -> None:
    """Also where known shards are gone by now."""
    with tempfile.TemporaryDirectory() as root:
        store = Store(root, "{}")
        uris = [store.write_shard(shard(*rows), f"{at}") for at, rows in enumerate(shards)]
        read: list[str] = []

        def counting(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
            read.extend(uri for uri, _ in arguments)
            return map_in_threads(function, arguments)

        some = st.lists(st.sampled_from(uris), unique=True) if uris else st.just([])
        before, now = data.draw(some), data.draw(some)
        known = Inventory.read(before, NO_FAILURES)
        inventory = Inventory.read(now, NO_FAILURES, known, counting)
        assert sorted(read) == sorted(set(now) - set(before))
        assert sorted(inventory.shards) == sorted(now)
        assert _by_name(inventory) == _by_name(Inventory.read(now, NO_FAILURES))
        assert _by_name(known.only(now)) == _by_name(Inventory.read([u for u in before if u in now], NO_FAILURES))


def _by_name(inventory: Inventory) -> list[tuple[Any, ...]]:
    """The spans, with the shard's name in the place of its number."""
    rows = inventory.window_ranges.to_pylist()
    assert [row["file_id"] for row in rows] == sorted(row["file_id"] for row in rows)
    return sorted((*(row | {"shard": inventory.shards[row["shard"]]}).values(),) for row in rows)


def test_failures_of_one_run_can_be_told_from_those_of_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "{}")
    store.write_failures([Failure("/a", 1, 1, "decode", "io", "x")], "one")
    store.write_failures([Failure("/b", 2, 1, "decode", "io", "x")], "two")
    inventory = store.read()
    assert inventory.is_failed(np.array([1, 2, 3])).tolist() == [True, True, False]
    assert inventory.is_failed(np.array([1, 2, 3]), "two").tolist() == [False, True, False]


def test_an_empty_output_holds_nothing() -> None:
    inventory = Inventory.read([], NO_FAILURES)
    assert len(inventory.recordings().file_id) == 0
    assert inventory.window_indices(1) == []
    assert not inventory.recordings().is_complete(np.array([1, 2])).any()
