"""Reading, writing and listing on a disk and in S3: complete or absent, with literal names."""

import io
import os
import random
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from embedding import storage
from embedding.errors import RequestError
from tests.support.listings import ODD_NAMES


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist, on a disk and in S3."""
    if request.param == "disk":
        return f"{tmp_path}/some folder"
    return f"s3://{request.getfixturevalue('bucket')}/some folder"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- names ------------------------------------------------------------------------------------------------------


def test_names_are_normalised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for uri, expected in {
        "a": f"{tmp_path}/a",
        "./a/../b//c/": f"{tmp_path}/b/c",
        "/a b#%?": "/a b#%?",
        "~/a": "/home/me/a",
        "~a": f"{tmp_path}/~a",
        "s3://bucket": "s3://bucket",
        "s3://bucket//": "s3://bucket",
        "s3://bucket/a/../b//c/": "s3://bucket/a/../b//c",  # keys are literal
    }.items():
        assert storage.normalise(uri, "--output") == expected
        assert storage.normalise(expected, "--output") == expected


@pytest.mark.parametrize("uri", ["s3://", "s3:///a", "gs://bucket/a", "file:///a", "a\0b", "a\udcff"])
def test_invalid_names_are_refused(uri: str) -> None:
    with pytest.raises(RequestError, match=r"\A--output: .*\Z"):
        storage.normalise(uri, "--output")


def test_names_are_joined_by_one_slash() -> None:
    assert storage.join("/", "a", "b") == "/a/b"
    assert storage.join("s3://bucket", "a") == storage.join("s3://bucket/", "a") == "s3://bucket/a"


# --- writing ----------------------------------------------------------------------------------------------------


def test_a_written_object_can_be_read_and_replaced(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    for content in (b"first", b"", b"\0\xff" * 100_000, b"last"):
        storage.write_bytes(uri, content)
        assert storage.read_bytes(uri) == content
    assert list(storage.list_names(f"{root}/a", ".bin")) == [uri]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_literal(name: str, tmp_path: Path, s3_api: Any, bucket: str) -> None:
    storage.write_bytes(f"{tmp_path}/x/{name}", b"disk")
    assert names_in(tmp_path / "x") == [name]
    storage.write_bytes(f"s3://{bucket}/x/{name}", b"S3")
    assert [item["Key"] for item in s3_api.list_objects_v2(Bucket=bucket)["Contents"]] == [f"x/{name}"]
    for folder, content in ((str(tmp_path), b"disk"), (f"s3://{bucket}", b"S3")):
        uri = f"{folder}/x/{name}"
        assert storage.read_bytes(uri) == content
        assert list(storage.list_names(f"{folder}/x", "")) == [uri]
        with storage.open_stream(uri) as stream:
            assert stream.read() == content


def test_the_old_file_stays_until_the_new_file_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{tmp_path}/a.bin"
    storage.write_bytes(uri, b"old")
    observed: list[object] = []
    fsync = os.fsync

    def observe(descriptor: int) -> None:
        """Observe the folder like another process, after everything is written and before anything is renamed."""
        fsync(descriptor)
        observed.extend([storage.read_bytes(uri), list(storage.list_names(str(tmp_path), "")), len(names_in(tmp_path))])

    monkeypatch.setattr(os, "fsync", observe)
    storage.write_bytes(uri, b"new")
    assert observed == [b"old", [uri], 2]
    assert storage.read_bytes(uri) == b"new"
    assert names_in(tmp_path) == ["a.bin"]


@contextmanager
def limited_file_size(n_bytes: int) -> Iterator[None]:
    """Make the kernel refuse to write longer files, like on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    uri = f"{tmp_path}/a.bin"
    with limited_file_size(1 << 16), pytest.raises(OSError, match="File too large"):
        storage.write_bytes(uri, bytes(1 << 20))
    assert names_in(tmp_path) == []
    storage.write_bytes(uri, b"old")
    with limited_file_size(1 << 16), pytest.raises(OSError, match="File too large"):
        storage.write_bytes(uri, bytes(1 << 20))
    assert names_in(tmp_path) == ["a.bin"]
    assert storage.read_bytes(uri) == b"old"


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes(f"{tmp_path}/a.bin", b"new")
    assert names_in(tmp_path) == []


