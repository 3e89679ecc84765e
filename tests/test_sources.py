"""Inputs to recordings: directories, globs, files, manifests and S3, with the names people give their files."""

import contextlib
import csv
import glob
import os
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.errors import RequestError
from embedding.sources import (
    RECORDINGS,
    UNKNOWN_SIZE,
    Listing,
    audio_suffixes,
    describe_left_out,
    file_id,
    list_recordings,
)

ODD_NAMES = [
    "with space.wav",
    "hash#tag.wav",
    "100%.wav",
    "100%25.wav",
    "a+b.wav",
    "why?.wav",
    "star*.wav",
    "[bracket].wav",
    "[a-z.wav",
    "a&b=c;d,e.wav",
    'it\'s "quoted".wav',
    "back\\slash.wav",
    "~tilde.wav",
    "-dash.wav",
    "two  spaces .wav",
    "Grünspecht.WAV",
    "Gru\u0308nspecht.wav",  # the same to the eye, as macOS writes it
    "録音 1.flac",
    "🐦.ogg",
]


def make(root: Path, *names: str) -> Path:
    """Files of one byte each; a listing does not look into them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def listing(*inputs: object, limit: int | None = None) -> Listing:
    return list_recordings([str(uri) for uri in inputs], limit)


def listed(*inputs: object, limit: int | None = None) -> list[str]:
    return listing(*inputs, limit=limit).recordings["file"].to_pylist()


def below(root: object, *inputs: object) -> list[str]:
    """What is listed, as names below ``root``."""
    files = listed(*inputs or (root,))
    assert all(file.startswith(f"{root}/") for file in files)
    return [file.removeprefix(f"{root}/") for file in files]


def refusal(*inputs: object) -> str:
    """The one line with which a request is refused."""
    with pytest.raises(RequestError) as refused:
        listing(*inputs)
    message = str(refused.value)
    assert message.startswith("--input: ")
    assert "\n" not in message
    return message


# --- directories ------------------------------------------------------------------------------------------------


def test_a_directory_is_searched_to_its_depths_in_the_order_of_names(tmp_path: Path) -> None:
    names = ["a.wav", "b/a.wav", "b/c/d/e.flac", "b/z.ogg", "c.mp3"]
    for i in range(3):
        root = make(tmp_path / str(i), *random.Random(i).sample(names, len(names)))
        assert below(root) == names


def test_columns_are_those_of_the_schema(tmp_path: Path) -> None:
    path = make(tmp_path, "a.wav") / "a.wav"
    path.write_bytes(b"four")
    recordings = listing(tmp_path).recordings
    assert recordings.schema == RECORDINGS
    recordings.validate(full=True)
    identity = file_id(str(path), 4, str(path.stat().st_mtime_ns))
    assert recordings.to_pylist() == [{"file": str(path), "size": 4, "file_id": identity}]


def test_suffixes_are_those_libsndfile_reads_in_any_case(tmp_path: Path) -> None:
    names = ["a.WAV", "b.Flac", "c.oPuS", "d.aif", "e.AIFC", "f.mp3", "g.oga", "h.snd", "i.w64", "j.caf"]
    assert below(make(tmp_path, *names)) == names
    assert {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".rf64"} <= audio_suffixes()
    assert not {".raw", ".mat", ".txt", ".csv", ".json", ""} & audio_suffixes()


def test_hidden_files_and_folders_are_left_out_unsaid(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "._a.wav", ".b.wav", ".Trash/c.wav", "d/._e.wav", "d/.DS_Store", ".wav")
    found = listing(tmp_path)
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/a.wav"]
    assert not found.left_out


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "b.TXT", "c/d.txt", "c/e.xml", "README", "f.wav.gz", "g.", "h.20230401_123456")
    found = listing(tmp_path)
    assert found.left_out == {".txt": 2, ".xml": 1, "without suffix": 1, ".gz": 1, ".": 1, "with a long suffix": 1}
    assert describe_left_out(found.left_out).startswith("2 .txt, ")


def test_many_kinds_of_left_out_files_are_told_in_a_short_line() -> None:
    left_out = Counter({f".{i:03}": 1000 - i for i in range(1000)})
    assert describe_left_out(left_out) == (
        "1,000 .000, 999 .001, 998 .002, 997 .003, 996 .004, 995 .005, 994 .006, 993 .007, 492,528 others"
    )
    assert describe_left_out(Counter({".txt": 9, ".xml": 3})) == "9 .txt, 3 .xml"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    make(tmp_path / "x", name, "other.txt")
    path = f"{tmp_path}/x/{name}"
    assert listed(tmp_path) == [path]  # in a directory
    assert listed(path) == [path]  # by itself
    assert listed(tmp_path / "*" / "*") == [path]  # by a glob
    folder = make(tmp_path / "y" / name, "z.wav", "z.txt")
    assert listed(folder) == [f"{folder}/z.wav"]  # as a directory
    assert listed(folder / "*.wav") == [f"{folder}/z.wav"]  # as the directory of a glob


def test_names_that_are_not_utf8_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.wav")
    bad = os.fsencode(tmp_path) + b"/Gr\xfcnspecht"
    Path(os.fsdecode(bad + b".wav")).write_bytes(b"x")
    Path(os.fsdecode(bad)).mkdir()
    Path(os.fsdecode(bad + b"/b.wav")).write_bytes(b"x")
    found = listing(tmp_path)
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/a.wav"]
    assert found.left_out == {"with a name that is not UTF-8": 2}
    assert "is not UTF-8" in refusal(os.fsdecode(bad))


def test_a_directory_named_like_a_recording_is_a_directory(tmp_path: Path) -> None:
    make(tmp_path, "x.wav/a.wav", "x.wav/b.txt", "y.wav/c/d.wav")
    assert below(tmp_path) == ["x.wav/a.wav", "y.wav/c/d.wav"]
    assert below(tmp_path, tmp_path / "x.wav") == ["x.wav/a.wav"]
    assert below(tmp_path, tmp_path / "*.wav") == ["x.wav/a.wav", "y.wav/c/d.wav"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make(tmp_path, "a/b/x.wav", "c/y.wav")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/b/self").symlink_to(".")
    (tmp_path / "a/other").symlink_to(tmp_path / "c")
    (tmp_path / "a/z.wav").symlink_to(tmp_path / "c/y.wav")
    expected = ["a/b/x.wav", "a/other/y.wav", "a/z.wav", "c/y.wav"]
    assert below(tmp_path) == expected
    assert below(tmp_path, tmp_path / "**/*.wav") == expected


def test_links_that_lead_nowhere_are_recordings_of_unknown_size(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").symlink_to("gone.wav")
    (tmp_path / "self.wav").symlink_to("self.wav")
    (tmp_path / "broken.txt").symlink_to("gone.txt")
    found = listing(tmp_path)
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/broken.wav", f"{tmp_path}/self.wav"]
    assert found.recordings["size"].to_pylist() == [UNKNOWN_SIZE, UNKNOWN_SIZE]
    assert found.n_bytes == 0
    assert found.left_out == {".txt": 1}


def test_a_pipe_is_no_recording_for_reading_it_would_never_end(tmp_path: Path) -> None:
    make(tmp_path, "a.wav")
    os.mkfifo(tmp_path / "b.wav")
    found = listing(tmp_path)
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/a.wav"]
    assert found.left_out == {"pipe or device": 1}
    assert refusal(tmp_path / "b.wav").endswith("left out: 1 pipe or device")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory of which the closed parts are closed to this test, even if root runs it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as later:
        Path(folder).chmod(0o755)
        if os.geteuid() == 0:
            later.callback(os.seteuid, 0)
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        yield Path(folder)


def test_a_directory_that_cannot_be_read_is_refused(unprivileged: Path) -> None:
    make(unprivileged, "a.wav", "closed/b.wav")
    (unprivileged / "closed").chmod(0)
    message = f"--input: cannot list {unprivileged}/closed: Permission denied"
    assert refusal(unprivileged) == message
    assert refusal(unprivileged / "**") == message
    assert refusal(unprivileged / "closed") == message
    assert (
        refusal(unprivileged / "closed/b.wav") == f"--input: cannot read {unprivileged}/closed/b.wav: Permission denied"
    )
    assert (
        refusal(unprivileged / "closed/m.csv") == f"--input: cannot read {unprivileged}/closed/m.csv: Permission denied"
    )
    (unprivileged / "closed").chmod(0o755)


def test_a_file_that_cannot_be_read_is_still_a_recording(unprivileged: Path) -> None:
    make(unprivileged, "a.wav", "closed/b.wav")
    (unprivileged / "a.wav").chmod(0)
    (unprivileged / "c.wav").symlink_to("closed/b.wav")
    (unprivileged / "closed").chmod(0)
    found = listing(unprivileged / "*.wav").recordings
    (unprivileged / "closed").chmod(0o755)
    assert found["file"].to_pylist() == [f"{unprivileged}/a.wav", f"{unprivileged}/c.wav"]
    assert found["size"].to_pylist() == [1, UNKNOWN_SIZE]


def test_nothing_found_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"--input: no recording found in {tmp_path}"
    make(tmp_path, "a.txt", "b.txt", ".hidden.wav")
    assert refusal(tmp_path) == f"--input: no recording found in {tmp_path}; left out: 2 .txt"
    assert refusal(*[tmp_path] * 3) == f"--input: no recording found in {tmp_path} and 2 more; left out: 6 .txt"


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.wav")
    for name in ("b.wav", "b/c/d", "a.wav/b", "m.csv", "m.parquet"):
        assert refusal(tmp_path, tmp_path / name) == f"--input: {tmp_path}/{name} does not exist"
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "http:// is not supported" in refusal("http://somewhere/a.wav")
    assert "NUL" in refusal("a\0b")


# --- files and globs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.txt", "a", "a.raw", ".hidden", ".hidden.wav"])
def test_a_file_named_by_itself_is_taken_whatever_its_suffix(name: str, tmp_path: Path) -> None:
    make(tmp_path, name, "other.wav")
    assert below(tmp_path, tmp_path / name) == [name]


def test_a_path_is_made_absolute_but_links_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "real/a.wav", "~b.wav", "home/c.wav")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", f"{tmp_path}/home")
    for path in ("real/a.wav", "./real//a.wav", "link/../real/a.wav", "real/", "real/*"):
        assert listed(path) == [f"{tmp_path}/real/a.wav"]
    assert listed("link") == [f"{tmp_path}/link/a.wav"]
    assert listed("~b.wav") == [f"{tmp_path}/~b.wav"]
    assert listed("~") == [f"{tmp_path}/home/c.wav"]


TREE = [
    "a.wav",
    "b.txt",
    "b.wav",
    "night/a.wav",
    "site-1/a.wav",
    "site-1/night/a.wav",
    "site-1/night/b.flac",
    "site-1/night/late/c.wav",
    "site-10/a.wav",
    "site-2/b.wav",
    "site-2/night.wav/d.wav",
    "site[1]/e.wav",
    ".hidden/a.wav",
    "site-2/.hidden/a.wav",
    "site-2/.a.wav",
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tree"), *TREE)


PATTERNS = {
    "*.wav": ["a.wav", "b.wav"],
    "?.wav": ["a.wav", "b.wav"],
    "*/a.wav": ["night/a.wav", "site-1/a.wav", "site-10/a.wav"],
    "site-?/a.wav": ["site-1/a.wav"],
    "site-[12]/?.wav": ["site-1/a.wav", "site-2/b.wav"],
    "site-[!1]/*.wav": ["site-2/b.wav", "site-2/night.wav/d.wav"],
    "site-1*/a.wav": ["site-1/a.wav", "site-10/a.wav"],
    "site-[0-9][0-9]": ["site-10/a.wav"],
    "site-[2]": ["site-2/b.wav", "site-2/night.wav/d.wav"],
    "**/a.wav": ["a.wav", "night/a.wav", "site-1/a.wav", "site-1/night/a.wav", "site-10/a.wav"],
    "**/night/*.wav": ["night/a.wav", "site-1/night/a.wav"],
    "**/night": ["night/a.wav", "site-1/night/a.wav", "site-1/night/b.flac", "site-1/night/late/c.wav"],
    "site-1/**": ["site-1/a.wav", "site-1/night/a.wav", "site-1/night/b.flac", "site-1/night/late/c.wav"],
    "site-1/**/**/*.flac": ["site-1/night/b.flac"],
    "*/**/c.wav": ["site-1/night/late/c.wav"],
    "site[[]1]/*": ["site[1]/e.wav"],
    "site[1]/*": ["site[1]/e.wav"],  # for it exists
    ".hidden/*": [".hidden/a.wav"],
    "*/.hidden/*": ["site-2/.hidden/a.wav"],
    "site-2/.*.wav": ["site-2/.a.wav"],  # for it says so
    "b.**": ["b.wav"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_glob_takes_what_a_shell_takes(pattern: str, tree: Path) -> None:
    assert below(tree, tree / pattern) == PATTERNS[pattern]


@given(
    st.lists(st.sampled_from(["*", "**", "?.wav", "site-*", "*[1-2]", "n*", "a.wav", "night", "*.flac"]), max_size=4)
)
def test_a_glob_agrees_with_python_where_a_matched_folder_takes_all_below_it(tree: Path, parts: list[str]) -> None:
    pattern = "/".join([str(tree), *parts])
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 — the oracle
    matches = {Path(match) for match in found if not match.endswith(".wav/")}  # for it takes a.wav/** for a.wav
    recordings = [tree / name for name in TREE if not name.endswith(".txt") and "/." not in f"/{name}"]
    expected = [path for path in recordings if matches & {path, *path.parents}]
    try:
        files = listed(pattern)
    except RequestError:
        files = []
    assert sorted(files) == sorted(map(str, expected))


def test_a_glob_that_matches_nothing_is_refused_even_beside_one_that_does(tree: Path) -> None:
    assert refusal(tree / "*.wav", tree / "*.mp3") == f"--input: nothing matches {tree}/*.mp3"
    assert refusal(tree / "gone/*.wav") == f"--input: nothing matches {tree}/gone/*.wav"
    assert refusal(tree / "*.txt") == f"--input: no recording found in {tree}/*.txt; left out: 1 .txt"


# --- manifests --------------------------------------------------------------------------------------------------


def manifest(path: Path, *files: str | None, column: str = "file") -> Path:
    """A manifest with a further column; as text where ``path`` says .csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["note", column])
            writer.writerows([["it rained,\nthen not", file] for file in files])
    else:
        pq.write_table(pa.table({"note": [1] * len(files), column: pa.array(files, pa.string())}), path)
    return path


