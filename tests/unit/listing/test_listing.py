"""Listing of inputs on a disk: directories, globs, files and manifests, with unusual names of files."""

import glob
import os
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.errors import RequestError
from embedding.listing.disk_inputs import OTHER_CASE
from embedding.listing.entries import UNKNOWN_SIZE, audio_suffixes
from embedding.listing.file_identity import file_id
from embedding.listing.listing import describe_ignored
from embedding.schema.recordings import RECORDINGS
from tests.support.listings import (
    ODD_NAMES,
    PATTERNS,
    TREE,
    list_inputs,
    listed_below,
    listed_files,
    make_files,
    refusal,
    write_manifest,
)

# --- directories ------------------------------------------------------------------------------------------------


def test_a_directory_is_listed_recursively_in_the_order_of_names(tmp_path: Path) -> None:
    names = ["a.wav", "b/a.wav", "b/c/d/e.flac", "b/z.ogg", "c.mp3"]
    for i in range(3):
        root = make_files(tmp_path / str(i), *random.Random(i).sample(names, len(names)))
        assert listed_below(root) == names


def test_a_listing_has_the_columns_of_the_schema(tmp_path: Path) -> None:
    path = make_files(tmp_path, "a.wav") / "a.wav"
    path.write_bytes(b"four")
    recordings = list_inputs(tmp_path).recordings
    assert recordings.schema == RECORDINGS
    recordings.validate(full=True)
    identity = file_id(str(path), 4, str(path.stat().st_mtime_ns))
    assert recordings.to_pylist() == [{"file": str(path), "size": 4, "file_id": identity}]


def test_recordings_have_the_suffixes_of_libsndfile_in_any_case(tmp_path: Path) -> None:
    names = ["a.WAV", "b.Flac", "c.oPuS", "d.aif", "e.AIFC", "f.mp3", "g.oga", "h.snd", "i.w64", "j.caf"]
    assert listed_below(make_files(tmp_path, *names)) == names
    assert {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".rf64"} <= audio_suffixes()
    assert not {".raw", ".mat", ".txt", ".csv", ".json", ""} & audio_suffixes()


