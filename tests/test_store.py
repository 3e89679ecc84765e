"""The output: schema, atomic shards, failure rows, what is read back, the settings guard."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.decode import Failure
from embedding.errors import RequestError
from embedding.store import FAILURES, SETTINGS_KEY, Store, embeddings_schema

DIM = 4


def shard(*windows: tuple[int, int, int]) -> pa.Table:
    """A shard of (file_id, window_index, n_windows)."""
    ids, index, n_windows = zip(*windows, strict=True)
    n = len(windows)
    flat = pa.array(np.arange(n * DIM, dtype=np.float32))
    return pa.table(
        {
            "file": [f"/a/{i}.wav" for i in ids],
            "file_id": ids,
            "window_index": index,
            "n_windows": n_windows,
            "start_time": [5.0 * i for i in index],
            "end_time": [5.0 * i + 5 for i in index],
            "sample_rate": [48_000] * n,
            "channels": [1] * n,
            "duration": [60.0] * n,
            "embedding": pa.FixedSizeListArray.from_arrays(flat, DIM),
        }
    ).cast(embeddings_schema(DIM))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), '{"model": "m"}')


def test_a_shard_reads_back_as_it_was_with_plain_types_and_the_settings(store: Store) -> None:
    table = shard((1, 0, 2), (1, 1, 2))
    uri = store.write_shard(table, "run-0")
    read = pq.read_table(uri)
    assert read.schema.equals(embeddings_schema(DIM))
    assert read.equals(table)
    assert pq.read_schema(uri).metadata[SETTINGS_KEY.encode()] == b'{"model": "m"}'


def test_writing_a_shard_again_replaces_it(store: Store) -> None:
    store.write_shard(shard((1, 0, 1)), "run-0")
    store.write_shard(shard((2, 0, 1)), "run-0")
    folder = Path(store.root, "embeddings")
    assert pq.read_table(folder)["file_id"].to_pylist() == [2]
    assert [path.name for path in folder.iterdir()] == ["run-0.parquet"]


def test_failures_are_rows_and_a_second_try_overwrites_them(store: Store) -> None:
    failure = Failure("/a/b.wav", -7, 12, "decode", "corrupt", "not readable as audio")
    store.write_failures([failure])
    store.write_failures([failure])
    store.write_failures([])
    table = pq.read_table(Path(store.root, "failures"))
    assert table.schema.equals(FAILURES)
    assert table.to_pylist() == [
        {
            "file": "/a/b.wav",
            "file_id": -7,
            "size": 12,
            "stage": "decode",
            "kind": "corrupt",
            "message": "not readable as audio",
        }
    ]


def test_a_recording_is_done_when_each_of_its_windows_is_stored_once_or_more(store: Store) -> None:
    store.write_shard(shard((5, 0, 3), (5, 1, 3), (9, 0, 1), (-2, 0, 2)), "a")
    store.write_shard(shard((5, 2, 3), (5, 2, 3), (-2, 0, 2)), "b")
    stored = store.read()
    assert stored.recordings().complete(np.array([5, 9, -2, 7])).tolist() == [True, True, False, False]
    assert stored.windows(-2) == [0]


def test_nothing_is_done_in_an_output_that_does_not_exist(store: Store) -> None:
    stored = store.read()
    assert not stored.recordings().complete(np.array([1, 2])).any()
    assert not stored.is_failed(np.array([1, 2])).any()


def test_failures_that_were_overcome_leave_and_the_others_stay(store: Store) -> None:
    store.write_failures([Failure("/a", 1, 1, "decode", "io", "x"), Failure("/b", 2, 1, "decode", "io", "x")])
    store.write_failures([Failure("/c", 3, 1, "decode", "io", "x")])
    store.forget_failures({1, 3})
    assert store.read().failed == {2: "io"}
    assert len(list(Path(store.root, "failures").iterdir())) == 1


def test_failures_are_read_back_by_recording(store: Store) -> None:
    store.write_failures([Failure("/a", 3, 1, "decode", "empty", "")])
    assert store.read().is_failed(np.array([1, 3])).tolist() == [False, True]


def test_an_output_of_other_settings_is_refused_naming_each_difference(store: Store) -> None:
    store.write_json("run.json", {"settings": {"model": "a", "window_s": 5.0, "hop_s": 5.0}})
    store.refuse_other_settings({"model": "a", "window_s": 5.0, "hop_s": 5.0})
    with pytest.raises(RequestError) as caught:
        store.refuse_other_settings({"model": "b", "window_s": 5.0, "hop_s": 2.5})
    assert "model was a, is b; hop_s was 5.0, is 2.5; choose another --output" in str(caught.value)


def test_a_damaged_run_json_is_named(store: Store) -> None:
    path = Path(store.root, "run.json")
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(RequestError, match=r"run\.json"):
        store.refuse_other_settings({})


def test_a_shard_that_is_none_is_named_before_any_work(store: Store) -> None:
    path = Path(store.root, "embeddings", "x.parquet")
    path.parent.mkdir(parents=True)
    path.write_text("not parquet")
    with pytest.raises(RequestError, match="--output: cannot read what"):
        store.read()


def test_a_bucket_that_does_not_exist_is_a_bad_request(s3_server: str) -> None:
    with pytest.raises(RequestError, match="--output: cannot read what s3://no-such-bucket/out holds"):
        Store("s3://no-such-bucket/out", "{}").read()


def test_json_keeps_names_readable(store: Store) -> None:
    store.write_json("run.json", {"input": ["/Vögel"]})
    assert "/Vögel" in Path(store.root, "run.json").read_text()
    assert json.loads(Path(store.root, "run.json").read_text()) == {"input": ["/Vögel"]}