@pytest.fixture(params=["m.csv", "m.parquet", "M.CSV"])
def manifest_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "lists" / request.param


def test_a_manifest_names_recordings_by_path_or_from_its_own_folder(manifest_path: Path, tmp_path: Path) -> None:
    make(tmp_path, "lists/b/1.wav", "a.wav", "c.whatever")
    rows = [f"{tmp_path}/c.whatever", "b/1.wav", None, "", "../a.wav", "./b/../b/1.wav", "gone.wav"]
    found = listing(manifest(manifest_path, *rows)).recordings
    assert found["file"].to_pylist() == [
        f"{tmp_path}/c.whatever",
        f"{tmp_path}/lists/b/1.wav",
        f"{tmp_path}/a.wav",
        f"{tmp_path}/lists/gone.wav",
    ]
    assert found["size"].to_pylist() == [1, 1, 1, UNKNOWN_SIZE]


def test_a_manifest_takes_odd_names(manifest_path: Path) -> None:
    make(manifest_path.parent, *ODD_NAMES)
    found = listing(manifest(manifest_path, *ODD_NAMES)).recordings
    assert found["file"].to_pylist() == [f"{manifest_path.parent}/{name}" for name in ODD_NAMES]
    assert found["size"].to_pylist() == [1] * len(ODD_NAMES)


