"""Listing of inputs in S3."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from embedding.listing.file_identity import file_id
from tests.support.listings import (
    ODD_NAMES,
    PATTERNS,
    TREE,
    list_inputs,
    listed_below,
    listed_files,
    put_objects,
    refusal,
    write_manifest,
)


def test_s3_recordings_have_size_and_etag(s3_api: Any, bucket: str) -> None:
    etag = s3_api.put_object(Bucket=bucket, Key="a.wav", Body=b"12345")["ETag"]
    uri = f"s3://{bucket}/a.wav"
    row = {"file": uri, "size": 5, "file_id": file_id(uri, 5, etag)}
    for source in (f"s3://{bucket}", f"s3://{bucket}/", uri, f"s3://{bucket}/*"):
        assert list_inputs(source).recordings.to_pylist() == [row]


def test_s3_listings_have_all_pages(s3_api: Any, bucket: str) -> None:
    keys = [f"a/{i:04}.wav" for i in range(1003)]
    root = put_objects(s3_api, bucket, *keys)
    assert listed_below(root, f"{root}/a") == keys
    assert listed_below(root, f"{root}/a/10*.wav") == keys[1000:]
    assert listed_files(f"{root}/a", limit=2) == [f"{root}/{key}" for key in keys[:2]]


def test_odd_s3_keys_are_literal(s3_api: Any, bucket: str) -> None:
    keys = [*(f"x/{name}" for name in ODD_NAMES), "x//slashes.wav", "x/y?/z.wav", "x/[y]/z.wav"]
    root = put_objects(s3_api, bucket, *keys)
    assert sorted(listed_below(root)) == sorted(keys)
    assert sorted(listed_below(root, f"{root}/x/**")) == sorted(keys)
    for key in keys:
        assert listed_below(root, f"{root}/{key}") == [key]
    assert listed_below(root, f"{root}/x/y?") == ["x/y?/z.wav"]
    assert listed_below(root, f"{root}/x/[y]/") == ["x/[y]/z.wav"]


def test_s3_directory_markers_hidden_objects_and_other_suffixes_are_ignored(s3_api: Any, bucket: str) -> None:
    root = put_objects(
        s3_api, bucket, "a/", "a/b.WAV", "a/._b.wav", "a/.c/d.wav", "a/e.txt", "a/f.wav/", "a/README", ".g/h.wav"
    )
    found = list_inputs(root)
    assert found.recordings["file"].to_pylist() == [f"{root}/a/b.WAV"]
    assert found.ignored == {".txt": 1, "without suffix": 1}
    assert listed_files(f"{root}/.g") == [f"{root}/.g/h.wav"]  # the folder is named explicitly


def test_s3_folders_with_a_common_prefix_are_not_confused(s3_api: Any, bucket: str) -> None:
    root = put_objects(s3_api, bucket, "site-1/a.wav", "site-1-old/b.wav", "site-1.wav", "site-10/c.wav", "site-1")
    assert listed_below(root, f"{root}/site-1") == ["site-1", "site-1/a.wav"]
    assert listed_below(root, f"{root}/site-1/") == ["site-1", "site-1/a.wav"]
    assert listed_below(root, f"{root}/site-10") == ["site-10/c.wav"]
    assert listed_below(root, f"{root}/site-1.wav") == ["site-1.wav"]


def test_an_s3_object_that_is_named_explicitly_is_listed_whatever_its_suffix(s3_api: Any, bucket: str) -> None:
    root = put_objects(s3_api, bucket, "a/b.txt", "a/.c")
    assert listed_below(root, f"{root}/a/b.txt", f"{root}/a/.c") == ["a/b.txt", "a/.c"]


def test_a_glob_has_the_same_meaning_in_s3(s3_api: Any, bucket: str) -> None:
    root = put_objects(s3_api, bucket, *TREE)
    # On a disk each existing part of a pattern is literal. In S3 only a pattern that exists as a whole is literal.
    literal = "site[1]/*"
    for pattern in PATTERNS.keys() - {literal}:
        assert sorted(listed_below(root, f"{root}/{pattern}")) == sorted(PATTERNS[pattern]), pattern


def test_overlapping_s3_inputs_list_each_recording_once(s3_api: Any, bucket: str, tmp_path: Path) -> None:
    root = put_objects(s3_api, bucket, "a/1.wav", "a/2.wav", "b/3.wav")
    path = write_manifest(tmp_path / "m.csv", f"{root}/a/2.wav")
    assert listed_below(root, path, f"{root}/b/3.wav", f"{root}/a", root, f"{root}/*/*.wav") == [
        "a/2.wav",
        "b/3.wav",
        "a/1.wav",
    ]


def test_s3_identity_changes_with_the_content(s3_api: Any, bucket: str) -> None:
    def identity(content: bytes) -> int:
        s3_api.put_object(Bucket=bucket, Key="a.wav", Body=content)
        return list_inputs(f"s3://{bucket}").recordings["file_id"][0].as_py()

    assert identity(b"x") == identity(b"x")
    assert identity(b"x") != identity(b"y")


def test_an_s3_input_that_does_not_exist_is_refused(s3_api: Any, bucket: str) -> None:
    root = put_objects(s3_api, bucket, "audio/a.wav")
    for name in ("aud", "audio/a", "audio/a.wav/b", "gone/"):
        assert refusal(f"{root}/{name}") == f"--input: nothing is stored under {root}/{name.rstrip('/')}"
    assert refusal(f"{root}/audio/*.mp3") == f"--input: nothing matches {root}/audio/*.mp3"
    assert refusal(f"{root}/m.csv") == f"--input: cannot read manifest {root}/m.csv: No such file or directory"
    gone = f"s3://{bucket}-gone"
    assert refusal(f"{gone}/a") == f"--input: cannot list {gone}/a: The specified bucket does not exist"
    assert "The specified bucket does not exist" in refusal(gone)
    assert "The specified bucket does not exist" in refusal(f"{gone}/*.wav")
    assert "Invalid bucket name" in refusal("s3://no bucket/a")
    assert "has no bucket name" in refusal("s3://")
    assert "has no bucket name" in refusal("s3:///a.wav")
    assert "wildcard in the bucket name" in refusal("s3://archive-*/a.wav")


def test_s3_inputs_without_recordings_are_refused(s3_api: Any, bucket: str) -> None:
    root = put_objects(s3_api, bucket, "a/", "a/b.txt")
    assert refusal(f"{root}/a") == f"--input: no recording found in {root}/a; ignored: 1 .txt"


def s3_inputs(tmp_path: Path) -> list[str]:
    """Return one input of each kind that needs S3."""
    path = write_manifest(tmp_path / "m.csv", "s3://some-bucket/a.wav")
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


def test_an_unreachable_s3_is_refused_within_seconds(other_s3: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # bound but not listening
        bound.bind(("127.0.0.1", 0))
        other_s3.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*bound.getsockname()))
        began = time.monotonic()
        assert "Could not connect to the endpoint URL" in refusal("s3://some-bucket/a")
        assert time.monotonic() - began < 30
