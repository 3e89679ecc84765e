"""S3 behind the few verbs this project needs. Every failure leaves as an OSError, and only once waiting did not help.

Endpoint, credentials and region come from the usual AWS environment.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from io import BufferedReader, RawIOBase
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from embedding.storage.s3_faults import ShortBodyError, as_os_error, passes, patiently, service_errors, whole

if TYPE_CHECKING:
    from s3fs import S3FileSystem

SCHEME = "s3://"
# One read of a long object: 8 MB amortise a 60 ms request and keep the worker small.
RANGE_BYTES = 8 << 20
# Requests at once. botocore opens 10 connections, whatever asks it; small objects are fetched 32 at a time, and a
# manifest's objects are asked for their versions 64 at a time.
CONNECTIONS = 64
# The largest object that S3 takes in one PUT. s3fs sends what exceeds 100 MB in parts, which a run that dies leaves
# behind: invisible, and paid for.
PUT_BYTES = 5 << 30
CONNECT_TIMEOUT_S = 5
# Of silence, not of duration: a slow body may take its time.
READ_TIMEOUT_S = 20

_PRECONDITION_FAILED = 412


def bucket_key(uri: str) -> str:
    """``s3://bucket/key`` → ``bucket/key``, the key taken literally (``?``, ``#``, ``%`` and all)."""
    return uri.removeprefix(SCHEME)


@cache
def client() -> "S3FileSystem":
    """The process's S3 client. Listings are never cached: what another process wrote must be seen.

    Raises:
        OSError: the environment describes no client (a profile or an endpoint that is none).
    """
    from s3fs import S3FileSystem

    made = S3FileSystem(
        use_listings_cache=False,
        config_kwargs={
            "max_pool_connections": CONNECTIONS,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            # Else its tries multiply with s3fs's and ours. (aiohttp's one, on a connection that broke, has no switch.)
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    )
    made.retries = 1
    with service_errors():
        try:
            made.connect()
        except ValueError as error:  # botocore's, for an AWS_ENDPOINT_URL without http://
            raise OSError(f"{error}; expected AWS_ENDPOINT_URL=http://host:port") from error
    return made


# --- verbs ------------------------------------------------------------------------------------------------------


def info(uri: str) -> dict[str, Any]:
    """``size`` in bytes, ``ETag`` and ``type`` (``file``, or ``directory`` for what only has objects below it).

    Raises:
        FileNotFoundError: there is neither.
        OSError: it cannot be asked for.
    """
    return patiently(lambda: client().info(bucket_key(uri)), [uri])


def open_stream(uri: str, range_bytes: int = RANGE_BYTES) -> BinaryIO:
    """A seekable stream that reads ranges of ``range_bytes`` and holds one at a time.

    Raises:
        FileNotFoundError: there is no such object.
        OSError: it cannot be opened; likewise every ``read`` of the stream.
    """
    return BufferedReader(_Stream(uri, range_bytes), 1 << 16)  # libsndfile and Arrow read a few bytes at a time


def read_bytes(uri: str) -> bytes:
    """The whole object, by ranges: one that is cut short, or whose object is replaced meanwhile, is noticed.

    Not by s3fs's ``cat_file``, which leaves zeros where a range of a large object came short (2026.9.0).
    """
    with _Stream(uri, RANGE_BYTES) as stream:
        return b"".join(iter(lambda: stream.read(RANGE_BYTES), b""))


def read_many(uris: list[str], sizes: list[int]) -> list[bytes | OSError]:
    """Read several objects at once; objects that failed are tried again together.

    Args:
        uris: the objects.
        sizes: bytes to expect; where negative, only the length that the server states is checked.

    Returns:
        For each object its bytes, or the error of the storage.

    Raises:
        OSError: there is no client to ask.
    """
    s3 = client()
    found: dict[int, bytes | OSError] = {}
    missing = list(range(len(uris)))
    failing = list(uris)

    def fetch() -> None:
        all_of_it = [None] * len(missing)
        # max_concurrency is within one object: above 1, s3fs asks for each object's size before it fetches it.
        keys = [bucket_key(uri) for uri in failing]
        bodies = s3.cat_ranges(keys, all_of_it, all_of_it, on_error="return", max_concurrency=1)
        found.update({i: _expected(body, sizes[i]) for i, body in zip(missing, bodies, strict=True)})
        missing[:] = [i for i in missing if passes(found[i])]
        failing[:] = [uris[i] for i in missing]
        if missing:
            raise cast(OSError, found[missing[0]])  # one for all of them

    with suppress(OSError):  # it lies in its place
        patiently(fetch, failing)
    return [found[i] for i in range(len(uris))]


def write_bytes(uri: str, data: bytes) -> None:
    """Complete or absent: one PUT."""
    patiently(lambda: client().pipe_file(bucket_key(uri), data, chunksize=PUT_BYTES), [uri])


def create_bytes(uri: str, data: bytes) -> bool:
    """Write an object that does not exist yet; False if it does, with other bytes than these.

    The same bytes count as ours: a try whose answer was lost finds what it wrote itself, and aiohttp repeats a request
    on a broken connection unseen. Writers that must know each other apart put something of their own into ``data``.
    """
    try:
        patiently(lambda: client().pipe_file(bucket_key(uri), data, chunksize=PUT_BYTES, mode="create"), [uri])
        return True
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return _check_then_create(uri, data)
        if not _exists_already(error):
            raise
    with suppress(FileNotFoundError):  # deleted meanwhile: it was there
        return read_bytes(uri) == data
    return False


def _check_then_create(uri: str, data: bytes) -> bool:
    """For a store that answers 501 to ``If-None-Match``: of two writers within the same moment, both are told True."""
    with suppress(FileNotFoundError):
        if info(uri)["type"] == "file":
            return False
    write_bytes(uri, data)
    return True


def delete(uri: str) -> None:
    """Remove one object, if it is there."""
    with suppress(FileNotFoundError):
        patiently(lambda: client().rm_file(bucket_key(uri)), [uri])


def objects(uri_prefix: str) -> Iterator[tuple[str, int, str]]:
    """``(bucket/key, size in bytes, ETag)`` of every object whose URI starts with ``uri_prefix``, page by page.

    s3fs's own ``find`` keeps every object of a listing as a dict (about 1 KB each); ten million of those do not fit a
    driver, so pages are asked for one at a time through its public ``call_s3``.

    Raises:
        OSError: no such bucket, no credentials, no connection.
    """
    bucket, _, prefix = bucket_key(uri_prefix).partition("/")
    token: dict[str, str] = {}

    def ask() -> dict[str, Any]:
        page: Any = client().call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **token)
        if "IsTruncated" not in page:  # what botocore makes of an empty body; it would end the listing
            raise ShortBodyError("a page of the listing came without its end")
        return page

    while True:
        page = patiently(ask, [uri_prefix])
        for item in page.get("Contents", ()):
            yield f"{bucket}/{item['Key']}", item["Size"], item["ETag"]
        if not page["IsTruncated"]:
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


