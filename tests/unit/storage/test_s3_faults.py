"""Faults of the storage: those that pass are waited out, those that stay are an OSError in bounded time."""

import errno
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest
from botocore.config import Config

from embedding import storage
from embedding.decoding import fetch
from embedding.errors import RequestError
from embedding.listing.listing import UNKNOWN_SIZE, list_recordings
from embedding.schema.failures import Failure
from embedding.schema.windows import WindowSpec
from embedding.storage import s3, s3_faults
from tests.support import faulty_s3
from tests.support.audio import tone, write_audio
from tests.support.decoding import EventRecord, decode
from tests.support.faulty_s3 import FaultyS3, Request, fail_always, fail_first, faulty_s3_proxy
from tests.support.s3_server import new_s3_client

CONTENT = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def faulty_store(s3_server: str) -> Iterator[FaultyS3]:
    with faulty_s3_proxy(s3_server) as proxy, new_s3_client() as environment:
        environment.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def proxy(faulty_store: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A store that fails on demand, and waits of milliseconds."""
    monkeypatch.setattr(s3_faults, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(s3_faults, "LONGEST_WAIT_S", 0.01)
    faulty_store.n_requests.clear()
    faulty_store.n_faults.clear()
    yield faulty_store
    faulty_store.choose = lambda _: None


@pytest.fixture
def short_timeouts(other_s3: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return the answer to a client of its own."""
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.2)


@pytest.fixture(scope="module")
def plain_api(s3_server: str) -> Any:
    """Uploads without a checksum, as many tools do: its length is then all that is known of an object."""
    return boto3.client("s3", endpoint_url=s3_server, config=Config(request_checksum_calculation="when_required"))


@pytest.fixture
def uri(plain_api: Any, bucket: str) -> str:
    """An object with CONTENT in it."""
    plain_api.put_object(Bucket=bucket, Key="x/a.bin", Body=CONTENT)
    return f"s3://{bucket}/x/a.bin"


def read_one(uri: str) -> bytes:
    [item] = storage.read_many([uri], [len(CONTENT)])
    if isinstance(item, OSError):
        raise item
    return item


def read_stream(uri: str) -> bytes:
    with storage.open_stream(uri, 100) as stream:
        return stream.read()


def written(write: Callable[[str, bytes], object]) -> Callable[[str], bytes]:
    def run(uri: str) -> bytes:
        assert write(uri + " new", CONTENT) in (None, True)
        return storage.read_bytes(uri + " new")

    return run


def deleted(uri: str) -> bytes:
    storage.delete(uri)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)
    return CONTENT


def sized(uri: str) -> bytes:
    return CONTENT[: s3.info(uri)["size"]]


def listed(uri: str) -> bytes:
    assert list(storage.list_names(uri.rpartition("/")[0], "")) == [uri]
    return CONTENT


# Each verb of the storage: the verb of HTTP that it stands on, and what it does to an object, returning CONTENT.
VERBS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "read_many": ("GET", read_one),
    "read_bytes": ("GET", storage.read_bytes),
    "open_stream": ("GET", read_stream),
    "list_names": ("GET", listed),
    "info": ("HEAD", sized),
    "write_bytes": ("PUT", written(storage.write_bytes)),
    "create_bytes": ("PUT", written(storage.create_bytes)),
    "delete": ("DELETE", deleted),
}
EVERY_FAULT = [(verb, kind) for verb, (http, _) in VERBS.items() for kind in faulty_s3.TRANSIENT[http]]
EVERY_FAILURE = [(verb, kind) for verb, kind in EVERY_FAULT if kind != faulty_s3.SLOW]


@pytest.mark.parametrize(("verb", "kind"), EVERY_FAULT)
def test_a_fault_that_passes_is_waited_out(verb: str, kind: str, uri: str, proxy: FaultyS3) -> None:
    http, act = VERBS[verb]
    proxy.slow_s = 0.05
    times = 1 if kind == faulty_s3.SLOW else 3
    proxy.choose = fail_first(times, kind, http)
    assert act(uri) == CONTENT
    assert proxy.n_faults == {kind: times}


