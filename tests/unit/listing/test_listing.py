"""Inputs to recordings: directories, globs, files, manifests and S3, with the names people give their files."""

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
from embedding.listing.listing import OTHER_CASE, UNKNOWN_SIZE, audio_suffixes, describe_left_out, file_id
from embedding.schema.recordings import RECORDINGS
from tests.support.listings import ODD_NAMES, PATTERNS, TREE, below, listed, listing, make, manifest, refusal

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
    expected = ["a/b/x.wav", "a/other/y.wav"]
    assert below(tmp_path) == expected
    assert below(tmp_path, tmp_path / "**/*.wav") == expected
    assert listing(tmp_path).left_out == {"linked a second time": 2}


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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tree"), *TREE)


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


@pytest.mark.long
def test_fifty_thousand_files_in_one_folder_take_little_memory(tmp_path: Path) -> None:
    """The whole process takes 45 MB (measured 2026-11-25); here Python counts its part."""
    for at in range(50_000):
        (tmp_path / f"{at:06}.wav").touch()
    listing(tmp_path / "000000.wav")  # what is made once
    tracemalloc.start()
    found = listing(tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.recordings) == 50_000
    assert most < 30e6


def test_a_text_file_named_as_an_input_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.wav\nGrünspecht.wav\n" * 1_000)
    assert refusal(path) == (
        f"--input: {path} is text, not audio; a list of recordings is a .csv or .parquet with a column 'file'"
    )
    (tmp_path / "sound.bin").write_bytes(bytes(range(256)))
    assert listed(tmp_path / "sound.bin") == [f"{tmp_path}/sound.bin"]


def test_a_glob_counts_files_whose_names_differ_in_case_only(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "b.WAV", "c.WAV", "d.txt")
    found = listing(f"{tmp_path}/*.wav")
    assert found.recordings["file"].to_pylist() == [f"{tmp_path}/a.wav"]
    assert found.left_out == {OTHER_CASE: 2}
    assert "3 with a name that differs from the pattern in case only" in refusal(f"{tmp_path}/*.Wav")
