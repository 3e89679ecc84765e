"""Windows to one vector per recording: whatever the parts, NumPy's answer over all windows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.pooling import partial_sums
from embedding.pooling.partial_tables import COLUMNS, merged, parts_of_windows, recordings_of
from embedding.schema.vectors import EMBEDDING

POOLINGS = [("mean",), ("max",), ("std",), ("mean", "max", "std"), ("std", "mean"), ("sequence",)]
NUMPY = {"mean": np.mean, "max": np.max, "std": np.std}


def windows(file_id: Any, index: Any, vectors: np.ndarray, n_windows: Any) -> pa.Table:
    n = len(file_id)
    columns = {
        "file": pa.array([f"/archive/{each}.wav" for each in file_id], pa.string()),
        "file_id": pa.array(file_id, pa.int64()),
        "n_windows": pa.array(n_windows, pa.int32()),
        "duration": np.full(n, 12.5),
        "sample_rate": pa.array([48_000] * n, pa.int32()),
        "channels": pa.array([1] * n, pa.int32()),
        "window_index": pa.array(index, pa.int32()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    }
    return pa.table({name: columns[name] for name in [*COLUMNS, EMBEDDING]})


@pytest.mark.parametrize("poolings", POOLINGS)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    n_parts=st.integers(1, 5),
    offset=st.sampled_from([0.0, 1e3]),
    chunk=st.sampled_from([1, 7, 4096]),
)
def test_however_windows_are_spread_the_answer_is_numpys(
    poolings: tuple[str, ...], lengths: list[int], n_parts: int, offset: float, chunk: int
) -> None:
    rng = np.random.default_rng(len(lengths))
    ids = rng.choice(np.arange(-50, 50), len(lengths), replace=False)
    file_id = np.repeat(ids, lengths)
    index = np.concatenate([np.arange(n) for n in lengths])
    # As a small spread about a large mean shows a sum of squares that lost its digits.
    vectors = (rng.standard_normal((len(file_id), 3)) + offset).astype(np.float32)
    order = rng.permutation(len(file_id))
    shards = np.array_split(order, n_parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_sums, "CHUNK_ROWS", chunk)
        n_windows = np.repeat(lengths, lengths)
        parts = [
            parts_of_windows(windows(file_id[at], index[at], vectors[at], n_windows[at]), poolings)
            for at in shards
            if len(at)
        ]
    found = recordings_of(merged(pa.concat_tables(parts), poolings), poolings)
    assert found["file_id"].to_pylist() == sorted(ids.tolist())
    assert found["n_windows"].to_pylist() == [lengths[at] for at in np.argsort(ids)]
    assert found["file"].to_pylist() == [f"/archive/{each}.wav" for each in sorted(ids)]
    for id_, embedding in zip(found["file_id"].to_pylist(), found["embedding"].to_pylist(), strict=True):
        own = vectors[file_id == id_]
        if poolings == ("sequence",):
            assert np.array_equal(np.array(embedding, np.float32), own)
        else:
            expected = np.concatenate([NUMPY[name](own.astype(np.float64), axis=0) for name in poolings])
            assert np.allclose(embedding, expected, rtol=1e-6, atol=1e-6)


def test_a_recording_of_one_window_has_no_spread() -> None:
    one = windows([7], [0], np.ones((1, 4), np.float32), [1])
    found = recordings_of(parts_of_windows(one, ("mean", "std")), ("mean", "std"))
    assert found["embedding"].to_pylist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