@pytest.mark.parametrize(("verb", "kind"), EVERY_FAILURE)
def test_a_fault_that_stays_is_an_error_in_one_line(verb: str, kind: str, uri: str, proxy: FaultyS3) -> None:
    http, act = VERBS[verb]
    proxy.choose = fail_always(kind, http)
    with pytest.raises(OSError, match=r"\A[^\n]+\Z"):
        act(uri)
    # aiohttp asks a second time, at once, where a connection broke.
    broken = kind in (faulty_s3.RESET, faulty_s3.LOST, faulty_s3.CUT)
    assert proxy.n_requests[http] in ((s3_faults.TRIES, 2 * s3_faults.TRIES) if broken else (s3_faults.TRIES,))


@pytest.mark.parametrize("verb", ["read_many", "open_stream"])
def test_a_body_that_stays_short_is_told_in_bytes(verb: str, uri: str, proxy: FaultyS3) -> None:
    proxy.choose = fail_always(faulty_s3.SHORT, "GET")
    asked, came = (100, 50) if verb == "open_stream" else (1024, 512)
    with pytest.raises(OSError, match=rf"\Areceived {came} of {asked:,} bytes\Z"):
        VERBS[verb][1](uri)


def test_a_body_without_an_expected_size_is_taken_as_it_comes(uri: str, proxy: FaultyS3) -> None:
    proxy.choose = fail_always(faulty_s3.SHORT, "GET")
    assert storage.read_many([uri], [UNKNOWN_SIZE]) == [CONTENT[:512]]


def test_a_short_body_of_unknown_size_is_noticed_by_its_checksum(proxy: FaultyS3, s3_api: Any, bucket: str) -> None:
    s3_api.put_object(Bucket=bucket, Key="a", Body=CONTENT)
    proxy.choose = fail_first(2, faulty_s3.SHORT, "GET")
    assert storage.read_many([f"s3://{bucket}/a"], [UNKNOWN_SIZE]) == [CONTENT]


def test_an_empty_answer_does_not_end_a_listing(uri: str, proxy: FaultyS3) -> None:
    proxy.choose = fail_first(2, faulty_s3.EMPTY, "GET")
    assert listed(uri)
    proxy.choose = fail_always(faulty_s3.EMPTY, "GET")
    with pytest.raises(OSError, match="is incomplete"):
        listed(uri)


@pytest.mark.parametrize("kind", [faulty_s3.FORBIDDEN, faulty_s3.NOT_IMPLEMENTED])
def test_a_refusal_is_not_repeated(kind: str, uri: str, proxy: FaultyS3) -> None:
    proxy.choose = fail_always(kind, "GET")
    with pytest.raises(OSError, match=r"\A[^\n]+\Z"):
        read_one(uri)
    assert proxy.n_requests["GET"] == 1


def test_what_is_missing_is_asked_for_once(uri: str, proxy: FaultyS3) -> None:
    with pytest.raises(FileNotFoundError):
        read_one(uri + " gone")
    with pytest.raises(FileNotFoundError):
        read_one(uri.replace("/x/", "-gone/x/"))
    assert proxy.n_requests["GET"] == 2


# --- many at once ----------------------------------------------------------------------------------------------


