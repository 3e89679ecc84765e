"""Pooling of an output to one row per recording, as a user runs it."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.derived import backlog as backlogs
from embedding.derived.backlog import complete_recordings, find_backlog
from embedding.derived.derive import do_shards
from embedding.output.inventory import Inventory, find_window_ranges
from embedding.output.shard_schema import SETTINGS_KEY
from embedding.output.store import Store, embeddings_schema
from embedding.pooling.pool import Pooling, pooled_output
from embedding.schema.vectors import column, matrix
from local_ray import ray_of
from tests.support.commands import ROOT, Outcome, environment
from tests.support.shards import add_columns

DIM = 5
SETTINGS = '{"model": "a model"}'


def write_windows(
    root: str, windows: list[tuple[int, int]], n_windows: dict[int, int], n_shards: int, prefix: str = "s"
) -> None:
    """Store windows, given as (recording, index), in shards of equal size.

    Args:
        root: The output.
        windows: The windows, in the order of the shards.
        n_windows: Number of windows by recording.
        n_shards: Number of shards.
        prefix: Of the names of the shards.
    """
    store = Store(root, SETTINGS)
    for number, part in enumerate(np.array_split(np.array(windows), n_shards)):
        ids, index = part[:, 0], part[:, 1]
        n = np.array([n_windows[i] for i in ids])
        columns: dict[str, Any] = {
            "file": [f"/archive/{i}.wav" for i in ids],
            "file_id": ids,
            "window_index": index,
            "n_windows": n,
            "start_time": index * 5.0,
            "end_time": index * 5.0 + 5,
            "sample_rate": np.full(len(ids), 48_000),
            "channels": np.full(len(ids), 2),
            "duration": n * 5.0,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(make_vectors(part).reshape(-1)), DIM),
        }
        store.write_shard(pa.table(columns).cast(embeddings_schema(DIM)), f"{prefix}{number}")


def make_vectors(windows: np.ndarray) -> np.ndarray:
    """Return the vector of each window, given as (recording, index)."""
    seeds = [abs(hash((int(file_id), int(index)))) for file_id, index in windows]
    return np.stack([np.random.default_rng(seed).standard_normal(DIM) for seed in seeds]).astype(np.float32)


def vectors_of(file_id: int, n: int) -> np.ndarray:
    """Return the vectors of a recording, ``[windows, dim]``."""
    return make_vectors(np.array([(file_id, index) for index in range(n)]))


def shuffled(n_windows: dict[int, int]) -> list[tuple[int, int]]:
    """Return all windows of recordings in a random order."""
    windows = [(file_id, index) for file_id, n in n_windows.items() for index in range(n)]
    np.random.default_rng(0).shuffle(windows)
    return windows


def pooled_rows(output: Path, pooling: str = "mean") -> list[dict[str, Any]]:
    return pq.read_table(output / "recordings" / pooling).to_pylist()


@pytest.fixture(scope="session")
def pool(ray_address: str) -> Callable[..., Outcome]:
    return partial(run_pool, ray_address)


def run_pool(address: str, *arguments: object) -> Outcome:
    command = [sys.executable, "-m", "jobs.pool", *map(str, arguments)]
    env = environment(RAY_ADDRESS=address)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


N_WINDOWS = {3: 7, 8: 1, 5: 40, 11: 12, 900: 3}


@pytest.mark.parametrize("pooling", ["mean", "std+max"])
def test_pooled_vectors_are_those_of_numpy(pooling: str, pool: Callable[..., Outcome], tmp_path: Path) -> None:
    write_windows(str(tmp_path), shuffled(N_WINDOWS), N_WINDOWS, 4)
    done = pool(tmp_path, "--pooling", pooling)
    assert (done.code, done.stderr) == (0, "")
    assert "5 recordings in 4 shards · 0 pooled before, 5 to do" in done.stdout
    query = f"select * from '{tmp_path}/recordings/{pooling}/*.parquet'"
    rows = duckdb.connect().execute(query).df().set_index("file_id")
    assert sorted(rows.index) == sorted(N_WINDOWS)
    for id_, n in N_WINDOWS.items():
        row, vectors = rows.loc[id_], vectors_of(id_, n).astype(np.float64)
        expected = np.concatenate([getattr(np, name)(vectors, axis=0) for name in pooling.split("+")])
        assert np.allclose(row["embedding"], expected, rtol=1e-6, atol=1e-6)
        assert (row["file"], row["n_windows"], row["duration"]) == (f"/archive/{id_}.wav", n, n * 5.0)
        assert (row["sample_rate"], row["channels"]) == (48_000, 2)
    assert not list(tmp_path.rglob(".parts/*"))


def test_vectors_of_an_inner_layer_have_a_folder_of_their_own(pool: Callable[..., Outcome], tmp_path: Path) -> None:
    write_windows(str(tmp_path), shuffled(N_WINDOWS), N_WINDOWS, 4)
    add_columns(tmp_path, lambda windows: {"blocks.3": column(2 * matrix(windows["embedding"])[:, :2])})
    done = pool(tmp_path, "--layer", "blocks.3")
    assert (done.code, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "recordings").iterdir()] == ["mean@blocks.3"]
    assert f"read_parquet('{tmp_path}/recordings/mean@blocks.3')" in done.stdout
    rows = pooled_rows(tmp_path, "mean@blocks.3")
    assert sorted(row["file_id"] for row in rows) == sorted(N_WINDOWS)
    for row in rows:
        expected = 2 * vectors_of(row["file_id"], row["n_windows"]).mean(axis=0)[:2]
        assert np.allclose(row["embedding"], expected, atol=1e-6)


def test_a_sequence_holds_every_window_in_order(pool: Callable[..., Outcome], tmp_path: Path) -> None:
    write_windows(str(tmp_path), shuffled(N_WINDOWS), N_WINDOWS, 4)
    assert pool(tmp_path, "--pooling", "sequence").code == 0
    rows = pooled_rows(tmp_path, "sequence")
    assert sorted(row["file_id"] for row in rows) == sorted(N_WINDOWS)
    for row in rows:
        assert np.array_equal(np.array(row["embedding"], np.float32), vectors_of(row["file_id"], row["n_windows"]))


def test_new_recordings_are_added_and_removed_recordings_are_dropped(
    pool: Callable[..., Outcome], tmp_path: Path
) -> None:
    half_done = {77: 9}
    write_windows(str(tmp_path), shuffled(N_WINDOWS), N_WINDOWS, 3)
    write_windows(str(tmp_path), [(77, w) for w in range(5)], half_done, 1, prefix="t")
    done = pool(tmp_path)
    assert done.code == 1
    assert done.stderr.count("\n") == 1
    assert "1 recording left out, because windows are missing or repeated" in done.stderr
    assert len(pooled_rows(tmp_path)) == len(N_WINDOWS)
    before = {path.name for path in (tmp_path / "recordings" / "mean").glob("*.parquet")}

    write_windows(str(tmp_path), [(77, w) for w in range(5, 9)], half_done, 1, prefix="u")
    done = pool(tmp_path)
    assert (done.code, done.stderr) == (0, "")
    assert "5 pooled before, 1 to do" in done.stdout
    assert before < {path.name for path in (tmp_path / "recordings" / "mean").glob("*.parquet")}
    rows = pooled_rows(tmp_path)
    added = next(row for row in rows if row["file_id"] == 77)
    assert np.allclose(added["embedding"], vectors_of(77, 9).mean(axis=0), atol=1e-6)

    for prefix in "tu":
        (tmp_path / "embeddings" / f"{prefix}0.parquet").unlink()
    done = pool(tmp_path)
    assert done.code == 0
    assert "5 pooled before, 0 to do" in done.stdout
    assert sorted(row["file_id"] for row in pooled_rows(tmp_path)) == sorted(N_WINDOWS)


def test_a_run_that_died_is_continued(pool: Callable[..., Outcome], tmp_path: Path) -> None:
    write_windows(str(tmp_path), shuffled(N_WINDOWS), N_WINDOWS, 3)
    inventory = Store(str(tmp_path), "").read()
    recordings = inventory.recordings()
    output = pooled_output(str(tmp_path), ("mean",), None, json.dumps(json.loads(SETTINGS), sort_keys=True))
    backlog = find_backlog(output, inventory, recordings, complete_recordings(recordings))
    assert len(backlog.groups) == 1
    # The run dies after two shards.
    do_shards(backlog.shards.slice(0, 2), output, Pooling(("mean",), "embedding"))
    assert len(list(tmp_path.rglob(".parts/*"))) == 2
    for shard in sorted((tmp_path / "embeddings").iterdir())[:2]:  # the vectors of these shards are not read again
        table = pq.read_table(shard)
        zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(table) * DIM, np.float32)), DIM)
        pq.write_table(table.set_column(table.column_names.index("embedding"), "embedding", zeros), shard)
    done = pool(tmp_path)
    assert (done.code, done.stderr) == (0, "")
    rows = pooled_rows(tmp_path)
    assert sorted(row["file_id"] for row in rows) == sorted(N_WINDOWS)
    for row in rows:
        assert np.allclose(row["embedding"], vectors_of(row["file_id"], row["n_windows"]).mean(axis=0), atol=1e-6)


def test_rows_of_other_settings_are_pooled_again(pool: Callable[..., Outcome], tmp_path: Path) -> None:
    write_windows(str(tmp_path), shuffled(N_WINDOWS), N_WINDOWS, 2)
    assert pool(tmp_path).code == 0
    for shard in (tmp_path / "embeddings").iterdir():  # another run of jobs.embed into the emptied folder
        table = pq.read_table(shard)
        ones = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(len(table) * DIM, np.float32)), DIM)
        table = table.set_column(table.column_names.index("embedding"), "embedding", ones)
        pq.write_table(table.replace_schema_metadata({SETTINGS_KEY: '{"model": "another"}'}), shard)
    done = pool(tmp_path)
    assert (done.code, done.stderr) == (0, "")
    assert "0 pooled before, 5 to do" in done.stdout
    rows = pooled_rows(tmp_path)
    assert sorted(row["file_id"] for row in rows) == sorted(N_WINDOWS)
    assert {value for row in rows for value in row["embedding"]} == {1.0}


def test_recordings_with_repeated_rows_are_left_out_and_counted(pool: Callable[..., Outcome], tmp_path: Path) -> None:
    write_windows(str(tmp_path), [(3, w) for w in range(7)], N_WINDOWS, 1)
    write_windows(str(tmp_path), [(8, 0)], N_WINDOWS, 1, prefix="t")
    write_windows(str(tmp_path), [(8, 0)], N_WINDOWS, 1, prefix="u")
    done = pool(tmp_path)
    assert done.code == 1
    assert "1 recording left out" in done.stderr
    assert [row["file_id"] for row in pooled_rows(tmp_path)] == [3]


def test_a_damaged_shard_is_named_in_one_line(pool: Callable[..., Outcome], tmp_path: Path) -> None:
    write_windows(str(tmp_path), shuffled(N_WINDOWS), N_WINDOWS, 1)
    shard = tmp_path / "embeddings" / "s0.parquet"
    vectors = pq.ParquetFile(shard).metadata.row_group(0).column(9)
    assert vectors.path_in_schema.startswith("embedding")
    content = bytearray(shard.read_bytes())
    start = vectors.data_page_offset + 40  # after the header of the page, so that the keys can be read
    content[start : start + 400] = bytes(400)
    shard.write_bytes(content)
    done = pool(tmp_path)
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {shard} is damaged (")
    assert done.stderr.endswith("delete it and run jobs.embed again, which embeds its recordings again\n")
    assert done.stderr.count("\n") == 1


# Long, because it starts a Ray of its own (15 s). Shorter tests of S3 are those of the claim, the store and jobs.embed.
@pytest.mark.long
def test_an_output_in_s3_is_pooled_there(s3_api: Any, bucket: str) -> None:
    write_windows(f"s3://{bucket}/out", shuffled(N_WINDOWS), N_WINDOWS, 2)
    with ray_of(2) as address:  # a new Ray, because workers have the AWS environment of its process
        done = run_pool(address, f"s3://{bucket}/out", "--pooling", "max")
    assert (done.code, done.stderr) == (0, "")
    keys = [item["Key"] for item in s3_api.list_objects_v2(Bucket=bucket, Prefix="out/recordings/")["Contents"]]
    assert keys
    assert all(key.startswith("out/recordings/max/") and key.endswith(".parquet") for key in keys)


@pytest.mark.parametrize(
    ("pooling", "reason"),
    [
        ("maen", "'maen' is not one of mean, max, std, sequence (did you mean 'mean'?)"),
        ("mean+mean", "'mean+mean' names a pooling twice"),
        ("mean+sequence", "sequence keeps every window, and cannot be joined with other poolings"),
        ("", "'' is not one of mean, max, std, sequence"),
    ],
)
def test_an_unknown_pooling_is_refused(pooling: str, reason: str, pool: Callable[..., Outcome], tmp_path: Path) -> None:
    done = pool(tmp_path, "--pooling", pooling)
    assert (done.code, done.stderr) == (2, f"avex-batch: --pooling: {reason}\n")


def test_an_output_without_embeddings_is_refused(pool: Callable[..., Outcome], tmp_path: Path) -> None:
    done = pool(tmp_path)
    assert done.code == 2
    assert "holds no embeddings: write them with jobs.embed" in done.stderr
    assert not list(tmp_path.iterdir())


@given(
    n_windows=st.dictionaries(st.integers(-99, 99), st.integers(1, 9), min_size=1, max_size=12),
    n_shards=st.integers(1, 6),
    seed=st.integers(0, 99),
    group_windows=st.sampled_from([1, 10, 32_768]),
)
def test_a_backlog_has_every_recording_once(
    n_windows: dict[int, int], n_shards: int, seed: int, group_windows: int
) -> None:
    windows = np.array([(i, index, n) for i, n in n_windows.items() for index in range(n)])
    shard = np.random.default_rng(seed).integers(0, n_shards, len(windows))
    window_ranges = []
    for number in range(n_shards):
        file_id, index, n = windows[shard == number].T
        keys = {"file_id": file_id, "window_index": index, "n_windows": n, "duration": n * 1.0}
        window_ranges.append(find_window_ranges(pa.table(keys), number))
    uris = [f"/out/embeddings/s{number}.parquet" for number in range(n_shards)]
    inventory = Inventory.of(uris, window_ranges, pa.table({"file_id": []}))
    recordings = inventory.recordings()
    complete = complete_recordings(recordings)
    assert sorted(complete) == sorted(n_windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backlogs, "GROUP_WINDOWS", group_windows)
        backlog = find_backlog(pooled_output("/out", ("mean",), None, "{}"), inventory, recordings, complete)
    groups = backlog.groups.to_pylist()
    for group in groups:
        assert len(group["file_ids"]) == 1 or sum(n_windows[i] for i in group["file_ids"]) <= 2 * group_windows + 9
    shards = {task["uri"]: task for task in backlog.shards.to_pylist()}
    whole = [i for task in shards.values() for i in task["whole"]]
    assert sorted(whole + [i for group in groups for i in group["file_ids"]]) == sorted(n_windows)
    for id_ in n_windows:
        holders = {uris[number] for number in shard[windows[:, 0] == id_]}
        assert {uri for uri, task in shards.items() if id_ in task["whole"] + task["split"]} == holders
        assert (id_ in whole) == (len(holders) == 1)
        group = next((group for group in groups if id_ in group["file_ids"]), None)
        if group is not None:
            assert {shards[uri]["partials"] for uri in holders} <= set(group["partials"])