def test_a_manifest_without_the_column_is_refused(manifest_path: Path) -> None:
    path = manifest(manifest_path, "a.wav", column="File")
    assert refusal(path) == f"--input: manifest {path} needs one column 'file' (it has: note, File)"


def test_a_manifest_row_of_another_scheme_is_refused(manifest_path: Path) -> None:
    path = manifest(manifest_path, "http://somewhere/a.wav")
    assert refusal(path) == (f"--input: manifest {path}: http:// is not supported; expected a local path or s3://…")


def test_an_empty_manifest_holds_no_recording(manifest_path: Path) -> None:
    assert refusal(manifest(manifest_path)) == f"--input: no recording found in {manifest_path}"


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe" * 1000, b"file\nGr\xfcnspecht.wav\n", b"file\na,b\n"])
def test_a_damaged_manifest_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"--input: manifest {path} ")
    assert len(message) < 400


def test_a_csv_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    make(tmp_path, "Grünspecht.wav", "b.wav")
    path = tmp_path / "m.csv"
    path.write_bytes('\ufefffile,n\r\n"Grünspecht.wav",1\r\nb.wav,\r\n'.encode())
    assert below(tmp_path, path) == ["Grünspecht.wav", "b.wav"]


def test_other_columns_of_a_csv_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    n = 30_000  # several of the blocks that Arrow reads
    note = "\n" * 100
    with path.open("w") as stream:
        stream.write("n,note,file\n" + "".join(f'{i},"{note}",{i:020}.wav\n' for i in range(n)) + "none,,last.wav\n")
    files = listed(path)
    assert len(files) == n + 1
    assert files[-1] == f"{tmp_path}/last.wav"


