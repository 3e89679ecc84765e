"""One recording for one file, by whatever names the inputs call it; and names of earlier versions stay as they were."""

import os
import subprocess
import unicodedata
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding import storage
from embedding.listing.file_identity import file_id
from tests.support.listings import below, listed, listing, make, manifest

DECOMPOSED = unicodedata.normalize("NFD", "Grünspecht.wav")
COMPOSED = unicodedata.normalize("NFC", DECOMPOSED)


def test_a_second_slash_at_the_beginning_names_the_same_file(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "b/c.wav")
    names = manifest(tmp_path / "names.csv", f"/{tmp_path}/a.wav", f"///{tmp_path}/b/../a.wav", "./b/./c.wav")
    expected = [f"{tmp_path}/a.wav", f"{tmp_path}/b/c.wav"]
    assert listed(tmp_path, f"/{tmp_path}", f"//{tmp_path}/b/..", names) == expected
    assert listed(f"/{tmp_path}/*.wav", names) == expected
    assert storage.normalise("//data/out", "--output") == "/data/out"


@given(st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_an_ordinary_path_stays_exactly_as_it_is(parts: list[str]) -> None:
    parts = [part for part in parts if part not in (".", "..")]
    path = "/" + "/".join(parts)
    if "://" not in path:
        assert storage.normalise(path, "--input") == path


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_a_file_with_links_is_listed_once_under_the_name_that_comes_first(tmp_path: Path, order: Any) -> None:
    make(tmp_path, "real/a.wav")
    (tmp_path / "link.wav").symlink_to("real/a.wav")
    (tmp_path / "folder").symlink_to("real")
    names = [tmp_path / "real" / "a.wav", tmp_path / "link.wav", tmp_path / "folder"]
    inputs = [names[at] for at in order]
    found = listing(*inputs, *inputs)
    first = inputs[0] / "a.wav" if order[0] == 2 else inputs[0]
    assert found.recordings["file"].to_pylist() == [str(first)]
    status = first.stat()
    assert found.recordings["file_id"].to_pylist() == [file_id(str(first), 1, str(status.st_mtime_ns))]
    assert found.left_out == {"linked a second time": 2}
    rows = [str(name) for name in inputs if name.suffix == ".wav"]
    assert listed(manifest(tmp_path / "names.csv", *rows, *rows)) == [rows[0]]


def test_links_to_recordings_that_are_not_listed_are_recordings(tmp_path: Path) -> None:
    make(tmp_path, "archive/a.wav", "archive/b.wav")
    (tmp_path / "selected").mkdir()
    for name in ("a.wav", "b.wav"):
        (tmp_path / "selected" / name).symlink_to(tmp_path / "archive" / name)
    found = listing(tmp_path / "selected")
    assert below(tmp_path, tmp_path / "selected") == ["selected/a.wav", "selected/b.wav"]
    assert not found.left_out
    assert below(tmp_path, tmp_path / "selected", tmp_path) == ["selected/a.wav", "selected/b.wav"]


def test_hard_links_are_recordings_of_their_own_and_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "d.wav")
    for name in ("b.wav", "c.wav"):
        os.link(tmp_path / "a.wav", tmp_path / name)
    found = listing(tmp_path, tmp_path / "b.wav")
    assert len(found.recordings) == 4
    assert found.n_hard_links == 2
    assert not found.left_out


def test_two_spellings_are_one_file_where_the_file_system_takes_them_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: here both forms exist, and the file system calls them the same file."""
    make(tmp_path, DECOMPOSED, COMPOSED)
    status = (tmp_path / DECOMPOSED).stat()
    os.utime(tmp_path / COMPOSED, ns=(status.st_atime_ns, status.st_mtime_ns))
    names = manifest(tmp_path / "names.csv", COMPOSED)
    assert len(listed(tmp_path, names)) == 2
    monkeypatch.setattr(os.path, "samefile", lambda one, other: one != other)
    assert listed(tmp_path / DECOMPOSED, names) == [f"{tmp_path}/{DECOMPOSED}"]
    assert listed(names, tmp_path / DECOMPOSED) == [f"{tmp_path}/{COMPOSED}"]


def test_keys_of_s3_are_taken_literally(bucket: str, s3_api: Any) -> None:
    """In S3 ``k/a.wav`` and ``/k/a.wav`` are two objects."""
    keys = ["/k/a.wav", "k/a.wav", "k//b.wav"]
    for key in [*keys, "k/../a.wav"]:  # of which the last one is hidden, as every name that begins with a dot
        s3_api.put_object(Bucket=bucket, Key=key, Body=key.encode())
    found = [file.removeprefix(f"s3://{bucket}/") for file in listed(f"s3://{bucket}", f"s3://{bucket}/k//")]
    assert sorted(found) == sorted(keys)
    for key in [*keys, "k/../a.wav"]:
        assert storage.read_bytes(f"s3://{bucket}/{key}") == key.encode()


def test_an_archive_may_be_nested_deeper_than_the_stack_of_python(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1200):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(os.open("a.wav", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)
    try:
        assert listed(tmp_path) == [f"{tmp_path}{'/d' * 1200}/a.wav"]
    finally:  # too deep for pytest's own removal
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
