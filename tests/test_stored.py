"""What is read back from the shards equals what a plain set of keys says."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from embedding.stored import Stored, spans_of

KEY = st.tuples(st.integers(-3, 3), st.integers(0, 9))


@given(shards=st.lists(st.lists(KEY, max_size=30), max_size=4), n_windows=st.integers(1, 10))
def test_spans_count_what_a_set_of_keys_counts(shards: list[list[tuple[int, int]]], n_windows: int) -> None:
    stored = Stored.of(
        [str(i) for i in range(len(shards))], [_spans(keys, n_windows, i) for i, keys in enumerate(shards)], {}
    )
    keys = [key for shard in shards for key in shard]
    recordings = stored.recordings()
    assert recordings.file_id.tolist() == sorted({file_id for file_id, _ in keys})
    for at, file_id in enumerate(recordings.file_id):
        index = [i for id_, i in keys if id_ == file_id]
        assert recordings.n_present[at] == len(set(index))
        assert recordings.n_repeated[at] == len(index) - len(set(index))
        assert recordings.n_windows[at] == n_windows
        assert stored.windows(int(file_id)) == sorted(set(index))
    ids = np.arange(-4, 5)
    expected = [len({i for id_, i in keys if id_ == file_id}) == n_windows for file_id in ids]
    assert recordings.complete(ids).tolist() == [done and bool(keys) for done in expected]


def _spans(keys: list[tuple[int, int]], n_windows: int, shard: int) -> pa.Table:
    file_id = np.array([key[0] for key in keys], np.int64)
    index = np.array([key[1] for key in keys], np.int32)
    return spans_of(file_id, index, np.full(len(keys), n_windows, np.int32), shard)


def test_the_row_of_the_last_window_says_how_many_there_are() -> None:
    """A long recording that ends early: its first rows still carry what the header promised."""
    early = spans_of(np.array([7, 7]), np.array([0, 1], np.int32), np.array([9, 9], np.int32), 0)
    late = spans_of(np.array([7]), np.array([2], np.int32), np.array([3], np.int32), 1)
    recordings = Stored.of(["a", "b"], [late, early], {}).recordings()
    assert recordings.n_windows.tolist() == [3]
    assert recordings.complete(np.array([7])).tolist() == [True]
    assert recordings.consistent.tolist() == [False]


def test_an_empty_output_holds_nothing() -> None:
    stored = Stored.read([], {})
    assert len(stored.recordings().file_id) == 0
    assert stored.windows(1) == []
    assert not stored.recordings().complete(np.array([1, 2])).any()