def test_a_write_to_the_name_of_a_folder_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(IsADirectoryError):
        storage.write_bytes(f"{tmp_path}/a.bin", b"new")
    assert names_in(tmp_path) == ["a.bin"]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        storage.write_bytes(f"{tmp_path}/file/a.bin", b"new")


def test_writing_to_a_bucket_that_does_not_exist_fails(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match="The specified bucket does not exist"):
        storage.write_bytes(f"s3://{bucket}-gone/a.bin", b"new")


def n_requests(log: Path, bucket: str, method: str) -> int:
    """Return the number of requests with this HTTP method for objects of ``bucket``."""
    return log.read_text().count(f"{method} /{bucket}/")


@pytest.mark.long
def test_a_large_object_is_one_put(s3_api: Any, bucket: str, s3_log: Path) -> None:
    content = random.Random(0).randbytes(1 << 20) * 250
    storage.write_bytes(f"s3://{bucket}/a b#%.bin", content)
    assert n_requests(s3_log, bucket, "PUT") == 1
    assert n_requests(s3_log, bucket, "POST") == 0  # the first request of an upload in parts
    assert storage.read_bytes(f"s3://{bucket}/a b#%.bin") == content


def test_an_existing_object_is_not_created_again(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    assert storage.create_bytes(uri, b"first")
    assert not storage.create_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    storage.delete(uri)
    assert storage.create_bytes(uri, b"third")


def test_only_one_of_many_creators_succeeds(root: str) -> None:
    uri = storage.join(root, "a.bin")
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda i: storage.create_bytes(uri, b"%d" % i), range(8)))
    assert created.count(True) == 1
    assert storage.read_bytes(uri) == b"%d" % created.index(True)


def test_a_creation_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with limited_file_size(1 << 16), pytest.raises(OSError, match="File too large"):
        storage.create_bytes(f"{tmp_path}/a.bin", bytes(1 << 20))
    assert names_in(tmp_path) == []


# --- reading ----------------------------------------------------------------------------------------------------