class _Stream(RawIOBase):
    """An object as a file that is read by ranges. Only the version that was opened is read.

    After a failed read all reads fail at once: libsndfile reads again, and would wait for every try.
    """

    def __init__(self, uri: str, range_bytes: int) -> None:
        self._uri = uri
        self._range_bytes = range_bytes
        self._file = patiently(self._open, [uri])
        self._fault: OSError | None = None
        self._at = 0
        self._start = 0  # of what is held
        self._held = b""

    def _open(self) -> Any:
        """s3fs's file without its caches: it knows the size and the version, and one read of it is one request."""
        try:
            file: Any = client().open(bucket_key(self._uri), "rb", cache_type="none")
        except (FileNotFoundError, ValueError) as error:  # s3fs's have the key, or no key, for a message
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._uri) from error
        if file.details["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._uri)
        return file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        if not self._start <= self._at < self._start + len(self._held):
            self._fetch()
        offset = self._at - self._start
        piece = self._held[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _fetch(self) -> None:
        """Hold the range that begins here (nothing at the end)."""
        if self._fault is not None:
            raise self._fault
        start, n_bytes = self._at, max(0, min(self._range_bytes, self._file.size - self._at))
        self._held = b""  # before the next one comes

        def fetch() -> bytes:
            self._file.seek(start)
            return whole(self._file.read(n_bytes), n_bytes)

        try:
            self._held = patiently(fetch, [self._uri]) if n_bytes else b""
        except OSError as error:
            self._fault = error
            raise
        self._start = start


def _exists_already(error: OSError) -> bool:
    """s3fs knows AWS's own answer to a failed ``If-None-Match``; other stores leave its condition out."""
    response = getattr(error.__cause__, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(error, FileExistsError) or status == _PRECONDITION_FAILED


def _expected(body: bytes | BaseException, n_bytes: int) -> bytes | OSError:
    """One of s3fs's answers: the bytes, if they are as many as they should be, or why not."""
    if isinstance(body, BaseException):
        return as_os_error(body)
    try:
        return whole(body, n_bytes)
    except ShortBodyError as error:
        return error
