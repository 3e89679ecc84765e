"""Exports to other tools' formats, each read by the tool itself; those that bring much along: test_export_tools.py."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from lancedb.query import LanceVectorQueryBuilder

from embedding.errors import RequestError
from embedding.exporting import exported_rows
from embedding.exporting.destination import taking
from embedding.exporting.hoplite import common_folder
from embedding.extras import install_command
from embedding.output.shard_schema import SETTINGS_KEY
from embedding.pooling.pooled_output import Pooled
from embedding.schema.vectors import column
from jobs.export import FORMATS, main
from tests.support.commands import Outcome
from tests.support.shards import add_columns, write_output

DIM = 16
SETTINGS = {"model": "a model", "checkpoint": "hf://somewhere"}
FILES = ("/archive/north/a.wav", '/archive/a "b", ü.wav', "/archive/c's.wav", "s3://bucket/d.flac")
INDEX = ["file", "start_time", "end_time"]

Export = Callable[..., Outcome]


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Export:
    monkeypatch.setattr(exported_rows, "BATCH_ROWS", 4)  # less than a shard

    def run(*arguments: object) -> Outcome:
        code = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("an archive, größer")
    rng = np.random.default_rng(0)
    write_output(str(folder), {file: rng.standard_normal((7, DIM)).astype(np.float32) for file in FILES}, SETTINGS)
    return folder


@pytest.fixture
def output(archive: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(archive, tmp_path / "out put's"))


def stored(output: Path) -> pa.Table:
    """All rows, shard after shard."""
    return pa.concat_tables([pq.read_table(shard) for shard in sorted((output / "embeddings").iterdir())])


def vectors(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())


def test_numpy_maps_vectors_beside_a_table(export: Export, output: Path, tmp_path: Path) -> None:
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert (done.code, done.stderr) == (0, "")
    found = np.load(tmp_path / "npy" / "vectors.npy", mmap_mode="r")
    assert isinstance(found, np.memmap)
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors(stored(output)))
    assert pq.read_table(tmp_path / "npy" / "windows.parquet") == stored(output).drop_columns("embedding")
    about = json.loads((tmp_path / "npy" / "export.json").read_text())
    assert about["settings"] == SETTINGS
    assert (about["format"], about["of"], about["rows"], about["dimensions"]) == ("npy", str(output), 28, DIM)
    assert "28 windows of 16 numbers" in done.stdout
    assert f"""numpy.load("{tmp_path}/npy/vectors.npy", mmap_mode='r')""".replace('"', "'") in done.stdout


def test_torch_loads_tensors_and_nothing_that_runs(export: Export, output: Path, tmp_path: Path) -> None:
    assert export(output, "--to", "pt", tmp_path / "pt").code == 0
    found = torch.load(tmp_path / "pt" / "windows.pt", weights_only=True, mmap=True)
    table = stored(output)
    assert np.array_equal(found.pop("embedding").numpy(), vectors(table))
    files, index = found.pop("files"), found.pop("file_index")
    assert sorted(files) == sorted(FILES)
    assert [files[at] for at in index] == table["file"].to_pylist()
    assert sorted(found) == sorted(set(table.column_names) - {"file", "embedding"})
    for name, tensor in found.items():
        assert np.array_equal(tensor.numpy(), table[name].to_numpy())
    assert sorted(path.name for path in (tmp_path / "pt").iterdir()) == ["export.json", "windows.pt"]


def test_pandas_reads_the_table_that_opensoundscape_would_write(export: Export, output: Path, tmp_path: Path) -> None:
    assert export(output, "--to", "opensoundscape", tmp_path / "oss").code == 0
    table = stored(output)
    index = pd.MultiIndex.from_arrays([table[name].to_pylist() for name in INDEX], names=INDEX)
    pd.DataFrame(data=vectors(table), index=index).to_csv(tmp_path / "theirs.csv")  # as CNN.embed makes it
    paths = tmp_path / "oss" / "embeddings.csv", tmp_path / "theirs.csv"
    ours, theirs = (pd.read_csv(path, index_col=[0, 1, 2]) for path in paths)
    pd.testing.assert_frame_equal(ours, theirs)
    assert np.array_equal(ours.to_numpy(np.float32), vectors(table))


@pytest.mark.parametrize("index_rows", [29, 28])
def test_lancedb_finds_the_nearest(
    index_rows: int, export: Export, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedding.exporting import lancedb as exporting

    monkeypatch.setattr(exporting, "INDEX_ROWS", index_rows)
    done = export(output, "--to", "lancedb", tmp_path / "lance")
    assert done.code == 0
    table, windows = lancedb.connect(tmp_path / "lance").open_table("windows"), stored(output)
    assert table.count_rows() == 28
    has_index = index_rows == 28
    assert [(index.columns, index.index_type) for index in table.list_indices()] == [(["vector"], "IvfPq")] * has_index
    assert ("# an index by cosine" in done.stdout) == has_index
    query = vectors(windows)[9]
    search = table.search(query)
    assert isinstance(search, LanceVectorQueryBuilder)
    found = search.distance_type("cosine").refine_factor(30).limit(5).to_list()
    cosines = vectors(windows) @ query / np.linalg.norm(vectors(windows), axis=1) / np.linalg.norm(query)
    nearest = np.argsort(-cosines)[:5]
    expected = windows.drop_columns("embedding").take(pa.array(nearest)).to_pylist()
    assert [{name: row[name] for name in expected[0]} for row in found] == expected
    assert [1 - row["_distance"] for row in found] == pytest.approx(cosines[nearest], abs=1e-5)


LAYER = "backbone.encoder.layers.5.fc2"


def with_more(output: Path) -> Path:
    """An output of a run with --layers and --predict."""

    def more(windows: pa.Table) -> dict[str, pa.Array]:
        n = len(windows)
        labels = [[f"species {at % 3}, große", f"species {at % 5}"] for at in range(n)]
        scores = pa.array([[at / 100, at / 200] for at in range(n)], pa.list_(pa.float32()))
        return {LAYER: column(-vectors(windows)[:, :3]), "labels": pa.array(labels), "scores": scores}

    add_columns(output, more)
    return output


@pytest.mark.parametrize("layer", [None, LAYER])
def test_vectors_are_of_one_layer_and_predictions_stand_beside_them(
    layer: str | None, export: Export, output: Path, tmp_path: Path
) -> None:
    table, chosen = stored(with_more(output)), ["--layer", layer] if layer else []
    for to in ("npy", "pt", "opensoundscape", "lancedb"):
        done = export(output, "--to", to, tmp_path / to, *chosen)
        assert (done.code, done.stderr) == (0, "")
        assert json.loads((tmp_path / to / "export.json").read_text())["layer"] == layer
    expected = np.stack(table[layer or "embedding"].to_numpy())
    beside = pq.read_table(tmp_path / "npy" / "windows.parquet")
    assert beside.equals(table.select([name for name in table.column_names if name not in ("embedding", LAYER)]))
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


def write_pooled(root: Path, name: str, vectors: pa.Array) -> None:
    n = len(vectors)
    recordings = {
        "file": list(FILES[:n]),
        "file_id": np.arange(n),
        "n_windows": pa.array([7] * n, pa.int32()),
        "duration": np.arange(n) + 0.5,
        "sample_rate": pa.array([48_000] * n, pa.int32()),
        "channels": pa.array([1] * n, pa.int32()),
        "embedding": vectors,
    }
    Pooled(str(root), (name,), json.dumps(SETTINGS)).write(pa.table(recordings), "one")


def test_pooled_recordings_are_exported_as_windows_are(export: Export, output: Path, tmp_path: Path) -> None:
    pooled = np.random.default_rng(1).random((3, DIM), np.float32)
    write_pooled(output, "mean", column(pooled))
    for to in ("npy", "opensoundscape"):
        assert export(output, "--to", to, tmp_path / to, "--recordings", "mean").code == 0
    assert np.array_equal(np.load(tmp_path / "npy" / "vectors.npy"), pooled)
    assert pq.read_table(tmp_path / "npy" / "recordings.parquet")["file"].to_pylist() == list(FILES[:3])
    found = pd.read_csv(tmp_path / "opensoundscape" / "embeddings.csv", index_col=[0, 1, 2])
    assert found.index.to_list() == [(file, 0.0, at + 0.5) for at, file in enumerate(FILES[:3])]


def test_sequences_are_not_vectors(export: Export, output: Path, tmp_path: Path) -> None:
    write_pooled(output, "sequence", pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), column(np.ones((2, DIM)))))
    done = export(output, "--to", "npy", tmp_path / "npy", "--recordings", "sequence")
    assert done.code == 2
    assert done.stderr.endswith("/sequence is a list of vectors: export the windows instead\n")


def test_only_an_earlier_export_to_the_same_format_is_replaced(export: Export, output: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    assert export(output, "--to", "npy", there).code == 0  # nothing was in it
    for shard in sorted((output / "embeddings").iterdir())[1:]:
        shard.unlink()
    assert export(output, "--to", "npy", there).code == 0
    assert len(np.load(there / "vectors.npy")) == 10
    for other in (there, output):
        done = export(output, "--to", "pt", other)
        assert done.code == 2
        assert done.stderr == (
            f"avex-batch: FOLDER: {other} is there and no earlier export to pt: choose another one\n"
        )
    assert len(np.load(there / "vectors.npy")) == 10
    assert (output / "embeddings").exists()


def test_what_somebody_has_put_into_an_export_stays(export: Export, output: Path, tmp_path: Path) -> None:
    assert export(output, "--to", "npy", tmp_path / "npy").code == 0
    (tmp_path / "npy" / "notes.txt").write_text("mine")
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert done.code == 2
    assert done.stderr.startswith(
        f"avex-batch: FOLDER: {tmp_path}/npy is an earlier export, but notes.txt in it is not:"
    )
    assert (tmp_path / "npy" / "notes.txt").read_text() == "mine"


def test_a_link_stays_and_what_it_leads_to_is_the_export(export: Export, output: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for at, place in enumerate(("there", "new")):
        (tmp_path / "disk" / "there").mkdir(exist_ok=True)
        link = tmp_path / f"link {at}"
        link.symlink_to(tmp_path / "disk" / place)
        for _ in range(2):
            done = export(output, "--to", "npy", link)
            assert (done.code, done.stderr) == (0, "")
            assert link.is_symlink()
        assert sorted(path.name for path in (tmp_path / "disk" / place).iterdir()) == [
            *("export.json", "vectors.npy", "windows.parquet")
        ]


def test_what_came_to_be_in_the_place_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is there and no earlier export to npy"), taking(tmp_path / "x", "npy"):
        (tmp_path / "x").write_text("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "mine"


def test_an_export_that_fails_leaves_the_earlier_one(export: Export, output: Path, tmp_path: Path) -> None:
    for to in ("npy", "pt", "opensoundscape", "lancedb"):
        assert export(output, "--to", to, tmp_path / "all" / to).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "all").rglob("*") if path.is_file()}
    shard = output / "embeddings" / "s1.parquet"
    metadata = pq.ParquetFile(shard).metadata.row_group(0)
    vectors = metadata.column(metadata.num_columns - 1)
    content = bytearray(shard.read_bytes())
    start = vectors.data_page_offset + 40  # the page's header can be read
    content[start : start + 100] = bytes(100)
    shard.write_bytes(content)
    for to in ("npy", "pt", "opensoundscape", "lancedb"):
        done = export(output, "--to", to, tmp_path / "all" / to)
        assert done.code == 2
        assert done.stderr.startswith(f"avex-batch: {shard} is damaged (")
        assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "all").rglob("*") if path.is_file()} == before


def test_what_a_dead_export_left_is_swept_and_a_living_one_let_be(export: Export, output: Path, tmp_path: Path) -> None:
    left = tmp_path / ".tmp-npy" / "new"
    left.mkdir(parents=True)
    (left / "vectors.npy").write_bytes(b"half")
    with FileLock(tmp_path / ".tmp-npy" / "lock"):
        done = export(output, "--to", "npy", tmp_path / "npy")
        assert (done.code, done.stderr) == (
            2,
            f"avex-batch: FOLDER: another export to {tmp_path / 'npy'} is going on\n",
        )
    assert (left / "vectors.npy").exists()
    assert export(output, "--to", "npy", tmp_path / "npy").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["npy", "out put's"]


def test_rows_that_are_there_twice_are_not_exported(export: Export, output: Path, tmp_path: Path) -> None:
    shutil.copy(output / "embeddings" / "s0.parquet", output / "embeddings" / "t.parquet")
    (output / "report.json").write_text('{"state": "running"}')
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert done.code == 1
    assert done.stderr == f"avex-batch: {output} has 10 rows too many: run jobs.embed again, which mends that\n"
    assert "a run of jobs.embed is going on, or died" in done.stdout
    assert not (tmp_path / "npy").exists()


def test_an_output_in_s3_is_exported_from_there(export: Export, archive: Path, bucket: str, tmp_path: Path) -> None:
    windows = {file: np.full((3, DIM), at, np.float32) for at, file in enumerate(FILES)}
    write_output(f"s3://{bucket}/out", windows, SETTINGS)
    assert export(f"s3://{bucket}/out", "--to", "npy", tmp_path / "npy").code == 0
    assert sorted(np.load(tmp_path / "npy" / "vectors.npy")[:, 0]) == sorted([0, 1, 2, 3] * 3)


@pytest.mark.parametrize(("package", "to"), [("lancedb", "lancedb"), ("perch_hoplite", "hoplite")])
def test_a_format_whose_package_is_missing_says_what_to_install(
    package: str, to: str, export: Export, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = export(output, "--to", to, output.parent / "there")
    reason = f"{package} is not installed: {install_command(to)}"
    assert (done.code, done.stderr) == (2, f"avex-batch: {reason}\n")
    assert not (output.parent / "there").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("{output}", "--to", "nyp", "f"), f"--to: 'nyp' is not one of {', '.join(FORMATS)} (did you mean 'npy'?)"),
        (("{output}", "--to", "npy", "s3://b/f"), "FOLDER: s3://b/f is no folder on this machine: write it there, "),
        (("{output}", "--to", "npy"), "the following arguments are required: FOLDER"),
        (("{output}", "--to", "npy", "{output}/embeddings/f"), "FOLDER: {output}/embeddings/f lies among what is exp"),
        (("{output}/none", "--to", "npy", "{output}/f"), "{output}/none holds no embeddings: write them with jobs."),
        (("{output}", "--to", "npy", "{output}/f", "--recordings", "max"), "--recordings: {output} holds no recording"),
        (("{output}", "--to", "npy", "{output}/f", "--record", "max"), "unknown option --record (did you mean '--reco"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    arguments: tuple[str, ...], reason: str, export: Export, output: Path
) -> None:
    done = export(*(argument.format(output=output) for argument in arguments))
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {reason.format(output=output)}")
    assert done.stderr.count("\n") == 1
    assert not (output / "f").exists()


def test_shards_of_different_lengths_are_named(export: Export, output: Path, tmp_path: Path) -> None:
    shard = output / "embeddings" / "s2.parquet"
    table = pq.read_table(shard)
    table = table.set_column(
        table.column_names.index("embedding"), "embedding", column(np.ones((len(table), 3), np.float32))
    )
    pq.write_table(table.replace_schema_metadata({SETTINGS_KEY: "{}"}), shard)
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert done.code == 1
    assert done.stderr.startswith(f"avex-batch: {shard} holds vectors of another length than ")


def test_a_shard_without_columns_that_others_have_is_named(export: Export, output: Path, tmp_path: Path) -> None:
    shard = output / "embeddings" / "s0.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.append_column("inner", table["embedding"]), shard)
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert done.code == 1
    assert done.stderr.startswith(
        f"avex-batch: {output}/embeddings/s1.parquet lacks columns that {shard} has (inner): "
    )
    assert done.stderr.count("\n") == 1


def test_a_parquet_file_of_somebody_else_among_the_shards_is_named(
    export: Export, output: Path, tmp_path: Path
) -> None:
    other = output / "embeddings" / "labels.parquet"
    pq.write_table(pa.table({"file": FILES, "label": ["wren"] * len(FILES)}), other)
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert f"{other} is no shard of jobs.embed" in done.stderr


def test_what_lancedb_does_not_take_is_said_without_its_traceback(export: Export, output: Path, tmp_path: Path) -> None:
    shard = output / "embeddings" / "s0.parquet"
    table = pq.read_table(shard)
    nothing = column(np.full((len(table), DIM), np.nan, np.float32))
    pq.write_table(table.set_column(table.column_names.index("embedding"), "embedding", nothing), shard)
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
def test_recordings_have_the_folder_in_common_that_all_are_in(files: list[str], folder: str) -> None:
    assert common_folder(files) == folder


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4), min_size=1, max_size=5))
def test_every_recording_lies_below_the_common_folder(parts: list[list[str]]) -> None:
    files = ["/" + "/".join(each) + "/x.wav" for each in parts]
    folder = common_folder(files)
    assert all(file.startswith(f"{folder}/") for file in files)
    deeper = {file[len(folder) + 1 :].split("/")[0] for file in files}
    assert len(deeper) > 1 or deeper == {"x.wav"}
