"""The store: shards, failures, JSON files, and the guard of the settings."""

import base64
import json
import zlib
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding import storage
from embedding.errors import RequestError
from embedding.output import shard_facts
from embedding.output.shard_facts import FACTS_KEY
from embedding.output.shard_reading import open_shard
from embedding.output.shard_schema import AUDIO_HASHES_KEY, SETTINGS_KEY
from embedding.output.store import Store, embeddings_schema
from embedding.schema.failures import FAILURES, Failure
from tests.support.shards import DIM, shard


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), '{"model": "m"}')


def test_a_shard_holds_its_rows_with_plain_types_and_its_settings(store: Store) -> None:
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


def test_a_second_try_of_a_task_overwrites_its_failures(store: Store) -> None:
    failure = Failure("/a/b.wav", -7, 12, "decode", "corrupt", "not readable as audio")
    store.write_failures([failure], "run")
    store.write_failures([failure], "run")
    store.write_failures([], "run")
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


def test_a_recording_is_complete_when_each_of_its_windows_is_stored(store: Store) -> None:
    store.write_shard(shard((5, 0, 3), (5, 1, 3), (9, 0, 1), (-2, 0, 2)), "a")
    store.write_shard(shard((5, 2, 3), (5, 2, 3), (-2, 0, 2)), "b")
    inventory = store.read()
    assert inventory.recordings().is_complete(np.array([5, 9, -2, 7])).tolist() == [True, True, False, False]
    assert inventory.window_indices(-2) == [0]


def test_an_output_that_does_not_exist_holds_nothing(store: Store) -> None:
    inventory = store.read()
    assert not inventory.recordings().is_complete(np.array([1, 2])).any()
    assert not inventory.is_failed(np.array([1, 2])).any()


def test_failures_are_read_back_by_recording(store: Store) -> None:
    store.write_failures([Failure("/a", 3, 1, "decode", "empty", "")], "run")
    assert store.read().is_failed(np.array([1, 3])).tolist() == [False, True]


def test_failures_are_read_back_with_their_run(store: Store) -> None:
    failure = Failure("/a", 3, 1, "decode", "empty", "")
    store.write_failures([failure], "one")
    store.write_failures([failure], "two")
    assert sorted(store.read().failures["run_id"].to_pylist()) == ["one", "two"]
    store.replace_failures(store.read().failures.slice(1), "three")
    assert store.read().failures["run_id"].to_pylist() == ["three"]
    assert store.n_failure_files() == 1
    store.replace_failures(store.read().failures.slice(1), "three")
    assert store.n_failure_files() == 0


def test_every_failure_can_be_read_while_failures_are_replaced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_failures([Failure("/a", 1, 1, "decode", "io", "x")], "one")
    store.write_failures([Failure("/b", 2, 1, "decode", "io", "x")], "two")
    rows = store.read().failures
    monkeypatch.setattr(storage, "delete", _fail)
    with pytest.raises(OSError, match="storage"):
        store.replace_failures(rows, "three")
    assert set(store.read().failures["file_id"].to_pylist()) == {1, 2}


def _fail(_: str) -> None:
    raise OSError("the storage failed")


def packed(content: object) -> str:
    return base64.b64encode(zlib.compress(json.dumps(content).encode())).decode()


EXTREMES = {1: -(2**63), 2: 2**63 - 1, 3: 0, 4: -1}


def test_audio_hashes_are_stored_in_the_metadata_of_a_shard(store: Store) -> None:
    table = shard(*((i, 0, 1) for i in (*EXTREMES, 9)), hashes=EXTREMES)
    uri = store.write_shard(table, "a")
    assert store.read_shard(uri).drop_columns("recorder_facts").equals(table)
    assert store.read_shard(uri, ["window_index", "file_id"])["audio_hash"].equals(table["audio_hash"])
    assert pq.read_table(uri).schema.names == embeddings_schema(DIM).names
    for key, value in pq.read_schema(uri).metadata.items():
        assert key.decode().isprintable()
        assert value.decode("utf-8").isprintable()