def test_hidden_files_and_folders_are_ignored_without_a_count(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav", "._a.wav", ".b.wav", ".Trash/c.wav", "d/._e.wav", "d/.DS_Store", ".wav")
    found = list_inputs(tmp_path)
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/a.wav"]
    assert not found.ignored


def test_ignored_files_are_counted_by_suffix(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav", "b.TXT", "c/d.txt", "c/e.xml", "README", "f.wav.gz", "g.", "h.20230401_123456")
    found = list_inputs(tmp_path)
    assert found.ignored == {".txt": 2, ".xml": 1, "without suffix": 1, ".gz": 1, ".": 1, "with a long suffix": 1}
    assert describe_ignored(found.ignored).startswith("2 .txt, ")


def test_many_suffixes_of_ignored_files_make_a_short_line() -> None:
    ignored = Counter({f".{i:03}": 1000 - i for i in range(1000)})
    assert describe_ignored(ignored) == (
        "1,000 .000, 999 .001, 998 .002, 997 .003, 996 .004, 995 .005, 994 .006, 993 .007, 492,528 others"
    )
    assert describe_ignored(Counter({".txt": 9, ".xml": 3})) == "9 .txt, 3 .xml"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_literal(name: str, tmp_path: Path) -> None:
    make_files(tmp_path / "x", name, "other.txt")
    path = f"{tmp_path}/x/{name}"
    assert listed_files(tmp_path) == [path]  # in a directory
    assert listed_files(path) == [path]  # as a file
    assert listed_files(tmp_path / "*" / "*") == [path]  # as a glob
    folder = make_files(tmp_path / "y" / name, "z.wav", "z.txt")
    assert listed_files(folder) == [f"{folder}/z.wav"]  # as a directory
    assert listed_files(folder / "*.wav") == [f"{folder}/z.wav"]  # as the directory of a glob


def test_names_that_are_not_utf8_are_counted(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav")
    bad = os.fsencode(tmp_path) + b"/Gr\xfcnspecht"
    Path(os.fsdecode(bad + b".wav")).write_bytes(b"x")
    Path(os.fsdecode(bad)).mkdir()
    Path(os.fsdecode(bad + b"/b.wav")).write_bytes(b"x")
    found = list_inputs(tmp_path)
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/a.wav"]
    assert found.ignored == {"with a name that is not UTF-8": 2}
    assert "is not UTF-8" in refusal(os.fsdecode(bad))


def test_a_directory_named_like_a_recording_is_a_directory(tmp_path: Path) -> None:
    make_files(tmp_path, "x.wav/a.wav", "x.wav/b.txt", "y.wav/c/d.wav")
    assert listed_below(tmp_path) == ["x.wav/a.wav", "y.wav/c/d.wav"]
    assert listed_below(tmp_path, tmp_path / "x.wav") == ["x.wav/a.wav"]
    assert listed_below(tmp_path, tmp_path / "*.wav") == ["x.wav/a.wav", "y.wav/c/d.wav"]


def test_links_are_followed_but_not_in_cycles(tmp_path: Path) -> None:
    make_files(tmp_path, "a/b/x.wav", "c/y.wav")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/b/self").symlink_to(".")
    (tmp_path / "a/other").symlink_to(tmp_path / "c")
    (tmp_path / "a/z.wav").symlink_to(tmp_path / "c/y.wav")
    expected = ["a/b/x.wav", "a/other/y.wav"]
    assert listed_below(tmp_path) == expected
    assert listed_below(tmp_path, tmp_path / "**/*.wav") == expected
    assert list_inputs(tmp_path).ignored == {"linked a second time": 2}


def test_links_that_lead_nowhere_are_recordings_of_unknown_size(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").symlink_to("gone.wav")
    (tmp_path / "self.wav").symlink_to("self.wav")
    (tmp_path / "broken.txt").symlink_to("gone.txt")
    found = list_inputs(tmp_path)
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/broken.wav", f"{tmp_path}/self.wav"]
    assert found.recordings["size"].to_pylist() == [UNKNOWN_SIZE, UNKNOWN_SIZE]
    assert found.n_bytes == 0
    assert found.ignored == {".txt": 1}


def test_a_pipe_is_ignored_because_reading_it_may_never_end(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav")
    os.mkfifo(tmp_path / "b.wav")
    found = list_inputs(tmp_path)
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/a.wav"]
    assert found.ignored == {"pipe or device": 1}
    assert refusal(tmp_path / "b.wav").endswith("ignored: 1 pipe or device")


def test_a_directory_that_cannot_be_read_is_refused(unprivileged: Path) -> None:
    make_files(unprivileged, "a.wav", "closed/b.wav")
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
    make_files(unprivileged, "a.wav", "closed/b.wav")
    (unprivileged / "a.wav").chmod(0)
    (unprivileged / "c.wav").symlink_to("closed/b.wav")
    (unprivileged / "closed").chmod(0)
    found = list_inputs(unprivileged / "*.wav").recordings
    (unprivileged / "closed").chmod(0o755)
    assert found["file"].to_pylist() == [f"{unprivileged}/a.wav", f"{unprivileged}/c.wav"]
    assert found["size"].to_pylist() == [1, UNKNOWN_SIZE]


def test_inputs_without_recordings_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"--input: no recording found in {tmp_path}"
    make_files(tmp_path, "a.txt", "b.txt", ".hidden.wav")
    assert refusal(tmp_path) == f"--input: no recording found in {tmp_path}; ignored: 2 .txt"
    assert refusal(*[tmp_path] * 3) == f"--input: no recording found in {tmp_path} and 2 more; ignored: 6 .txt"


def test_an_input_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav")
    for name in ("b.wav", "b/c/d", "a.wav/b", "m.csv", "m.parquet"):
        assert refusal(tmp_path, tmp_path / name) == f"--input: {tmp_path}/{name} does not exist"
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "http:// is not supported" in refusal("http://somewhere/a.wav")
    assert "NUL" in refusal("a\0b")


# --- files and globs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.txt", "a", "a.raw", ".hidden", ".hidden.wav"])
def test_a_file_that_is_named_explicitly_is_listed_whatever_its_suffix(name: str, tmp_path: Path) -> None:
    make_files(tmp_path, name, "other.wav")
    assert listed_below(tmp_path, tmp_path / name) == [name]


def test_paths_become_absolute_and_links_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "real/a.wav", "~b.wav", "home/c.wav")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", f"{tmp_path}/home")
    for path in ("real/a.wav", "./real//a.wav", "link/../real/a.wav", "real/", "real/*"):
        assert listed_files(path) == [f"{tmp_path}/real/a.wav"]
    assert listed_files("link") == [f"{tmp_path}/link/a.wav"]
    assert listed_files("~b.wav") == [f"{tmp_path}/~b.wav"]
    assert listed_files("~") == [f"{tmp_path}/home/c.wav"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("tree"), *TREE)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_glob_matches_like_a_shell(pattern: str, tree: Path) -> None:
    assert listed_below(tree, tree / pattern) == PATTERNS[pattern]


@given(
    st.lists(st.sampled_from(["*", "**", "?.wav", "site-*", "*[1-2]", "n*", "a.wav", "night", "*.flac"]), max_size=4)
)
def test_a_glob_matches_like_python_and_a_matched_folder_includes_everything_in_it(
    tree: Path, parts: list[str]
) -> None:
    pattern = "/".join([str(tree), *parts])
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 — the expected result
    matches = {
        Path(match) for match in found if not match.endswith(".wav/")
    }  # for glob, a.wav/** matches the file a.wav
    recordings = [tree / name for name in TREE if not name.endswith(".txt") and "/." not in f"/{name}"]
    expected = [path for path in recordings if matches & {path, *path.parents}]
    try:
        files = listed_files(pattern)
    except RequestError:
        files = []
    assert sorted(files) == sorted(map(str, expected))


def test_a_glob_that_matches_nothing_is_refused_even_if_another_input_matches(tree: Path) -> None:
    assert refusal(tree / "*.wav", tree / "*.mp3") == f"--input: nothing matches {tree}/*.mp3"
    assert refusal(tree / "gone/*.wav") == f"--input: nothing matches {tree}/gone/*.wav"
    assert refusal(tree / "*.txt") == f"--input: no recording found in {tree}/*.txt; ignored: 1 .txt"


# --- several inputs, limit, identity ----------------------------------------------------------------------------


def test_a_recording_of_several_inputs_is_listed_once_at_its_first_position(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav", "b/c.wav", "b/d.wav", "e.wav")
    rows = write_manifest(tmp_path / "m.csv", "e.wav", "b/c.wav", "e.wav", "gone.wav", "gone.wav")
    assert listed_below(tmp_path, tmp_path / "b/d.wav", rows, tmp_path / "b", tmp_path / "*.wav", tmp_path) == [
        "b/d.wav",
        "e.wav",
        "b/c.wav",
        "gone.wav",
        "a.wav",
    ]


def test_duplicates_are_found_at_any_distance(tmp_path: Path) -> None:
    names = [f"{i}.wav" for i in range(20_000)]  # several Arrow batches
    path = write_manifest(tmp_path / "m.parquet", *names, *reversed(names), "last.wav")
    found = list_inputs(path).recordings
    assert found["file"].to_pylist() == [f"{tmp_path}/{name}" for name in [*names, "last.wav"]]
    assert len(set(found["file_id"].to_pylist())) == 20_001


def test_limit_lists_the_first_recordings(tmp_path: Path) -> None:
    make_files(tmp_path, *[f"{i}.wav" for i in range(5)], "x/6.wav")
    everything = listed_files(tmp_path)
    for n in range(1, 8):
        assert listed_files(tmp_path, limit=n) == everything[:n]
    assert listed_files(tmp_path / "0.wav", tmp_path, limit=3) == everything[:3]


def test_limit_counts_a_repeated_recording_once(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", *["a.wav"] * 10, "b.wav", "c.wav")
    assert listed_files(path, limit=2) == [f"{tmp_path}/a.wav", f"{tmp_path}/b.wav"]


def test_limit_does_not_list_the_rest(tmp_path: Path, s3_server: str) -> None:
    make_files(tmp_path, "a.wav", "b.txt", "c.wav")
    found = list_inputs(tmp_path, "s3://no-such-bucket/x", limit=1)
    assert len(found.recordings) == 1
    assert not found.ignored


def test_identity_is_the_same_on_every_machine() -> None:
    assert file_id("/archive/Grünspecht.wav", 1234, "1700000000000000000") == -8_659_426_832_453_954_834
    assert file_id("s3://bucket/a b.wav", 0, '"9b2cf535f27731c974343645a3985328"') == -3_100_072_593_648_709_596


def test_identity_changes_with_name_size_and_version() -> None:
    ids = [file_id(*entry) for entry in [("a", 1, "x"), ("b", 1, "x"), ("a", 2, "x"), ("a", 1, "y"), ("a", 11, "")]]
    assert len(set(ids)) == len(ids)
    assert all(-(2**63) <= i < 2**63 for i in ids)


def test_identity_stays_the_same_until_the_file_changes(tmp_path: Path) -> None:
    path = make_files(tmp_path, "a.wav") / "a.wav"

    def identity() -> int:
        return list_inputs(tmp_path).recordings["file_id"][0].as_py()

    first = identity()
    assert identity() == first
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    touched = identity()
    assert touched != first
    modified_ns = path.stat().st_mtime_ns
    path.write_bytes(b"longer")
    os.utime(path, ns=(0, modified_ns))
    assert identity() not in (first, touched)


def test_the_bytes_of_a_listing_are_the_sum_of_known_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"12345")
    (tmp_path / "b.wav").write_bytes(b"123")
    assert list_inputs(write_manifest(tmp_path / "m.csv", "a.wav", "gone.wav", "b.wav")).n_bytes == 8


@pytest.mark.long
def test_fifty_thousand_files_in_one_folder_take_little_memory(tmp_path: Path) -> None:
    """The whole process takes 45 MB (measured 2026-11-25); the test measures only the memory that Python counts."""
    for at in range(50_000):
        (tmp_path / f"{at:06}.wav").touch()
    list_inputs(tmp_path / "000000.wav")  # creates objects that are created once per process
    tracemalloc.start()
    found = list_inputs(tmp_path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.recordings) == 50_000
    assert peak_bytes < 30e6


def test_a_text_file_named_as_an_input_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.wav\nGrünspecht.wav\n" * 1_000)
    assert refusal(path) == (
        f"--input: {path} is text, not audio; a list of recordings is a .csv or .parquet with a column 'file'"
    )
    (tmp_path / "sound.bin").write_bytes(bytes(range(256)))
    assert listed_files(tmp_path / "sound.bin") == [f"{tmp_path}/sound.bin"]


def test_a_glob_counts_files_whose_names_differ_in_case_only(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav", "b.WAV", "c.WAV", "d.txt")
    found = list_inputs(f"{tmp_path}/*.wav")
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/a.wav"]
    assert found.ignored == {OTHER_CASE: 2}
    assert "3 with a name that differs from the pattern in case only" in refusal(f"{tmp_path}/*.Wav")