def test_names_like_na_and_numbers_are_names(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("file\nNA\nnull\n007\ntrue\n2023-01-01\n")
    assert below(tmp_path, path) == ["NA", "null", "007", "true", "2023-01-01"]


@pytest.mark.parametrize(
    "files", [pa.array(["a.wav", "b.wav"], pa.large_string()), pa.array(["a.wav", "b.wav"]).dictionary_encode()]
)
def test_a_parquet_manifest_may_hold_any_kind_of_text(files: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"file": files}), path)
    assert below(tmp_path, path) == ["a.wav", "b.wav"]


@pytest.mark.parametrize("files", [pa.array([1, 2]), pa.array([["a.wav"]]), pa.array([b"a.wav"])])
def test_a_parquet_manifest_whose_files_are_no_text_is_refused(files: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"file": files}), path)
    holds = pq.read_schema(path).field("file").type
    assert refusal(path) == f"--input: column 'file' of manifest {path} holds {holds}, not names"


def test_a_manifest_that_cannot_be_read_is_refused(unprivileged: Path) -> None:
    path = manifest(unprivileged / "m.csv", "a.wav")
    path.chmod(0)
    assert refusal(path) == f"--input: cannot read manifest {path}: Permission denied"


# --- several inputs, limit, identity ----------------------------------------------------------------------------