def test_facts_of_recorders_are_stored_in_the_metadata_of_a_shard(store: Store) -> None:
    facts = {1: '[{"source":"guano","recorder":"ü\n"}]', 3: '[{"source":"bext","recorder":"b"}]'}
    table = shard((1, 0, 2), (1, 1, 2), (2, 0, 1), (3, 0, 1))
    column = pa.array([facts.get(i, "") for i in table["file_id"].to_pylist()], pa.string())
    uri = store.write_shard(table.append_column("recorder_facts", column), "a")
    assert store.read_shard(uri)["recorder_facts"].combine_chunks().equals(column)
    assert pq.read_table(uri).schema.names == embeddings_schema(DIM).names
    assert all(value.decode("ascii").isprintable() for value in pq.read_schema(uri).metadata.values())


def test_a_shard_without_facts_of_recorders_has_no_metadata_for_them(store: Store) -> None:
    table = shard((1, 0, 1))
    uri = store.write_shard(table.append_column("recorder_facts", pa.array([""])), "a")
    assert FACTS_KEY.encode() not in pq.read_schema(uri).metadata
    assert store.read_shard(uri)["recorder_facts"].to_pylist() == [""]


@pytest.mark.parametrize(
    "text",
    ["?", base64.b64encode(b"x").decode(), packed({"1": 2}), packed({"a": "b"}), packed([]), packed({"1": "x"})[:-8]],
    ids=["no base64", "no zlib", "no text", "no number", "no object", "cut short"],
)
def test_damaged_facts_of_recorders_are_one_line(store: Store, text: str) -> None:
    uri = store.write_shard(shard((1, 0, 1)), "a")
    schema = pq.read_schema(uri)
    pq.write_table(pq.read_table(uri).replace_schema_metadata(schema.metadata | {FACTS_KEY: text}), uri)
    with pytest.raises(RequestError, match=r"is damaged \(its facts of recorders") as caught:
        store.read_shard(uri)
    assert "\n" not in str(caught.value)


def test_facts_that_unpack_without_end_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_facts, "MOST_BYTES", 1000)
    uri = store.write_shard(shard((1, 0, 1)), "a")
    text = packed({"1": "0" * 2000})
    pq.write_table(pq.read_table(uri).replace_schema_metadata(pq.read_schema(uri).metadata | {FACTS_KEY: text}), uri)
    with pytest.raises(RequestError, match="unpack to more than 1,000 bytes"):
        store.read_shard(uri)


@pytest.mark.parametrize("hashes", [{}, None], ids=["null", "no column"])
def test_unknown_audio_hashes_are_null(store: Store, hashes: dict[int, int] | None) -> None:
    uri = store.write_shard(shard((1, 0, 2), (2, 0, 1), hashes=hashes), "a")
    assert store.read_shard(uri)["audio_hash"].to_pylist() == [None, None]


def test_all_rows_of_a_recording_get_the_hash_of_its_last_row(store: Store) -> None:
    """The first windows of a long recording are yielded before all of its audio is decoded."""
    early, late = shard((1, 0, 2), hashes={}), shard((1, 1, 2), (2, 0, 1), hashes={1: 5, 2: 6})
    uri = store.write_shard(pa.concat_tables([early, late]), "a")
    assert store.read_shard(uri)["audio_hash"].to_pylist() == [5, 5, 6]


def test_other_readers_read_a_shard_with_audio_hashes(store: Store) -> None:
    uri = store.write_shard(shard(*((i, 0, 1) for i in EXTREMES), hashes=EXTREMES), "a")
    assert AUDIO_HASHES_KEY.encode() in pq.read_schema(uri).metadata
    ids = list(EXTREMES)
    assert pandas.read_parquet(uri)["file_id"].tolist() == ids
    assert polars.read_parquet(uri)["file_id"].to_list() == ids
    assert polars.scan_parquet(uri).collect()["embedding"].to_list()[0] == [0, 1, 2, 3]
    with duckdb.connect() as connection:
        rows = connection.execute(f"select file_id, embedding from '{uri}' order by file_id").fetchall()
        metadata = connection.execute(f"select decode(key) from parquet_kv_metadata('{uri}')").fetchall()
    assert [row[0] for row in rows] == ids
    assert (AUDIO_HASHES_KEY,) in metadata


def test_other_settings_are_refused_without_a_run_json(store: Store) -> None:
    store.write_shard(shard((1, 0, 1)), "a")
    store.refuse_other_settings({"model": "m"})
    with pytest.raises(RequestError, match="model was m, is n; choose another --output"):
        store.refuse_other_settings({"model": "n"})


