"""Manifests: tables that name recordings."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.errors import RequestError
from embedding.listing.entries import UNKNOWN_SIZE
from embedding.listing.listing import describe_not_found
from embedding.listing.manifests import read_manifest
from tests.support.listings import (
    ODD_NAMES,
    list_inputs,
    listed_below,
    listed_files,
    make_files,
    put_objects,
    refusal,
    write_manifest,
)


@pytest.fixture(params=["m.csv", "m.parquet", "M.CSV"])
def manifest_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "lists" / request.param


def test_relative_paths_count_from_the_folder_of_the_manifest(manifest_path: Path, tmp_path: Path) -> None:
    make_files(tmp_path, "lists/b/1.wav", "a.wav", "c.whatever")
    rows = [f"{tmp_path}/c.whatever", "b/1.wav", None, "", "../a.wav", "./b/../b/1.wav", "gone.wav"]
    found = list_inputs(write_manifest(manifest_path, *rows)).recordings
    assert found["file"].to_pylist() == [
        f"{tmp_path}/c.whatever",
        f"{tmp_path}/lists/b/1.wav",
        f"{tmp_path}/a.wav",
        f"{tmp_path}/lists/gone.wav",
    ]
    assert found["size"].to_pylist() == [1, 1, 1, UNKNOWN_SIZE]


def test_a_manifest_may_contain_odd_names(manifest_path: Path) -> None:
    make_files(manifest_path.parent, *ODD_NAMES)
    found = list_inputs(write_manifest(manifest_path, *ODD_NAMES)).recordings
    assert found["file"].to_pylist() == [f"{manifest_path.parent}/{name}" for name in ODD_NAMES]
    assert found["size"].to_pylist() == [1] * len(ODD_NAMES)


def test_a_manifest_without_the_column_file_is_refused(manifest_path: Path) -> None:
    path = write_manifest(manifest_path, "a.wav", column="File")
    assert refusal(path) == f"--input: manifest {path} needs one column 'file' (it has: note, File)"


def test_a_manifest_with_a_uri_of_another_scheme_is_refused(manifest_path: Path) -> None:
    path = write_manifest(manifest_path, "http://somewhere/a.wav")
    assert refusal(path) == (f"--input: manifest {path}: http:// is not supported; expected a local path or s3://…")


def test_an_empty_manifest_has_no_recordings(manifest_path: Path) -> None:
    assert refusal(write_manifest(manifest_path)) == f"--input: no recording found in {manifest_path}"


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe" * 1000, b"file\nGr\xfcnspecht.wav\n", b"file\na,b\n"])
def test_a_damaged_manifest_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"--input: manifest {path} ")
    assert len(message) < 400


def test_a_csv_may_have_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    make_files(tmp_path, "Grünspecht.wav", "b.wav")
    path = tmp_path / "m.csv"
    path.write_bytes('\ufefffile,n\r\n"Grünspecht.wav",1\r\nb.wav,\r\n'.encode())
    assert listed_below(tmp_path, path) == ["Grünspecht.wav", "b.wav"]


def test_other_columns_of_a_csv_may_contain_anything(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    n = 30_000  # several blocks of Arrow's reader
    note = "\n" * 100
    with path.open("w") as stream:
        stream.write("n,note,file\n" + "".join(f'{i},"{note}",{i:020}.wav\n' for i in range(n)) + "none,,last.wav\n")
    files = listed_files(path)
    assert len(files) == n + 1
    assert files[-1] == f"{tmp_path}/last.wav"


def test_names_like_na_or_numbers_stay_names(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("file\nNA\nnull\n007\ntrue\n2023-01-01\n")
    assert listed_below(tmp_path, path) == ["NA", "null", "007", "true", "2023-01-01"]


@pytest.mark.parametrize(
    "files",
    [
        pa.array(["a.wav", "b.wav"], pa.large_string()),
        pa.array(["a.wav", "b.wav"], pa.string_view()),
        pa.array(["a.wav", "b.wav"]).dictionary_encode(),
    ],
)
def test_a_parquet_manifest_may_have_any_type_of_text(files: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"file": files}), path)
    assert listed_below(tmp_path, path) == ["a.wav", "b.wav"]
    names = read_manifest(str(path), "--labels")["file"]
    assert names.to_pylist() == [f"{tmp_path}/a.wav", f"{tmp_path}/b.wav"]


@pytest.mark.parametrize(
    "files",
    [
        *(pa.array(values) for values in ([1, 2], [["a.wav"]], [b"a.wav"], [{"file": "a.wav"}], [True])),
        pa.array([1, 2]).dictionary_encode(),
        pa.array([[("file", 1)]], pa.map_(pa.string(), pa.int64())),
    ],
)
def test_a_parquet_manifest_whose_column_file_is_not_text_is_refused(files: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"file": files}), path)
    kind = pq.read_schema(path).field("file").type
    assert refusal(path) == f"--input: column 'file' of manifest {path} holds {kind}, not names"
    with pytest.raises(RequestError, match=r"^--labels: column 'file' of manifest .* holds .*, not names"):
        read_manifest(str(path), "--labels")


def test_a_repeated_column_name_is_refused_only_for_the_column_file(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a.wav"])] * 3, ["file", "note", "note"]), path)
    assert listed_below(tmp_path, path) == ["a.wav"]
    assert read_manifest(str(path), "--labels").column_names == ["file", "note", "note"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a.wav"])] * 2, ["file", "file"]), path)
    assert refusal(path) == f"--input: manifest {path} needs one column 'file' (it has: file, file)"
    with pytest.raises(RequestError, match=r"--labels: .* needs one column 'file' \(it has: file, file\)"):
        read_manifest(str(path), "--labels")


def test_null_names_are_not_recordings(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"file": pa.nulls(3)}), path)
    assert refusal(path) == f"--input: no recording found in {path}"
    assert len(read_manifest(str(path), "--labels")) == 0


def repeated(value: str, n: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value]))


@pytest.mark.parametrize("column", ["file", "note"])
def test_a_parquet_manifest_that_unpacks_to_gigabytes_is_refused_in_little_memory(column: str, tmp_path: Path) -> None:
    """A text of a megabyte is repeated 20,000 times: the file has some hundred bytes, and unpacks to 20 GB."""
    path = tmp_path / "m.parquet"
    columns = {"file": repeated("a.wav", 20_000), "note": repeated("b", 20_000)}
    pq.write_table(pa.table(columns | {column: repeated("x" * (1 << 20), 20_000)}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    if column == "file":
        assert "has names of 1,048,576 bytes in its column 'file'" in refusal(path)
    else:
        assert listed_below(tmp_path, path) == ["a.wav"]
    with pytest.raises(RequestError, match=rf"^--labels: manifest {path} unpacks to 20,971,\d+,\d+ bytes, more than"):
        read_manifest(str(path), "--labels")


def test_a_parquet_manifest_of_long_names_is_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"file": ["x" * (1 << 20)] * 20}), path, compression="zstd", use_dictionary=False)
    assert "has names of 1,048,5" in refusal(path)


def test_a_manifest_that_cannot_be_read_is_refused(unprivileged: Path) -> None:
    path = write_manifest(unprivileged / "m.csv", "a.wav")
    path.chmod(0)
    assert refusal(path) == f"--input: cannot read manifest {path}: Permission denied"


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_limit_does_not_read_the_rest_of_a_manifest(name: str, tmp_path: Path, s3_api: Any, bucket: str) -> None:
    path = write_manifest(tmp_path / name, *(f"/gone/{i:090}.wav" for i in range(50_000)))
    s3_api.upload_file(str(path), bucket, name)
    assert len(listed_files(path, limit=3)) == 3
    assert len(listed_files(f"s3://{bucket}/{name}", limit=3)) == 3


def test_an_object_that_a_manifest_repeats_is_looked_up_once(
    tmp_path: Path, s3_api: Any, bucket: str, s3_log: Path
) -> None:
    root = put_objects(s3_api, bucket, "a.wav", "b.wav")
    path = write_manifest(tmp_path / "m.csv", *[f"{root}/a.wav"] * 50, *[f"{root}/b.wav"] * 50)
    assert listed_below(root, path) == ["a.wav", "b.wav"]
    assert s3_log.read_text().count(f"HEAD /{bucket}/") == 2


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_manifest_in_s3_may_name_objects_by_relative_paths(
    name: str, s3_api: Any, bucket: str, tmp_path: Path
) -> None:
    root = put_objects(s3_api, bucket, "lists/a b.wav", "audio/c#1.wav", "audio/100%.wav", "audio/why?.wav")
    local = make_files(tmp_path, "local.wav") / "local.wav"
    rows = ["a b.wav", "../audio/c#1.wav", f"{root}/audio/100%.wav", f"{root}/audio/why?.wav", str(local)]
    missing = ["gone.wav", f"{root}/audio", f"s3://{bucket}-gone/a.wav"]
    s3_api.upload_file(str(write_manifest(tmp_path / name, *rows, *missing)), bucket, f"lists/{name}")
    found = list_inputs(f"{root}/lists/{name}").recordings
    assert found["file"].to_pylist() == [
        f"{root}/lists/a b.wav",
        f"{root}/audio/c#1.wav",
        f"{root}/audio/100%.wav",
        f"{root}/audio/why?.wav",
        str(local),
        f"{root}/lists/gone.wav",
        f"{root}/audio",
        f"s3://{bucket}-gone/a.wav",
    ]
    assert found["size"].to_pylist() == [1] * 5 + [UNKNOWN_SIZE] * 3


def test_a_manifest_on_disk_may_name_objects(s3_api: Any, bucket: str, tmp_path: Path) -> None:
    root = put_objects(s3_api, bucket, *(f"{i}.wav" for i in range(3)))
    path = write_manifest(tmp_path / "m.csv", *(f"{root}/{i}.wav" for i in (2, 0, 1)))
    assert listed_below(root, path) == ["2.wav", "0.wav", "1.wav"]


def test_read_manifest_returns_the_same_files_as_the_listing(manifest_path: Path, tmp_path: Path) -> None:
    write_manifest(manifest_path, f"{tmp_path}/c.wav", "b/1.wav", None, "", "../a.wav")
    table = read_manifest(str(manifest_path), "--manifest")
    named = [f"{tmp_path}/c.wav", f"{tmp_path}/lists/b/1.wav", f"{tmp_path}/a.wav"]
    assert table["file"].to_pylist() == named
    assert table["file"].to_pylist() == list_inputs(str(manifest_path)).recordings["file"].to_pylist()
    assert "note" in table.column_names


def test_columns_of_a_csv_are_text(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('file,site,label\na.wav,007,"rain,\nwind"\nb.wav,8,\n')
    table = read_manifest(str(path), "--manifest")
    assert table.drop_columns("file").to_pylist() == [
        {"site": "007", "label": "rain,\nwind"},
        {"site": "8", "label": None},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "name\na.wav\n", "needs one column 'file' (it has: name)"),
        ("m.csv", "", "is damaged"),
        ("m.parquet", "no parquet", "is damaged"),
        ("m.txt", "file\na.wav\n", "is not a manifest: expected a .csv or .parquet with a column 'file'"),
    ],
)
def test_the_refusal_of_a_manifest_names_the_option(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=rf"^--labels: .*{re.escape(message)}"):
        read_manifest(str(tmp_path / name), "--labels")


def test_the_refusal_of_a_missing_manifest_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^--labels: cannot read manifest .*/m.csv: No such file"):
        read_manifest(f"{tmp_path}/m.csv", "--labels")


# --- files of spreadsheet programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-bom"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_of_a_spreadsheet_program_is_read(delimiter: str, encoding: str, tmp_path: Path) -> None:
    make_files(tmp_path, "Grünspecht 1.wav", "b/2.wav")
    lines = [("note", "file"), ("", "Grünspecht 1.wav"), ('"two\nlines"', '"b/2.wav"')]
    text = "\r\n".join(delimiter.join(line) for line in lines) + "\r\n"
    content = b"\xfe\xff" + text.encode("utf-16-be") if encoding == "utf-16-be-bom" else text.encode(encoding)
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    names = [f"{tmp_path}/Grünspecht 1.wav", f"{tmp_path}/b/2.wav"]
    assert list_inputs(path).recordings["file"].to_pylist() == names
    table = read_manifest(str(path), "--manifest")
    assert table["file"].to_pylist() == names
    assert table["note"].to_pylist()[1] == "two\nlines"


def test_quoted_backslashes_are_part_of_a_name(tmp_path: Path) -> None:
    make_files(tmp_path, "a\\b.wav")
    path = tmp_path / "m.csv"
    path.write_text('file,note\n"a\\b.wav","c:\\d"\n')
    assert list_inputs(path).recordings["file"].to_pylist() == [f"{tmp_path}/a\\b.wav"]


def test_the_refusal_of_a_csv_says_how_to_save_it(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes("file\nGrünspecht.wav\n".encode("latin-1"))
    line = refusal(path)
    assert line.endswith("save it as CSV in UTF-8 with commas, semicolons or tabs between columns, or as Parquet")
    assert "\n" not in line


# --- recordings that are not found ------------------------------------------------------------------------------------


def test_recordings_that_are_not_found_are_counted_and_named(manifest_path: Path) -> None:
    make_files(manifest_path.parent, "a.wav")
    found = list_inputs(write_manifest(manifest_path, "a.wav", *(f"gone-{i}.wav" for i in range(4))))
    assert (len(found.recordings), found.n_not_found) == (5, 4)
    folder = manifest_path.parent
    shown = f"{folder}/gone-0.wav, {folder}/gone-1.wav, {folder}/gone-2.wav …"
    assert describe_not_found(found) == f"4 of 5 recordings were not found: {shown}"


def test_windows_paths_are_explained(manifest_path: Path) -> None:
    found = list_inputs(write_manifest(manifest_path, r"C:\rec\a.wav"))
    assert describe_not_found(found) == (
        rf"1 of 1 recording was not found: {manifest_path.parent}/C:\rec\a.wav; names with backslashes are Windows "
        "paths, and this system separates folders by /"
    )
