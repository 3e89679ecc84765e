"""Decoding of objects in S3: how they are fetched, and failures of the storage. No Ray."""

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf

from embedding import storage
from embedding.decoding import fetch
from tests.support.audio import tone, write_audio
from tests.support.decoding import (
    RATE_HZ,
    SECOND,
    EventRecord,
    decode,
    hash_of,
    recordings_of,
    samples_of,
    with_known_hashes,
)


class FakeBucket:
    """Stands for S3; records the requests.

    Attributes:
        objects: Content of each object, or the error of its request.
        fetched: The groups of objects that were fetched whole.
        sizes: Expected sizes of these objects.
        opened: The objects that were opened as streams.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, objects: dict[str, bytes | OSError]) -> None:
        self.objects = objects
        self.fetched: list[list[str]] = []
        self.sizes: list[int] = []
        self.opened: list[str] = []
        self._open_file = storage.open_stream
        monkeypatch.setattr(storage, "read_many", self.read_many)
        monkeypatch.setattr(storage, "open_stream", self.open_stream)

    def read_many(self, uris: list[str], sizes: list[int]) -> list[bytes | OSError]:
        self.fetched.append(uris)
        self.sizes += sizes
        return [self.objects[uri] for uri in uris]

    def open_stream(self, uri: str, range_bytes: int = 0) -> BinaryIO:
        self.opened.append(uri)
        if uri not in self.objects:
            return self._open_file(uri)
        content = self.objects[uri]
        if isinstance(content, OSError):
            raise content
        return BytesIO(content)

    def recordings(self) -> pa.Table:
        sizes = [len(content) if isinstance(content, bytes) else 1_000 for content in self.objects.values()]
        return recordings_of(self.objects, sizes)


@pytest.fixture
def wavs(tmp_path: Path) -> dict[str, bytes | OSError]:
    return {
        f"s3://bucket/{i}.wav": write_audio(tmp_path / f"{i}.wav", tone(2, RATE_HZ, seed=i), RATE_HZ).read_bytes()
        for i in range(5)
    }


def test_small_objects_are_fetched_in_groups(monkeypatch: pytest.MonkeyPatch, wavs: dict[str, bytes | OSError]) -> None:
    monkeypatch.setattr(fetch, "FETCH_OBJECTS", 2)
    bucket = FakeBucket(monkeypatch, wavs)
    (table,) = decode(bucket.recordings(), [SECOND], 100, EventRecord())
    names = list(wavs)
    assert bucket.fetched == [names[:2], names[2:4], names[4:]]
    assert bucket.sizes == bucket.recordings()["size"].to_pylist()
    assert bucket.opened == []
    assert table["file"].to_pylist() == [name for name in names for _ in range(2)]


def test_a_group_of_objects_fits_into_its_limit_of_memory(
    monkeypatch: pytest.MonkeyPatch, wavs: dict[str, bytes | OSError]
) -> None:
    monkeypatch.setattr(fetch, "FETCH_BYTES", 2 * 64_044)
    bucket = FakeBucket(monkeypatch, wavs)
    list(decode(bucket.recordings(), [SECOND], 100, EventRecord()))
    assert list(map(len, bucket.fetched)) == [2, 2, 1]


def test_large_objects_are_read_as_streams(monkeypatch: pytest.MonkeyPatch, wavs: dict[str, bytes | OSError]) -> None:
    monkeypatch.setattr(fetch, "WHOLE_OBJECT_BYTES", 1_000)
    bucket = FakeBucket(monkeypatch, wavs)
    (table,) = decode(bucket.recordings(), [SECOND], 100, EventRecord())
    # Once for the audio, once for the chunks beside it.
    assert (bucket.fetched, bucket.opened) == ([], [uri for uri in wavs for _ in range(2)])
    assert len(table) == 10


@pytest.mark.parametrize("whole_bytes", [32 << 20, 0], ids=["fetched", "streamed"])
def test_an_object_that_cannot_be_read_does_not_change_the_windows_of_others(
    monkeypatch: pytest.MonkeyPatch, wavs: dict[str, bytes | OSError], whole_bytes: int
) -> None:
    monkeypatch.setattr(fetch, "WHOLE_OBJECT_BYTES", whole_bytes)
    wavs["s3://bucket/2.wav"] = OSError("SlowDown: Please reduce your request rate")
    record = EventRecord()
    (table,) = decode(FakeBucket(monkeypatch, wavs).recordings(), [SECOND], 100, record)
    assert record.failures == {"2.wav": ("io", "cannot be read: SlowDown: Please reduce your request rate")}
    assert set(table["file"].to_pylist()) == wavs.keys() - {"s3://bucket/2.wav"}


def test_a_storage_that_cannot_be_reached_fails_its_objects_and_not_the_task(
    monkeypatch: pytest.MonkeyPatch, wavs: dict[str, bytes | OSError], tmp_path: Path
) -> None:
    bucket = FakeBucket(monkeypatch, wavs)

    def unreachable(uris: list[str], sizes: list[int]) -> list[bytes | OSError]:
        raise OSError(f"no route to the host of {len(uris)} objects")

    monkeypatch.setattr(storage, "read_many", unreachable)
    local = write_audio(tmp_path / "local.wav", tone(2, RATE_HZ), RATE_HZ)
    recordings = pa.concat_tables([bucket.recordings(), recordings_of([local])])
    record = EventRecord()
    (table,) = decode(recordings, [SECOND], 100, record)
    assert set(table["file"].to_pylist()) == {str(local)}
    assert {kind for kind, _ in record.failures.values()} == {"io"}
    assert len(record.failures) == len(wavs)


class LosesItsConnection(BytesIO):
    """A stream that fails after 100,000 bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 100_000:
            raise ConnectionResetError(104, "Connection reset by peer")
        return super().read(size)


@pytest.mark.usefixtures("either_way")
def test_a_connection_that_is_lost_while_reading_is_a_failure_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_audio(tmp_path / "a.wav", tone(10, RATE_HZ), RATE_HZ).read_bytes()
    monkeypatch.setattr(storage, "open_stream", lambda uri, range_bytes=0: LosesItsConnection(content))
    record = EventRecord()
    tables = list(decode(recordings_of(["s3://bucket/a.wav"], [1 << 40]), [SECOND], 1, record))
    assert record.failures == {"a.wav": ("io", "cannot be read: Connection reset by peer")}
    assert record.audio_s == 0
    for table in tables:  # n_windows shows that windows are missing, so the next run embeds them
        assert table["n_windows"].to_pylist() == [10]
    assert len(tables) < 10


@pytest.mark.parametrize("whole_bytes", [32 << 20, 0], ids=["fetched", "streamed"])
def test_an_object_with_another_hash_is_cut_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch, wavs: dict[str, bytes | OSError], tmp_path: Path, whole_bytes: int
) -> None:
    monkeypatch.setattr(fetch, "WHOLE_OBJECT_BYTES", whole_bytes)
    bucket = FakeBucket(monkeypatch, wavs)
    hashes = [hash_of(tmp_path / f"{i}.wav") for i in (0, 0, 2, 3, 0)]
    record = EventRecord()
    (table,) = decode(with_known_hashes(bucket.recordings(), hashes), [SECOND], 100, record)
    names = list(wavs)
    assert table["file"].to_pylist() == [names[1]] * 2 + [names[4]] * 2
    assert record.events.count("without windows") == 3
    expected, _ = sf.read(tmp_path / "1.wav", dtype="float32")
    np.testing.assert_array_equal(samples_of(table)[:2].reshape(-1), expected)