def test_an_empty_output_accepts_any_settings(store: Store) -> None:
    store.refuse_other_settings({"model": "n"})


def test_only_unfinished_writes_are_removed(store: Store) -> None:
    store.write_shard(shard((1, 0, 1)), "a")
    store.write_failures([Failure("/a", 3, 1, "decode", "empty", "")], "run")
    store.write_json("run.json", {})
    root = Path(store.root)
    before = {path for path in root.rglob("*") if path.is_file()}
    for folder in ("", "embeddings", "failures"):
        (root / folder / f".tmp-{'01' * 16}-a.parquet").write_bytes(b"unfinished")
    (root / "embeddings" / ".tmp.parquet").write_bytes(b"of another program")
    store.remove_unfinished_writes()
    assert {path for path in root.rglob("*") if path.is_file()} == before | {root / "embeddings" / ".tmp.parquet"}


def test_removing_unfinished_writes_does_not_create_an_output(store: Store) -> None:
    store.remove_unfinished_writes()
    assert not Path(store.root).exists()


def test_other_settings_are_refused_with_each_difference(store: Store) -> None:
    store.write_json("run.json", {"settings": {"model": "a", "window_s": 5.0, "hop_s": 5.0}})
    store.refuse_other_settings({"model": "b"})  # a run that stored no vectors does not bind later runs
    store.write_shard(shard((1, 0, 1)), "a")
    store.refuse_other_settings({"model": "a", "window_s": 5.0, "hop_s": 5.0})
    with pytest.raises(RequestError) as caught:
        store.refuse_other_settings({"model": "b", "window_s": 5.0, "hop_s": 2.5})
    assert "model was a, is b; hop_s was 5.0, is 2.5; choose another --output" in str(caught.value)


def test_a_damaged_run_json_is_refused_by_name(store: Store) -> None:
    path = Path(store.root, "run.json")
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(RequestError, match=r"run\.json"):
        store.refuse_other_settings({})


def test_a_file_that_is_no_parquet_is_refused(store: Store) -> None:
    path = Path(store.root, "embeddings", "x.parquet")
    path.parent.mkdir(parents=True)
    path.write_text("not parquet")
    with pytest.raises(RequestError, match="--output: cannot read what"):
        store.read()


def test_a_shard_with_damaged_keys_is_refused_with_advice(store: Store) -> None:
    path = Path(store.write_shard(shard((1, 0, 1)), "a"))
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(300) + content[304:])  # the footer can be read
    with pytest.raises(RequestError, match=f"{path} is damaged .*: delete it and run jobs.embed again"):
        store.read()


def test_a_parquet_file_of_another_program_is_refused_by_name(store: Store) -> None:
    store.write_shard(shard((1, 0, 1)), "a")
    other = Path(store.root, "embeddings", "labels.parquet")
    pq.write_table(pa.table({"file": ["/a/1.wav"], "label": ["wren"]}), other)
    with pytest.raises(RequestError, match=f"{other} is no shard of jobs.embed"):
        store.read()
    with pytest.raises(RequestError, match=f"{other} is no shard of jobs.embed"), open_shard(str(other)):
        pass


def test_a_run_json_that_is_no_object_is_refused(store: Store) -> None:
    path = Path(store.root, "run.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[]")
    with pytest.raises(RequestError, match=r"cannot read .*/run\.json: Input should be an object; move it elsewhere"):
        store.read_json("run.json")


def test_a_bucket_that_does_not_exist_is_refused(s3_server: str) -> None:
    with pytest.raises(RequestError, match="--output: cannot read what s3://no-such-bucket/out holds"):
        Store("s3://no-such-bucket/out", "{}").read()


def test_json_files_keep_names_readable(store: Store) -> None:
    store.write_json("run.json", {"input": ["/Vögel"]})
    assert "/Vögel" in Path(store.root, "run.json").read_text()
    assert json.loads(Path(store.root, "run.json").read_text()) == {"input": ["/Vögel"]}


def test_the_temporary_folder_of_an_export_is_not_removed(store: Store) -> None:
    folder = Path(store.root, ".tmp-export")
    folder.mkdir(parents=True)
    store.remove_unfinished_writes()
    assert folder.is_dir()
