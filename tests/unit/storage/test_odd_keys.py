"""Keys of S3 that no disk would hold: each object is listed, asked for and decoded under its literal key."""

from pathlib import Path
from typing import Any

from embedding import storage
from tests.support.audio import tone, write_audio
from tests.support.decoding import RATE_HZ, SECOND, EventRecord, decode
from tests.support.listings import list_inputs, listed_below, write_manifest

HIDDEN = ["../a.wav", "b/../../c.wav", "./d.wav"]  # as on a disk all names that begin with a dot
KEYS = [
    "/e.wav",
    "f//g.wav",
    "f///h.wav",
    "tab\tbell\x07.wav",
    "quote'\"<script>.wav",
    "\u202ertl.wav",
    "%2e%2e%2Fi.wav",
    " space .wav",
    "k" * 1020 + ".wav",
]


def test_keys_are_taken_literally(s3_api: Any, bucket: str, tmp_path: Path) -> None:
    content = write_audio(tmp_path / "a.wav", tone(2, RATE_HZ), RATE_HZ).read_bytes()
    uris = [f"s3://{bucket}/{key}" for key in KEYS + HIDDEN]
    for uri in uris:
        storage.write_bytes(uri, content)
    s3_api.put_object(Bucket=bucket, Key="folder.wav/", Body=b"")
    found = list_inputs(f"s3://{bucket}//").recordings
    assert sorted(found["file"].to_pylist()) == sorted(uris[: len(KEYS)])
    assert listed_below(f"s3://{bucket}", f"s3://{bucket}/f//") == ["f///h.wav", "f//g.wav"]
    named = list_inputs(write_manifest(tmp_path / "m.parquet", *uris)).recordings
    assert named["file"].to_pylist() == uris
    assert set(found["file_id"].to_pylist()) < set(named["file_id"].to_pylist())
    record = EventRecord()
    assert sum(map(len, decode(named, [SECOND], 8, record))) == 2 * len(uris)
    assert not record.failures


def test_a_key_longer_than_s3_takes_is_a_recording_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    found = list_inputs(write_manifest(tmp_path / "m.csv", f"s3://{bucket}/{'k' * 1100}.wav")).recordings
    record = EventRecord()
    assert not list(decode(found, [SECOND], 8, record))
    assert [kind for kind, _ in record.failures.values()] == ["io"]