def test_a_recording_that_several_inputs_name_is_listed_once_where_it_was_first_named(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "b/c.wav", "b/d.wav", "e.wav")
    rows = manifest(tmp_path / "m.csv", "e.wav", "b/c.wav", "e.wav", "gone.wav", "gone.wav")
    assert below(tmp_path, tmp_path / "b/d.wav", rows, tmp_path / "b", tmp_path / "*.wav", tmp_path) == [
        "b/d.wav",
        "e.wav",
        "b/c.wav",
        "gone.wav",
        "a.wav",
    ]


def test_repeats_are_found_however_far_apart(tmp_path: Path) -> None:
    names = [f"{i}.wav" for i in range(20_000)]  # several Arrow batches
    path = manifest(tmp_path / "m.parquet", *names, *reversed(names), "last.wav")
    found = listing(path).recordings
    assert found["file"].to_pylist() == [f"{tmp_path}/{name}" for name in [*names, "last.wav"]]
    assert len(set(found["file_id"].to_pylist())) == 20_001


def test_limit_takes_the_first(tmp_path: Path) -> None:
    make(tmp_path, *[f"{i}.wav" for i in range(5)], "x/6.wav")
    everything = listed(tmp_path)
    for n in range(1, 8):
        assert listed(tmp_path, limit=n) == everything[:n]
    assert listed(tmp_path / "0.wav", tmp_path, limit=3) == everything[:3]


