"""Exports in the formats of other tools, each read with the tool itself; test_export_tools.py has the large tools."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lancedb.query import LanceVectorQueryBuilder

from embedding.exporting import exported_rows
from embedding.exporting.hoplite import common_folder
from embedding.extras import install_command
from embedding.schema.vectors import column
from tests.support.commands import Outcome
from tests.support.exports import (
    DIM,
    FILES,
    SETTINGS,
    read_rows,
    run_export,
    vectors_of,
    write_export_source,
    write_pooled,
)
from tests.support.shards import add_columns, write_output

INDEX = ["file", "start_time", "end_time"]

Export = Callable[..., Outcome]


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Export:
    monkeypatch.setattr(exported_rows, "BATCH_ROWS", 4)  # fewer than in a shard
    return partial(run_export, capsys)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_export_source(tmp_path / "out put's, größer")
    return tmp_path / "out put's, größer"


def test_npy_is_an_array_and_a_table_of_the_other_columns(export: Export, output: Path, tmp_path: Path) -> None:
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert (done.code, done.stderr) == (0, "")
    found = np.load(tmp_path / "npy" / "vectors.npy", mmap_mode="r")
    assert isinstance(found, np.memmap)
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors_of(read_rows(output)))
    assert pq.read_table(tmp_path / "npy" / "windows.parquet") == read_rows(output).drop_columns("embedding")
    record = json.loads((tmp_path / "npy" / "export.json").read_text())
    assert record["settings"] == SETTINGS
    assert (record["format"], record["of"], record["rows"], record["dimensions"]) == ("npy", str(output), 28, DIM)
    assert "28 windows of 16 numbers" in done.stdout
    assert f"""numpy.load("{tmp_path}/npy/vectors.npy", mmap_mode='r')""".replace('"', "'") in done.stdout


def test_pt_is_a_dictionary_of_tensors_that_loads_without_running_code(
    export: Export, output: Path, tmp_path: Path
) -> None:
    assert export(output, "--to", "pt", tmp_path / "pt").code == 0
    found = torch.load(tmp_path / "pt" / "windows.pt", weights_only=True, mmap=True)
    table = read_rows(output)
    assert np.array_equal(found.pop("embedding").numpy(), vectors_of(table))
    files, index = found.pop("files"), found.pop("file_index")
    assert sorted(files) == sorted(FILES)
    assert [files[at] for at in index] == table["file"].to_pylist()
    assert sorted(found) == sorted(set(table.column_names) - {"file", "embedding"})
    for name, tensor in found.items():
        assert np.array_equal(tensor.numpy(), table[name].to_numpy())
    assert sorted(path.name for path in (tmp_path / "pt").iterdir()) == ["export.json", "windows.pt"]


def test_opensoundscape_csv_equals_the_table_that_opensoundscape_writes(
    export: Export, output: Path, tmp_path: Path
) -> None:
    assert export(output, "--to", "opensoundscape", tmp_path / "oss").code == 0
    table = read_rows(output)
    index = pd.MultiIndex.from_arrays([table[name].to_pylist() for name in INDEX], names=INDEX)
    pd.DataFrame(data=vectors_of(table), index=index).to_csv(tmp_path / "theirs.csv")  # as CNN.embed does
    paths = tmp_path / "oss" / "embeddings.csv", tmp_path / "theirs.csv"
    ours, theirs = (pd.read_csv(path, index_col=[0, 1, 2]) for path in paths)
    pd.testing.assert_frame_equal(ours, theirs)
    assert np.array_equal(ours.to_numpy(np.float32), vectors_of(table))


@pytest.mark.parametrize("index_rows", [29, 28])
def test_lancedb_finds_the_nearest_windows(
    index_rows: int, export: Export, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedding.exporting import lancedb as lancedb_format

    monkeypatch.setattr(lancedb_format, "INDEX_ROWS", index_rows)
    done = export(output, "--to", "lancedb", tmp_path / "lance")
    assert done.code == 0
    table, windows = lancedb.connect(tmp_path / "lance").open_table("windows"), read_rows(output)
    assert table.count_rows() == 28
    has_index = index_rows == 28
    assert [(index.columns, index.index_type) for index in table.list_indices()] == [(["vector"], "IvfPq")] * has_index
    assert ("# an index by cosine" in done.stdout) == has_index
    query = vectors_of(windows)[9]
    search = table.search(query)
    assert isinstance(search, LanceVectorQueryBuilder)
    found = search.distance_type("cosine").refine_factor(30).limit(5).to_list()
    cosines = vectors_of(windows) @ query / np.linalg.norm(vectors_of(windows), axis=1) / np.linalg.norm(query)
    nearest = np.argsort(-cosines)[:5]
    expected = windows.drop_columns("embedding").take(pa.array(nearest)).to_pylist()
    assert [{name: row[name] for name in expected[0]} for row in found] == expected
    assert [1 - row["_distance"] for row in found] == pytest.approx(cosines[nearest], abs=1e-5)


LAYER = "backbone.encoder.layers.5.fc2"


def add_layer_and_predictions(output: Path) -> None:
    """Add the columns of a run with ``--layers`` and ``--predict``."""

    def new_columns(windows: pa.Table) -> dict[str, pa.Array]:
        n = len(windows)
        labels = [[f"species {at % 3}, große", f"species {at % 5}"] for at in range(n)]
        scores = pa.array([[at / 100, at / 200] for at in range(n)], pa.list_(pa.float32()))
        return {LAYER: column(-vectors_of(windows)[:, :3]), "labels": pa.array(labels), "scores": scores}

    add_columns(output, new_columns)


@pytest.mark.parametrize("layer", [None, LAYER])
def test_vectors_are_those_of_one_layer_and_predictions_are_other_columns(
    layer: str | None, export: Export, output: Path, tmp_path: Path
) -> None:
    add_layer_and_predictions(output)
    table, options = read_rows(output), ["--layer", layer] if layer else []
    for to in ("npy", "pt", "opensoundscape", "lancedb"):
        done = export(output, "--to", to, tmp_path / to, *options)
        assert (done.code, done.stderr) == (0, "")
        assert json.loads((tmp_path / to / "export.json").read_text())["layer"] == layer
    expected = np.stack(table[layer or "embedding"].to_numpy())
    other_columns = pq.read_table(tmp_path / "npy" / "windows.parquet")
    assert other_columns.equals(table.select([name for name in table.column_names if name not in ("embedding", LAYER)]))
    tensors = torch.load(tmp_path / "pt" / "windows.pt", weights_only=True)
    assert tensors["labels"] == table["labels"].to_pylist()
    assert tensors["scores"].tolist() == table["scores"].to_pylist()
    assert LAYER not in tensors
    assert sorted(path.name for path in (tmp_path / "pt").iterdir()) == ["export.json", "windows.pt"]
    lance = lancedb.connect(tmp_path / "lancedb").open_table("windows").to_arrow()
    assert lance["labels"].to_pylist() == table["labels"].to_pylist()
    csv = pd.read_csv(tmp_path / "opensoundscape" / "embeddings.csv", index_col=[0, 1, 2])
    for found in (
        np.load(tmp_path / "npy" / "vectors.npy"),
        tensors["embedding"].numpy(),
        np.stack(lance["vector"].to_numpy()),
        csv.to_numpy(np.float32),
    ):
        assert np.array_equal(found, expected)


def test_pooled_recordings_are_exported_like_windows(export: Export, output: Path, tmp_path: Path) -> None:
    pooled = np.random.default_rng(1).random((3, DIM), np.float32)
    write_pooled(output, "mean", column(pooled))
    for to in ("npy", "opensoundscape"):
        assert export(output, "--to", to, tmp_path / to, "--recordings", "mean").code == 0
    assert np.array_equal(np.load(tmp_path / "npy" / "vectors.npy"), pooled)
    assert pq.read_table(tmp_path / "npy" / "recordings.parquet")["file"].to_pylist() == list(FILES[:3])
    found = pd.read_csv(tmp_path / "opensoundscape" / "embeddings.csv", index_col=[0, 1, 2])
    assert found.index.to_list() == [(file, 0.0, at + 0.5) for at, file in enumerate(FILES[:3])]


def test_sequences_are_refused(export: Export, output: Path, tmp_path: Path) -> None:
    write_pooled(output, "sequence", pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), column(np.ones((2, DIM)))))
    done = export(output, "--to", "npy", tmp_path / "npy", "--recordings", "sequence")
    assert done.code == 2
    assert done.stderr.endswith("/sequence is a list of vectors: export the windows instead\n")


def test_an_output_may_be_in_s3(export: Export, bucket: str, tmp_path: Path) -> None:
    windows = {file: np.full((3, DIM), at, np.float32) for at, file in enumerate(FILES)}
    write_output(f"s3://{bucket}/out", windows, SETTINGS)
    assert export(f"s3://{bucket}/out", "--to", "npy", tmp_path / "npy").code == 0
    assert sorted(np.load(tmp_path / "npy" / "vectors.npy")[:, 0]) == sorted([0, 1, 2, 3] * 3)


@pytest.mark.parametrize(("package", "to"), [("lancedb", "lancedb"), ("perch_hoplite", "hoplite")])
def test_the_command_that_installs_a_missing_package_is_named(
    package: str, to: str, export: Export, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = export(output, "--to", to, output.parent / "folder")
    reason = f"{package} is not installed: {install_command(to)}"
    assert (done.code, done.stderr) == (2, f"avex-batch: {reason}\n")
    assert not (output.parent / "folder").exists()


def test_a_failure_of_lancedb_is_printed_without_its_traceback(export: Export, output: Path, tmp_path: Path) -> None:
    shard = output / "embeddings" / "s0.parquet"
    table = pq.read_table(shard)
    not_a_number = column(np.full((len(table), DIM), np.nan, np.float32))
    pq.write_table(table.set_column(table.column_names.index("embedding"), "embedding", not_a_number), shard)
    done = export(output, "--to", "lancedb", tmp_path / "lancedb")
    assert done.code == 1
    assert "LanceDB failed: " in done.stderr
    assert "has NaNs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        (["/a/b/c.wav", "/a/b/d.wav"], "/a/b"),
        (["/a/b/c.wav"], "/a/b"),
        (["/a/b1/c.wav", "/a/b2/c.wav", "/a/c.wav"], "/a"),
        (["/a.wav", "/b.wav"], ""),
        (["s3://bucket/x/a.wav", "s3://bucket/y/b.wav"], "s3://bucket"),
        (["s3://bucket/a.wav", "s3://bucke/b.wav"], ""),
        (["s3://bucket/a.wav", "/a.wav"], ""),
    ],
)
def test_the_common_folder_is_the_innermost_with_all_recordings(files: list[str], folder: str) -> None:
    assert common_folder(files) == folder


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4), min_size=1, max_size=5))
def test_every_recording_lies_below_the_common_folder(paths: list[list[str]]) -> None:
    files = ["/" + "/".join(path) + "/x.wav" for path in paths]
    folder = common_folder(files)
    assert all(file.startswith(f"{folder}/") for file in files)
    next_parts = {file[len(folder) + 1 :].split("/")[0] for file in files}
    assert len(next_parts) > 1 or next_parts == {"x.wav"}
