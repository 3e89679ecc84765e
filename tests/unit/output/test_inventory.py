"""The inventory of an output, compared with plain sets of keys."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.output.inventory import KEYS, Inventory, find_window_ranges, map_in_threads
from embedding.output.shard_reading import STORED_FAILURES
from embedding.output.store import Store
from embedding.schema.failures import Failure
from tests.support.shards import shard

NO_FAILURES = STORED_FAILURES.empty_table()

KEY = st.tuples(st.integers(-3, 3), st.integers(0, 9))


@given(shards=st.lists(st.lists(KEY, max_size=30), max_size=4), n_windows=st.integers(1, 10))
def test_window_ranges_count_the_same_windows_as_a_set_of_keys(
    shards: list[list[tuple[int, int]]], n_windows: int
) -> None:
    ranges = [find_window_ranges(keys_of(*((*key, n_windows) for key in keys)), n) for n, keys in enumerate(shards)]
    inventory = Inventory.of([str(n) for n in range(len(shards))], ranges, NO_FAILURES)
    keys = [key for shard in shards for key in shard]
    recordings = inventory.recordings()
    assert recordings.file_id.tolist() == sorted({file_id for file_id, _ in keys})
    for row, file_id in enumerate(recordings.file_id):
        index = [i for id_, i in keys if id_ == file_id]
        assert recordings.n_present[row] == len(set(index))
        assert recordings.n_repeated[row] == len(index) - len(set(index))
        assert recordings.n_windows[row] == n_windows
        assert inventory.window_indices(int(file_id)) == sorted(set(index))
    ids = np.arange(-4, 5)
    expected = [len({i for id_, i in keys if id_ == file_id}) == n_windows for file_id in ids]
    assert recordings.is_complete(ids).tolist() == [is_complete and bool(keys) for is_complete in expected]


def keys_of(*windows: tuple[int, int, int], duration_s: float = 60.0) -> pa.Table:
    """Return the key columns of a shard with rows (file_id, window_index, n_windows)."""
    return shard(*windows).select(KEYS).set_column(3, "duration", pa.array([duration_s] * len(windows), pa.float64()))


def test_number_of_windows_and_duration_are_those_of_the_last_window() -> None:
    """The first rows of a long recording that ends early have the values that its header promised."""
    early = find_window_ranges(keys_of((7, 0, 9), (7, 1, 9), duration_s=45.0), 0)
    late = find_window_ranges(keys_of((7, 2, 3), duration_s=14.5), 1)
    recordings = Inventory.of(["a", "b"], [late, early], NO_FAILURES).recordings()
    assert recordings.n_windows.tolist() == [3]
    assert recordings.duration_s.tolist() == [14.5]
    assert recordings.is_complete(np.array([7])).tolist() == [True]
    assert recordings.consistent.tolist() == [False]


@pytest.mark.parametrize("together", [True, False], ids=["in one shard", "in two shards"])
def test_rows_that_differ_only_in_duration_are_inconsistent(*, together: bool) -> None:
    """The duration in a header may be wrong by less than a window."""
    early, late = keys_of((7, 0, 2), duration_s=9.5), keys_of((7, 1, 2), duration_s=9.0)
    shards = [pa.concat_tables([early, late])] if together else [early, late]
    ranges = [find_window_ranges(keys, number) for number, keys in enumerate(shards)]
    recordings = Inventory.of(["a", "b"], ranges, NO_FAILURES).recordings()
    assert recordings.duration_s.tolist() == [9.0]
    assert recordings.consistent.tolist() == [False]


def test_windows_of_several_recordings_are_counted_together() -> None:
    ranges = find_window_ranges(keys_of((1, 0, 3), (1, 1, 3), (1, 1, 3), (2, 0, 1), (3, 0, 9)), 0)
    recordings = Inventory.of(["a"], [ranges], NO_FAILURES).recordings()
    assert recordings.count_windows(np.array([1, 2, 99])) == (4, 3, 1)
    assert recordings.count_windows(np.array([], np.int64)) == (0, 0, 0)


SHARD = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 9), st.integers(1, 10)), max_size=12)


@given(shards=st.lists(SHARD, max_size=5), data=st.data())
@settings(max_examples=40)
def test_known_shards_are_not_read_again_and_the_inventory_is_the_same(
    shards: list[list[tuple[int, int, int]]], data: st.DataObject
) -> None:
    """Some known shards may have been removed."""
    with tempfile.TemporaryDirectory() as root:
        store = Store(root, "{}")
        uris = [store.write_shard(shard(*rows), f"{number}") for number, rows in enumerate(shards)]
        read: list[str] = []

        def recording_map(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
            read.extend(uri for uri, _ in arguments)
            return map_in_threads(function, arguments)

        some = st.lists(st.sampled_from(uris), unique=True) if uris else st.just([])
        before, now = data.draw(some), data.draw(some)
        known = Inventory.read(before, NO_FAILURES)
        inventory = Inventory.read(now, NO_FAILURES, known, recording_map)
        assert sorted(read) == sorted(set(now) - set(before))
        assert sorted(inventory.shards) == sorted(now)
        assert _ranges_by_name(inventory) == _ranges_by_name(Inventory.read(now, NO_FAILURES))
        assert _ranges_by_name(known.restrict_to(now)) == _ranges_by_name(
            Inventory.read([u for u in before if u in now], NO_FAILURES)
        )


def _ranges_by_name(inventory: Inventory) -> list[tuple[Any, ...]]:
    """Return the window ranges, with the name of the shard instead of its number."""
    rows = inventory.window_ranges.to_pylist()
    assert [row["file_id"] for row in rows] == sorted(row["file_id"] for row in rows)
    return sorted((*(row | {"shard": inventory.shards[row["shard"]]}).values(),) for row in rows)


def test_failures_can_be_counted_for_one_run(tmp_path: Path) -> None:
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
