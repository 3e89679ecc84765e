"""Partial results merge to the vector that NumPy computes over all windows, however windows are divided."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.pooling import partial_sums
from embedding.pooling.partial_tables import SHARD_COLUMNS, make_partials, merge_partials, pool_partials
from embedding.schema.vectors import EMBEDDING

POOLINGS = [("mean",), ("max",), ("std",), ("mean", "max", "std"), ("std", "mean"), ("sequence",)]
NUMPY_FUNCTIONS = {"mean": np.mean, "max": np.max, "std": np.std}


def make_windows(file_id: Any, index: Any, vectors: np.ndarray, n_windows: Any) -> pa.Table:
    """Return windows with SHARD_COLUMNS and ``embedding``."""
    n = len(file_id)
    columns = {
        "file": pa.array([f"/archive/{i}.wav" for i in file_id], pa.string()),
        "file_id": pa.array(file_id, pa.int64()),
        "n_windows": pa.array(n_windows, pa.int32()),
        "duration": np.full(n, 12.5),
        "sample_rate": pa.array([48_000] * n, pa.int32()),
        "channels": pa.array([1] * n, pa.int32()),
        "window_index": pa.array(index, pa.int32()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    }
    return pa.table({name: columns[name] for name in [*SHARD_COLUMNS, EMBEDDING]})


@pytest.mark.parametrize("poolings", POOLINGS)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    n_shards=st.integers(1, 5),
    offset=st.sampled_from([0.0, 1e3]),
    chunk_rows=st.sampled_from([1, 7, 4096]),
)
def test_merged_partials_give_the_vector_of_numpy_over_all_windows(
    poolings: tuple[str, ...], lengths: list[int], n_shards: int, offset: float, chunk_rows: int
) -> None:
    rng = np.random.default_rng(len(lengths))
    ids = rng.choice(np.arange(-50, 50), len(lengths), replace=False)
    file_id = np.repeat(ids, lengths)
    index = np.concatenate([np.arange(n) for n in lengths])
    # The large offset would show a sum of squares that loses digits.
    vectors = (rng.standard_normal((len(file_id), 3)) + offset).astype(np.float32)
    order = rng.permutation(len(file_id))
    shards = np.array_split(order, n_shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_sums, "CHUNK_ROWS", chunk_rows)
        n_windows = np.repeat(lengths, lengths)
        partials = [
            make_partials(make_windows(file_id[at], index[at], vectors[at], n_windows[at]), poolings)
            for at in shards
            if len(at)
        ]
    rows = pool_partials(merge_partials(pa.concat_tables(partials), poolings), poolings)
    assert rows["file_id"].to_pylist() == sorted(ids.tolist())
    assert rows["n_windows"].to_pylist() == [lengths[at] for at in np.argsort(ids)]
    assert rows["file"].to_pylist() == [f"/archive/{i}.wav" for i in sorted(ids)]
    for id_, embedding in zip(rows["file_id"].to_pylist(), rows["embedding"].to_pylist(), strict=True):
        own_vectors = vectors[file_id == id_]
        if poolings == ("sequence",):
            assert np.array_equal(np.array(embedding, np.float32), own_vectors)
        else:
            expected = np.concatenate(
                [NUMPY_FUNCTIONS[name](own_vectors.astype(np.float64), axis=0) for name in poolings]
            )
            assert np.allclose(embedding, expected, rtol=1e-6, atol=1e-6)


def test_a_recording_of_one_window_has_a_standard_deviation_of_zero() -> None:
    window = make_windows([7], [0], np.ones((1, 4), np.float32), [1])
    rows = pool_partials(make_partials(window, ("mean", "std")), ("mean", "std"))
    assert rows["embedding"].to_pylist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