def test_limit_counts_recordings_not_mentions_of_them(tmp_path: Path) -> None:
    path = manifest(tmp_path / "m.csv", *["a.wav"] * 10, "b.wav", "c.wav")
    assert listed(path, limit=2) == [f"{tmp_path}/a.wav", f"{tmp_path}/b.wav"]


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_limit_does_not_read_the_rest_of_a_manifest(name: str, tmp_path: Path, s3_api: Any, bucket: str) -> None:
    path = manifest(tmp_path / name, *(f"/gone/{i:090}.wav" for i in range(50_000)))
    s3_api.upload_file(str(path), bucket, name)
    assert len(listed(path, limit=3)) == 3
    assert len(listed(f"s3://{bucket}/{name}", limit=3)) == 3


def test_objects_a_manifest_names_again_and_again_are_asked_for_once(
    tmp_path: Path, s3_api: Any, bucket: str, s3_log: Path
) -> None:
    root = put(s3_api, bucket, "a.wav", "b.wav")
    path = manifest(tmp_path / "m.csv", *[f"{root}/a.wav"] * 50, *[f"{root}/b.wav"] * 50)
    assert below(root, path) == ["a.wav", "b.wav"]
    assert s3_log.read_text().count(f"HEAD /{bucket}/") == 2


def test_limit_does_not_list_the_rest(tmp_path: Path, s3_server: str) -> None:
    make(tmp_path, "a.wav", "b.txt", "c.wav")
    found = listing(tmp_path, "s3://no-such-bucket/x", limit=1)
    assert len(found.recordings) == 1
    assert not found.left_out


def test_identity_is_the_same_on_every_machine() -> None:
    assert file_id("/archive/Grünspecht.wav", 1234, "1700000000000000000") == -8_659_426_832_453_954_834
    assert file_id("s3://bucket/a b.wav", 0, '"9b2cf535f27731c974343645a3985328"') == -3_100_072_593_648_709_596


def test_identity_changes_with_name_size_and_version() -> None:
    ids = [file_id(*entry) for entry in [("a", 1, "x"), ("b", 1, "x"), ("a", 2, "x"), ("a", 1, "y"), ("a", 11, "")]]
    assert len(set(ids)) == len(ids)
    assert all(-(2**63) <= i < 2**63 for i in ids)


def test_identity_lasts_until_the_file_changes(tmp_path: Path) -> None:
    path = make(tmp_path, "a.wav") / "a.wav"

    def identity() -> int:
        return listing(tmp_path).recordings["file_id"][0].as_py()

    first = identity()
    assert identity() == first
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    touched = identity()
    assert touched != first
    modified_ns = path.stat().st_mtime_ns
    path.write_bytes(b"longer")
    os.utime(path, ns=(0, modified_ns))
    assert identity() not in (first, touched)


def test_the_bytes_of_a_listing_are_those_known(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"12345")
    (tmp_path / "b.wav").write_bytes(b"123")
    assert listing(manifest(tmp_path / "m.csv", "a.wav", "gone.wav", "b.wav")).n_bytes == 8


# --- S3 ---------------------------------------------------------------------------------------------------------


def put(s3_api: Any, bucket: str, *keys: str) -> str:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: s3_api.put_object(Bucket=bucket, Key=key, Body=b"x"), keys))
    return f"s3://{bucket}"


def test_s3_recordings_carry_size_and_etag(s3_api: Any, bucket: str) -> None:
    etag = s3_api.put_object(Bucket=bucket, Key="a.wav", Body=b"12345")["ETag"]
    uri = f"s3://{bucket}/a.wav"
    row = {"file": uri, "size": 5, "file_id": file_id(uri, 5, etag)}
    for source in (f"s3://{bucket}", f"s3://{bucket}/", uri, f"s3://{bucket}/*"):
        assert listing(source).recordings.to_pylist() == [row]