def test_of_many_only_those_that_failed_are_asked_for_again_together(
    proxy: FaultyS3, s3_api: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        s3_api.put_object(Bucket=bucket, Key=f"{i}", Body=b"%d" % i)
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    failing = {"1", "2", "4"}

    def choose(request: Request) -> str | None:
        """The first request for each of these fails."""
        name = request.path.rpartition("/")[2]
        if name not in failing:
            return None
        failing.discard(name)
        return faulty_s3.SLOW_DOWN

    proxy.choose = choose
    uris = [f"s3://{bucket}/{i}" for i in range(6)] + [f"s3://{bucket}/gone"]
    *bodies, gone = storage.read_many(uris, [1] * 7)
    assert bodies == [b"%d" % i for i in range(6)]
    assert isinstance(gone, FileNotFoundError)
    assert proxy.n_requests["GET"] == 7 + 3
    assert len(waits) == 1


def test_of_many_the_others_are_had_where_one_stays_out_of_reach(proxy: FaultyS3, s3_api: Any, bucket: str) -> None:
    for i in range(3):
        s3_api.put_object(Bucket=bucket, Key=f"{i}", Body=b"%d" % i)
    proxy.choose = lambda request: faulty_s3.SLOW_DOWN if request.path.endswith("/1") else None
    a, error, c = storage.read_many([f"s3://{bucket}/{i}" for i in range(3)], [1] * 3)
    assert (a, c) == (b"0", b"2")
    assert isinstance(error, OSError)
    assert error.strerror == "Please reduce your request rate."
    assert proxy.n_requests["GET"] == 2 + s3_faults.TRIES


# --- streams -----------------------------------------------------------------------------------------------------


def test_each_range_of_a_stream_is_waited_for_by_itself(uri: str, proxy: FaultyS3) -> None:
    proxy.choose = faulty_s3.fail_every(2)
    assert read_stream(uri) == CONTENT
    assert set(proxy.n_faults) == set(faulty_s3.TRANSIENT["GET"])


def test_a_stream_that_failed_fails_at_once_from_then_on(uri: str, proxy: FaultyS3) -> None:
    stream = storage.open_stream(uri, 100)
    assert stream.read(50) == CONTENT[:50]
    proxy.choose = fail_always(faulty_s3.SLOW_DOWN)
    for _ in range(3):
        with pytest.raises(OSError, match="reduce your request rate"):
            stream.read(1000)
    assert proxy.n_requests["GET"] == 1 + s3_faults.TRIES


# --- patience ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_timeouts")
def test_a_server_that_never_answers_is_given_up(uri: str, proxy: FaultyS3) -> None:
    proxy.slow_s = 5
    proxy.choose = fail_always(faulty_s3.SLOW)
    began = time.monotonic()
    with pytest.raises(OSError, match="timeout"):
        read_one(uri)
    assert time.monotonic() - began < 4
    assert proxy.n_requests["GET"] == s3_faults.UNANSWERED_TRIES


@pytest.mark.parametrize("where", ["refused", "unknown"])
def test_an_address_where_nobody_is_has_less_patience(
    where: str, proxy: FaultyS3, other_s3: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        refusing = "http://{}:{}".format(*bound.getsockname())
        other_s3.setenv("AWS_ENDPOINT_URL", refusing if where == "refused" else "http://no-such-host.invalid")
        with pytest.raises(OSError, match="Could not connect to the endpoint URL"):
            read_one("s3://bucket/a")
    assert len(caplog.records) == s3_faults.UNANSWERED_TRIES - 2


def test_waiting_is_told_from_the_third_try_on(uri: str, proxy: FaultyS3, caplog: pytest.LogCaptureFixture) -> None:
    proxy.choose = fail_first(1, faulty_s3.SLOW_DOWN)
    assert read_one(uri) == CONTENT
    assert not caplog.records
    proxy.choose = fail_first(3, faulty_s3.SLOW_DOWN)
    assert read_one(uri) == CONTENT
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    pattern = re.escape(f"{uri}: Please reduce your request rate.; try ") + r"(\d) in \d\.\d s"
    tries = [re.fullmatch(pattern, record.getMessage()) for record in caplog.records]
    assert [match and match[1] for match in tries] == ["3", "4"]


def test_waits_are_drawn_from_windows_that_double(uri: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr(s3_faults, "FIRST_WAIT_S", 1)
    monkeypatch.setattr(s3_faults, "LONGEST_WAIT_S", 30)
    proxy.choose = fail_always(faulty_s3.SLOW_DOWN)
    with pytest.raises(OSError, match="reduce your request rate"):
        read_one(uri)
    assert waits == [1, 2, 4, 8, 16, 30, 30]


# --- exclusive creation ---------------------------------------------------------------------------------------------


def test_a_creation_whose_answer_was_lost_knows_its_own(uri: str, proxy: FaultyS3) -> None:
    proxy.choose = fail_always(faulty_s3.LOST, "PUT")
    with pytest.raises(OSError, match="connect"):
        storage.create_bytes(uri + " lost", b"mine")
    proxy.choose = fail_first(1, faulty_s3.LOST, "PUT")
    assert storage.create_bytes(uri + " new", b"mine")
    assert not storage.create_bytes(uri + " new", b"theirs")
    proxy.choose = fail_first(2, faulty_s3.CONFLICT, "PUT")  # of two at once
    assert storage.create_bytes(uri + " third", b"mine")


def test_a_store_that_cannot_create_exclusively_is_asked_first(uri: str, proxy: FaultyS3) -> None:
    proxy.choose = lambda request: faulty_s3.NOT_IMPLEMENTED if "If-None-Match" in request.headers else None
    assert storage.create_bytes(uri + " new", b"mine")
    assert not storage.create_bytes(uri + " new", b"theirs")
    assert storage.read_bytes(uri + " new") == b"mine"


# --- recordings ------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(proxy: FaultyS3, s3_api: Any, bucket: str, tmp_path: Path) -> pa.Table:
    """Recordings 0.wav, 1.wav and 2.wav, listed."""
    for i in range(3):
        path = write_audio(tmp_path / f"{i}.wav", tone(2, 8_000, seed=i), 8_000)
        s3_api.upload_file(str(path), bucket, path.name)
    return list_recordings([f"s3://{bucket}"]).recordings


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("whole_bytes", [32 << 20, 0], ids=["fetched", "streamed"])
@pytest.mark.parametrize("kind", faulty_s3.TRANSIENT["GET"])
def test_a_recording_that_stays_out_of_reach_is_a_row_of_failures(
    kind: str, whole_bytes: int, proxy: FaultyS3, archive: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "WHOLE_OBJECT_BYTES", whole_bytes)
    monkeypatch.setattr(s3_faults, "TRIES", 3)
    proxy.slow_s = 1
    proxy.choose = lambda request: kind if request.command == "GET" and request.path.endswith("/1.wav") else None
    record = EventRecord()
    (table,) = decode(archive, [WindowSpec(8_000, 8_000, 8_000, "pad")], 100, record)
    first_file, failed_file, last_file = archive["file"].to_pylist()
    assert [(e.file, e.kind) for e in record.events if isinstance(e, Failure)] == [(failed_file, "io")]
    assert table["file"].to_pylist() == [first_file, first_file, last_file, last_file]


def test_an_object_we_may_not_ask_for_is_a_recording_of_unknown_size(tmp_path: Path, proxy: FaultyS3) -> None:
    (tmp_path / "m.csv").write_text("file\ns3://bucket/a.wav\n")
    proxy.choose = fail_always(faulty_s3.FORBIDDEN)
    assert list_recordings([f"{tmp_path}/m.csv"]).recordings["size"].to_pylist() == [UNKNOWN_SIZE]
    proxy.choose = fail_always(faulty_s3.INTERNAL_ERROR)
    with pytest.raises(RequestError, match=r"\A--input: cannot read size and version of s3://bucket/a\.wav: .*\Z"):
        list_recordings([f"{tmp_path}/m.csv"])


def test_what_is_no_os_error_becomes_one_of_one_line() -> None:
    error = s3_faults.as_os_error(ValueError("first\n  second"))
    assert type(error) is OSError
    assert str(error) == "ValueError: first second"
    missing = FileNotFoundError(errno.ENOENT, "no such file")
    assert s3_faults.as_os_error(missing) is missing
