"""Sets of targets, compared with Python's own sets."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from embedding.schema.recordings import PENDING, RECORDINGS, PendingRecording, read_pending
from embedding.schema.targets import FIELD, MOST_TARGETS, TargetColumn, all_targets

SETS = st.lists(st.frozensets(st.integers(0, MOST_TARGETS - 1)), min_size=1, max_size=20)


def column_of(sets: list[frozenset[int]]) -> TargetColumn:
    return TargetColumn.from_members([np.array([t in targets for targets in sets]) for t in range(MOST_TARGETS)])


@given(sets=SETS, target=st.integers(0, MOST_TARGETS - 1), data=st.data())
def test_a_column_of_targets_behaves_like_a_list_of_sets(
    sets: list[frozenset[int]], target: int, data: st.DataObject
) -> None:
    column = column_of(sets)
    rows = np.array(data.draw(st.lists(st.booleans(), min_size=len(sets), max_size=len(sets))))
    assert column.as_list() == sets
    assert len(column) == len(sets)
    assert column.count() == sum(map(len, sets))
    assert column.needed_by(target).tolist() == [target in targets for targets in sets]
    assert column.needed().tolist() == [bool(targets) for targets in sets]
    assert column[rows].as_list() == [targets for targets, is_kept in zip(sets, rows, strict=True) if is_kept]
    expected = [targets - {target} if removed else targets for targets, removed in zip(sets, rows, strict=True)]
    assert column.without(target, rows).as_list() == expected
    assert TargetColumn.of(pa.table([column.as_array()], pa.schema([FIELD]))).as_list() == sets


@given(targets=st.frozensets(st.integers(0, MOST_TARGETS - 1)), n_rows=st.integers(1, 5))
def test_a_set_can_be_repeated_for_all_rows(targets: frozenset[int], n_rows: int) -> None:
    assert TargetColumn.repeat(targets, n_rows).as_list() == [targets] * n_rows


def test_a_listing_without_targets_is_needed_by_all() -> None:
    listing = pa.table([["/a.wav"], [10], [7]], RECORDINGS)
    assert read_pending(listing, 3) == [PendingRecording("/a.wav", 7, 10, all_targets(3))]


def test_stored_windows_and_known_hashes_are_read_with_a_recording() -> None:
    rows = {
        "file": ["/a.wav", "/b.wav"],
        "size": [10, -1],
        "file_id": [7, 8],
        "targets": [1, 3],
        "stored": [None, [[0, 2], None]],
        "known_hash": [None, [None, 5]],
    }
    assert read_pending(pa.table(rows, PENDING), 2) == [
        PendingRecording("/a.wav", 7, 10, frozenset([0])),
        PendingRecording("/b.wav", 8, -1, frozenset([0, 1]), (frozenset([0, 2]), frozenset()), (None, 5)),
    ]
