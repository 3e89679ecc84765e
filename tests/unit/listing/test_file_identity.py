"""Identity of recordings: a file is listed once, whatever names the inputs have for it."""

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
from tests.support.listings import list_inputs, listed_below, listed_files, make_files, write_manifest

DECOMPOSED = unicodedata.normalize("NFD", "Grünspecht.wav")
COMPOSED = unicodedata.normalize("NFC", DECOMPOSED)


def test_extra_slashes_and_dots_name_the_same_file(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav", "b/c.wav")
    names = write_manifest(tmp_path / "names.csv", f"/{tmp_path}/a.wav", f"///{tmp_path}/b/../a.wav", "./b/./c.wav")
    expected = [f"{tmp_path}/a.wav", f"{tmp_path}/b/c.wav"]
    assert listed_files(tmp_path, f"/{tmp_path}", f"//{tmp_path}/b/..", names) == expected
    assert listed_files(f"/{tmp_path}/*.wav", names) == expected
    assert storage.normalise("//data/out", "--output") == "/data/out"


@given(st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_an_ordinary_path_does_not_change(parts: list[str]) -> None:
    parts = [part for part in parts if part not in (".", "..")]
    path = "/" + "/".join(parts)
    if "://" not in path:
        assert storage.normalise(path, "--input") == path


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_a_file_with_symbolic_links_is_listed_once_under_its_first_name(tmp_path: Path, order: Any) -> None:
    make_files(tmp_path, "real/a.wav")
    (tmp_path / "link.wav").symlink_to("real/a.wav")
    (tmp_path / "folder").symlink_to("real")
    names = [tmp_path / "real" / "a.wav", tmp_path / "link.wav", tmp_path / "folder"]
    inputs = [names[i] for i in order]
    found = list_inputs(*inputs, *inputs)
    first = inputs[0] / "a.wav" if order[0] == 2 else inputs[0]
    assert found.recordings["file"].to_pylist() == [str(first)]
    status = first.stat()
    assert found.recordings["file_id"].to_pylist() == [file_id(str(first), 1, str(status.st_mtime_ns))]
    assert found.ignored == {"linked a second time": 2}
    rows = [str(name) for name in inputs if name.suffix == ".wav"]
    assert listed_files(write_manifest(tmp_path / "names.csv", *rows, *rows)) == [rows[0]]


def test_links_to_recordings_outside_of_the_inputs_are_recordings(tmp_path: Path) -> None:
    make_files(tmp_path, "archive/a.wav", "archive/b.wav")
    (tmp_path / "selected").mkdir()
    for name in ("a.wav", "b.wav"):
        (tmp_path / "selected" / name).symlink_to(tmp_path / "archive" / name)
    found = list_inputs(tmp_path / "selected")
    assert listed_below(tmp_path, tmp_path / "selected") == ["selected/a.wav", "selected/b.wav"]
    assert not found.ignored
    assert listed_below(tmp_path, tmp_path / "selected", tmp_path) == ["selected/a.wav", "selected/b.wav"]


def test_hard_links_are_separate_recordings_and_are_counted(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav", "d.wav")
    for name in ("b.wav", "c.wav"):
        os.link(tmp_path / "a.wav", tmp_path / name)
    found = list_inputs(tmp_path, tmp_path / "b.wav")
    assert len(found.recordings) == 4
    assert found.n_hard_links == 2
    assert not found.ignored


def test_two_unicode_forms_are_one_file_if_the_file_system_treats_them_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system is simulated: both forms exist, and ``samefile`` returns True for them."""
    make_files(tmp_path, DECOMPOSED, COMPOSED)
    status = (tmp_path / DECOMPOSED).stat()
    os.utime(tmp_path / COMPOSED, ns=(status.st_atime_ns, status.st_mtime_ns))
    names = write_manifest(tmp_path / "names.csv", COMPOSED)
    assert len(listed_files(tmp_path, names)) == 2
    monkeypatch.setattr(os.path, "samefile", lambda one, other: one != other)
    assert listed_files(tmp_path / DECOMPOSED, names) == [f"{tmp_path}/{DECOMPOSED}"]
    assert listed_files(names, tmp_path / DECOMPOSED) == [f"{tmp_path}/{COMPOSED}"]


def test_s3_keys_are_literal(bucket: str, s3_api: Any) -> None:
    """In S3 ``k/a.wav`` and ``/k/a.wav`` are two objects."""
    keys = ["/k/a.wav", "k/a.wav", "k//b.wav"]
    for key in [*keys, "k/../a.wav"]:  # the last key is hidden, like every name that begins with a dot
        s3_api.put_object(Bucket=bucket, Key=key, Body=key.encode())
    found = [file.removeprefix(f"s3://{bucket}/") for file in listed_files(f"s3://{bucket}", f"s3://{bucket}/k//")]
    assert sorted(found) == sorted(keys)
    for key in [*keys, "k/../a.wav"]:
        assert storage.read_bytes(f"s3://{bucket}/{key}") == key.encode()


def test_folders_may_be_nested_deeper_than_pythons_stack(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1200):
            os.mkdir("d", dir_fd=folder)
            inner = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = inner
        os.close(os.open("a.wav", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    finally:
        os.close(folder)
    try:
        assert listed_files(tmp_path) == [f"{tmp_path}{'/d' * 1200}/a.wav"]
    finally:  # the tree is too deep for pytest to remove
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