def test_s3_listings_go_on_past_the_first_page(s3_api: Any, bucket: str) -> None:
    keys = [f"a/{i:04}.wav" for i in range(1003)]
    root = put(s3_api, bucket, *keys)
    assert below(root, f"{root}/a") == keys
    assert below(root, f"{root}/a/10*.wav") == keys[1000:]
    assert listed(f"{root}/a", limit=2) == [f"{root}/{key}" for key in keys[:2]]


def test_s3_odd_keys_are_taken_as_they_are(s3_api: Any, bucket: str) -> None:
    keys = [*(f"x/{name}" for name in ODD_NAMES), "x//slashes.wav", "x/y?/z.wav", "x/[y]/z.wav"]
    root = put(s3_api, bucket, *keys)
    assert sorted(below(root)) == sorted(keys)
    assert sorted(below(root, f"{root}/x/**")) == sorted(keys)
    for key in keys:
        assert below(root, f"{root}/{key}") == [key]
    assert below(root, f"{root}/x/y?") == ["x/y?/z.wav"]
    assert below(root, f"{root}/x/[y]/") == ["x/[y]/z.wav"]


def test_s3_pseudo_directories_hidden_objects_and_other_suffixes_are_left_out(s3_api: Any, bucket: str) -> None:
    root = put(
        s3_api, bucket, "a/", "a/b.WAV", "a/._b.wav", "a/.c/d.wav", "a/e.txt", "a/f.wav/", "a/README", ".g/h.wav"
    )
    found = listing(root)
    assert found.recordings["file"].to_pylist() == [f"{root}/a/b.WAV"]
    assert found.left_out == {".txt": 1, "without suffix": 1}
    assert listed(f"{root}/.g") == [f"{root}/.g/h.wav"]  # for it is named


def test_s3_folders_whose_names_begin_alike_are_not_confused(s3_api: Any, bucket: str) -> None:
    root = put(s3_api, bucket, "site-1/a.wav", "site-1-old/b.wav", "site-1.wav", "site-10/c.wav", "site-1")
    assert below(root, f"{root}/site-1") == ["site-1", "site-1/a.wav"]
    assert below(root, f"{root}/site-1/") == ["site-1", "site-1/a.wav"]
    assert below(root, f"{root}/site-10") == ["site-10/c.wav"]
    assert below(root, f"{root}/site-1.wav") == ["site-1.wav"]


def test_s3_an_object_named_by_itself_is_taken_whatever_its_suffix(s3_api: Any, bucket: str) -> None:
    root = put(s3_api, bucket, "a/b.txt", "a/.c")
    assert below(root, f"{root}/a/b.txt", f"{root}/a/.c") == ["a/b.txt", "a/.c"]


def test_a_glob_means_the_same_in_s3(s3_api: Any, bucket: str) -> None:
    root = put(s3_api, bucket, *TREE)
    literal = "site[1]/*"  # what exists in part is meant on a disk; in S3, what exists as a whole
    for pattern in PATTERNS.keys() - {literal}:
        assert sorted(below(root, f"{root}/{pattern}")) == sorted(PATTERNS[pattern]), pattern


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_manifest_in_s3_names_objects_beside_it(name: str, s3_api: Any, bucket: str, tmp_path: Path) -> None:
    root = put(s3_api, bucket, "lists/a b.wav", "audio/c#1.wav", "audio/100%.wav", "audio/why?.wav")
    local = make(tmp_path, "local.wav") / "local.wav"
    rows = ["a b.wav", "../audio/c#1.wav", f"{root}/audio/100%.wav", f"{root}/audio/why?.wav", str(local)]
    missing = ["gone.wav", f"{root}/audio", f"s3://{bucket}-gone/a.wav"]
    s3_api.upload_file(str(manifest(tmp_path / name, *rows, *missing)), bucket, f"lists/{name}")
    found = listing(f"{root}/lists/{name}").recordings
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
    root = put(s3_api, bucket, *(f"{i}.wav" for i in range(3)))
    path = manifest(tmp_path / "m.csv", *(f"{root}/{i}.wav" for i in (2, 0, 1)))
    assert below(root, path) == ["2.wav", "0.wav", "1.wav"]


