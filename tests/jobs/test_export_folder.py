"""Folders of exports, and requests that jobs.export refuses."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from embedding.errors import RequestError
from embedding.exporting import exported_rows
from embedding.exporting.destination import replace_folder
from embedding.output.shard_schema import SETTINGS_KEY
from embedding.schema.vectors import column
from jobs.export import FORMATS
from tests.support.commands import Outcome
from tests.support.exports import (
    FILES,
    run_export,
    write_export_source,
)

Export = Callable[..., Outcome]


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Export:
    monkeypatch.setattr(exported_rows, "BATCH_ROWS", 4)  # fewer than in a shard
    return partial(run_export, capsys)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_export_source(tmp_path / "out put's, größer")
    return tmp_path / "out put's, größer"


def test_only_an_earlier_export_to_the_same_format_is_replaced(export: Export, output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert export(output, "--to", "npy", folder).code == 0  # it is empty
    for shard in sorted((output / "embeddings").iterdir())[1:]:
        shard.unlink()
    assert export(output, "--to", "npy", folder).code == 0
    assert len(np.load(folder / "vectors.npy")) == 10
    for other in (folder, output):
        done = export(output, "--to", "pt", other)
        assert done.code == 2
        assert done.stderr == (
            f"avex-batch: FOLDER: {other} exists and is no earlier export to pt: choose another folder\n"
        )
    assert len(np.load(folder / "vectors.npy")) == 10
    assert (output / "embeddings").exists()


def test_an_export_with_files_of_the_user_is_not_replaced(export: Export, output: Path, tmp_path: Path) -> None:
    assert export(output, "--to", "npy", tmp_path / "npy").code == 0
    (tmp_path / "npy" / "notes.txt").write_text("mine")
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert done.code == 2
    assert done.stderr.startswith(
        f"avex-batch: FOLDER: {tmp_path}/npy is an earlier export, but notes.txt in it is not:"
    )
    assert (tmp_path / "npy" / "notes.txt").read_text() == "mine"


def test_a_link_stays_and_its_target_becomes_the_export(export: Export, output: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for at, name in enumerate(("existing", "new")):
        (tmp_path / "disk" / "existing").mkdir(exist_ok=True)
        link = tmp_path / f"link {at}"
        link.symlink_to(tmp_path / "disk" / name)
        for _ in range(2):
            done = export(output, "--to", "npy", link)
            assert (done.code, done.stderr) == (0, "")
            assert link.is_symlink()
        assert sorted(path.name for path in (tmp_path / "disk" / name).iterdir()) == [
            *("export.json", "vectors.npy", "windows.parquet")
        ]


def test_a_file_that_appears_during_the_export_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(RequestError, match="exists and is no earlier export to npy"),
        replace_folder(tmp_path / "x", "npy"),
    ):
        (tmp_path / "x").write_text("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "mine"


def test_a_failed_export_leaves_the_earlier_one(export: Export, output: Path, tmp_path: Path) -> None:
    for to in ("npy", "pt", "opensoundscape", "lancedb"):
        assert export(output, "--to", to, tmp_path / "all" / to).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "all").rglob("*") if path.is_file()}
    shard = output / "embeddings" / "s1.parquet"
    metadata = pq.ParquetFile(shard).metadata.row_group(0)
    vectors = metadata.column(metadata.num_columns - 1)
    content = bytearray(shard.read_bytes())
    start = vectors.data_page_offset + 40  # after the header of the page
    content[start : start + 100] = bytes(100)
    shard.write_bytes(content)
    for to in ("npy", "pt", "opensoundscape", "lancedb"):
        done = export(output, "--to", to, tmp_path / "all" / to)
        assert done.code == 2
        assert done.stderr.startswith(f"avex-batch: {shard} is damaged (")
        assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "all").rglob("*") if path.is_file()} == before


def test_remains_of_a_dead_export_are_removed_and_an_export_in_progress_is_not(
    export: Export, output: Path, tmp_path: Path
) -> None:
    remains = tmp_path / ".tmp-npy" / "new"
    remains.mkdir(parents=True)
    (remains / "vectors.npy").write_bytes(b"half")
    with FileLock(tmp_path / ".tmp-npy" / "lock"):
        done = export(output, "--to", "npy", tmp_path / "npy")
        assert (done.code, done.stderr) == (
            2,
            f"avex-batch: FOLDER: another export to {tmp_path / 'npy'} is in progress\n",
        )
    assert (remains / "vectors.npy").exists()
    assert export(output, "--to", "npy", tmp_path / "npy").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["npy", output.name]


def test_repeated_rows_are_not_exported(export: Export, output: Path, tmp_path: Path) -> None:
    shutil.copy(output / "embeddings" / "s0.parquet", output / "embeddings" / "t.parquet")
    (output / "report.json").write_text('{"state": "running"}')
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert done.code == 1
    assert done.stderr == f"avex-batch: {output} has 10 repeated rows: run jobs.embed again, which repairs that\n"
    assert "a run of jobs.embed is in progress or has died" in done.stdout
    assert not (tmp_path / "npy").exists()


def test_a_shard_with_vectors_of_another_length_is_named(export: Export, output: Path, tmp_path: Path) -> None:
    shard = output / "embeddings" / "s2.parquet"
    table = pq.read_table(shard)
    table = table.set_column(
        table.column_names.index("embedding"), "embedding", column(np.ones((len(table), 3), np.float32))
    )
    pq.write_table(table.replace_schema_metadata({SETTINGS_KEY: "{}"}), shard)
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {shard} holds vectors of another length than ")


def test_a_shard_that_lacks_columns_of_other_shards_is_named(export: Export, output: Path, tmp_path: Path) -> None:
    shard = output / "embeddings" / "s0.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.append_column("inner", table["embedding"]), shard)
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert done.code == 2
    assert done.stderr.startswith(
        f"avex-batch: {output}/embeddings/s1.parquet lacks columns that {shard} has (inner): "
    )
    assert done.stderr.count("\n") == 1


def test_a_parquet_file_that_is_no_shard_is_named(export: Export, output: Path, tmp_path: Path) -> None:
    other = output / "embeddings" / "labels.parquet"
    pq.write_table(pa.table({"file": FILES, "label": ["wren"] * len(FILES)}), other)
    done = export(output, "--to", "npy", tmp_path / "npy")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert f"{other} is no shard of jobs.embed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("{output}", "--to", "nyp", "f"), f"--to: 'nyp' is not one of {', '.join(FORMATS)} (did you mean 'npy'?)"),
        (("{output}", "--to", "npy", "s3://b/f"), "FOLDER: s3://b/f is no folder on this machine: export to a "),
        (("{output}", "--to", "npy"), "the following arguments are required: FOLDER"),
        (("{output}", "--to", "npy", "{output}/embeddings/f"), "FOLDER: {output}/embeddings/f lies in the folder"),
        (("{output}/none", "--to", "npy", "{output}/f"), "{output}/none holds no embeddings: write them with jobs."),
        (("{output}", "--to", "npy", "{output}/f", "--recordings", "max"), "--recordings: {output} holds no recording"),
        (("{output}", "--to", "npy", "{output}/f", "--record", "max"), "unknown option --record (did you mean '--reco"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_one_line(
    arguments: tuple[str, ...], reason: str, export: Export, output: Path
) -> None:
    done = export(*(argument.format(output=output) for argument in arguments))
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {reason.format(output=output)}")
    assert done.stderr.count("\n") == 1
    assert not (output / "f").exists()
