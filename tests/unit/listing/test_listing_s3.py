"""Inputs in S3 to recordings."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from embedding.listing.listing import file_id
from tests.support.listings import ODD_NAMES, PATTERNS, TREE, below, listed, listing, manifest, refusal


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