def test_s3_overlapping_inputs_list_each_recording_once(s3_api: Any, bucket: str, tmp_path: Path) -> None:
    root = put(s3_api, bucket, "a/1.wav", "a/2.wav", "b/3.wav")
    path = manifest(tmp_path / "m.csv", f"{root}/a/2.wav")
    assert below(root, path, f"{root}/b/3.wav", f"{root}/a", root, f"{root}/*/*.wav") == [
        "a/2.wav",
        "b/3.wav",
        "a/1.wav",
    ]


def test_s3_identity_changes_with_the_content(s3_api: Any, bucket: str) -> None:
    def identity(content: bytes) -> int:
        s3_api.put_object(Bucket=bucket, Key="a.wav", Body=content)
        return listing(f"s3://{bucket}").recordings["file_id"][0].as_py()

    assert identity(b"x") == identity(b"x")
    assert identity(b"x") != identity(b"y")


def test_s3_what_does_not_exist_is_refused(s3_api: Any, bucket: str) -> None:
    root = put(s3_api, bucket, "audio/a.wav")
    for name in ("aud", "audio/a", "audio/a.wav/b", "gone/"):
        assert refusal(f"{root}/{name}") == f"--input: nothing lies under {root}/{name.rstrip('/')}"
    assert refusal(f"{root}/audio/*.mp3") == f"--input: nothing matches {root}/audio/*.mp3"
    assert refusal(f"{root}/m.csv") == f"--input: cannot read manifest {root}/m.csv: No such file or directory"
    gone = f"s3://{bucket}-gone"
    assert refusal(f"{gone}/a") == f"--input: cannot list {gone}/a: The specified bucket does not exist"
    assert "The specified bucket does not exist" in refusal(gone)
    assert "The specified bucket does not exist" in refusal(f"{gone}/*.wav")
    assert "Invalid bucket name" in refusal("s3://no bucket/a")
    assert "names no bucket" in refusal("s3://")
    assert "names no bucket" in refusal("s3:///a.wav")
    assert "wildcard in its bucket" in refusal("s3://archive-*/a.wav")


def test_s3_nothing_found_is_refused(s3_api: Any, bucket: str) -> None:
    root = put(s3_api, bucket, "a/", "a/b.txt")
    assert refusal(f"{root}/a") == f"--input: no recording found in {root}/a; left out: 1 .txt"


def s3_inputs(tmp_path: Path) -> list[str]:
    """An input of each kind that leads to S3."""
    path = manifest(tmp_path / "m.csv", "s3://some-bucket/a.wav")
    return ["s3://some-bucket/a", "s3://some-bucket/*.wav", "s3://some-bucket/m.csv", str(path)]


def test_s3_without_credentials_is_refused(other_s3: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other_s3.delenv("AWS_ACCESS_KEY_ID")
    other_s3.delenv("AWS_SECRET_ACCESS_KEY")
    for uri in s3_inputs(tmp_path):
        assert "Unable to locate credentials" in refusal(uri)


def test_s3_with_an_unknown_profile_is_refused(other_s3: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other_s3.setenv("AWS_PROFILE", "nobody")
    for uri in s3_inputs(tmp_path):
        assert "The config profile (nobody) could not be found" in refusal(uri)


def test_s3_with_an_endpoint_that_is_no_url_is_refused(other_s3: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other_s3.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    for uri in s3_inputs(tmp_path):
        assert "AWS_ENDPOINT_URL=http://host:port" in refusal(uri)


def test_s3_that_cannot_be_reached_is_refused_within_seconds(other_s3: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        other_s3.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*bound.getsockname()))
        began = time.monotonic()
        assert "Could not connect to the endpoint URL" in refusal("s3://some-bucket/a")
        assert time.monotonic() - began < 30