def test_a_missing_object_is_a_file_not_found_error(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{root}/gone.bin")
    with pytest.raises(FileNotFoundError) as error:
        storage.open_stream(f"{root}/gone.bin")
    assert error.value.strerror == "No such file or directory"
    assert error.value.filename == f"{root}/gone.bin"


def test_many_objects_are_read_with_one_request_each_and_in_order(s3_api: Any, bucket: str, s3_log: Path) -> None:
    names = [f"{i}/{name}" for i, name in enumerate(ODD_NAMES * 3)]
    for name in names:
        s3_api.put_object(Bucket=bucket, Key=name, Body=name.encode())
    uris = [f"s3://{bucket}/{name}" for name in names]
    assert storage.read_many(uris, [len(name.encode()) for name in names]) == [name.encode() for name in names]
    assert n_requests(s3_log, bucket, "GET") == len(names)
    assert n_requests(s3_log, bucket, "HEAD") == 0


def test_of_many_objects_each_failure_is_an_error_at_its_position(s3_api: Any, bucket: str) -> None:
    s3_api.put_object(Bucket=bucket, Key="a", Body=b"a")
    s3_api.put_object(Bucket=bucket, Key="empty", Body=b"")
    keys = ["a", "gone", "empty", "a", ""]
    uris = [f"s3://{bucket}/{key}" for key in keys]
    a, gone, empty, again, no_key, no_bucket = storage.read_many([*uris, f"s3://{bucket}-gone/a"], [-1] * 6)
    assert (a, empty, again) == (b"a", b"", b"a")
    assert isinstance(gone, FileNotFoundError)
    assert str(gone) == "The specified key does not exist."
    assert isinstance(no_key, OSError)
    assert isinstance(no_bucket, FileNotFoundError)
    assert storage.read_many([], []) == []


def test_a_long_object_is_read_in_ranges(s3_api: Any, bucket: str, s3_log: Path) -> None:
    content = random.Random(0).randbytes(6 << 20)
    s3_api.put_object(Bucket=bucket, Key="a b#?%.bin", Body=content)
    range_bytes = 1 << 20
    with storage.open_stream(f"s3://{bucket}/a b#?%.bin", range_bytes) as stream:
        assert stream.seekable()
        assert stream.read(10) == content[:10]
        assert n_requests(s3_log, bucket, "GET") == 1
        for start, n in [(5 << 20, 100), (0, 1), (3_000_001, 2_000_000), (len(content) - 5, 100), (len(content), 1)]:
            assert stream.seek(start) == start
            assert stream.read(n) == content[start : start + n]
            assert stream.tell() == min(start + n, len(content))
        assert stream.seek(-7, io.SEEK_END) == len(content) - 7
        assert stream.read() == content[-7:]
    with storage.open_stream(f"s3://{bucket}/a b#?%.bin", range_bytes) as stream:
        before = n_requests(s3_log, bucket, "GET")
        blocks = iter(lambda: stream.read(100_000), b"")
        assert b"".join(blocks) == content
        assert 3 <= n_requests(s3_log, bucket, "GET") - before <= 7


def test_an_object_that_changes_while_it_is_read_is_an_error(s3_api: Any, bucket: str) -> None:
    s3_api.put_object(Bucket=bucket, Key="a.bin", Body=b"x" * (4 << 20))
    with storage.open_stream(f"s3://{bucket}/a.bin", 1 << 20) as stream:
        stream.read(1)
        s3_api.put_object(Bucket=bucket, Key="a.bin", Body=b"y" * (4 << 20))
        with pytest.raises(OSError, match="no longer exists"):
            stream.read(3 << 20)


# --- listing ----------------------------------------------------------------------------------------------------


def test_names_of_finished_files_are_listed_in_order(root: str) -> None:
    names = ["b.parquet", "a.parquet", "ä b#%?.parquet", "Z.parquet", "10.parquet", "9.parquet"]
    for name in [*names, "c.json", "c.parquet.gz", ".tmp-1-d.parquet", "deeper/e.parquet"]:
        storage.write_bytes(f"{root}/x/{name}", b"")
    storage.write_bytes(f"{root}/xy/f.parquet", b"")
    assert list(storage.list_names(f"{root}/x", ".parquet")) == [f"{root}/x/{name}" for name in sorted(names)]


def test_a_folder_that_does_not_exist_has_no_names(root: str) -> None:
    assert list(storage.list_names(root, "")) == []


def test_a_bucket_that_does_not_exist_cannot_be_listed(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match="The specified bucket does not exist"):
        list(storage.list_names(f"s3://{bucket}-gone/a", ""))


def test_the_first_folder_with_a_prefix_is_found(bucket: str, s3_api: Any, tmp_path: Path) -> None:
    for name in ("model.txt", "model=b/x/1", "model=a/2", "other/3"):
        s3_api.put_object(Bucket=bucket, Key=f"out/{name}", Body=b"")
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "model=0").write_bytes(b"")  # a file
    for root in (str(tmp_path), f"s3://{bucket}/out"):
        assert storage.first_folder(root, "model=") == "model=a"
        assert storage.first_folder(root, "nothing=") is None
    assert storage.first_folder(f"{tmp_path}/nowhere", "model=") is None


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../a", "a\0b"])
def test_a_name_that_leads_to_another_folder_is_refused(name: str) -> None:
    with pytest.raises(OSError, match="not the name of a file"):
        storage.child("/data/out", name)
    assert storage.child("/data/out", "..a") == "/data/out/..a"
