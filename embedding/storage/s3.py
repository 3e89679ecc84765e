"""Reading and writing of S3 objects. Every failure is an OSError, raised after the retries of transient faults.

Endpoint, credentials and region come from the usual AWS environment.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from io import BufferedReader, RawIOBase
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from embedding.storage.s3_faults import (
    ShortBodyError,
    as_os_error,
    check_length,
    convert_service_errors,
    is_transient,
    retry,
)

if TYPE_CHECKING:
    from s3fs import S3FileSystem

SCHEME = "s3://"
# Bytes of one read of a long object: 8 MB amortise a request of 60 ms and keep the worker small.
RANGE_BYTES = 8 << 20
# Maximum number of concurrent requests; botocore's default is 10. Small objects are fetched 32 at a time, and versions
# of a manifest's objects are looked up 64 at a time.
CONNECTIONS = 64
# The largest object that S3 accepts in one PUT. By default s3fs uploads objects above 100 MB in parts, and the parts of
# a run that dies stay in the bucket: invisible, and billed.
PUT_BYTES = 5 << 30
CONNECT_TIMEOUT_S = 5
# Seconds without any byte; a slow body may take longer.
READ_TIMEOUT_S = 20

_PRECONDITION_FAILED = 412


def bucket_key(uri: str) -> str:
    """Return ``bucket/key`` of ``s3://bucket/key``; the key is taken literally, including ``?``, ``#`` and ``%``."""
    return uri.removeprefix(SCHEME)


@cache
def client() -> "S3FileSystem":
    """Return the S3 client of this process. It never caches listings, because other processes write objects.

    Raises:
        OSError: The environment has an invalid profile or endpoint.
    """
    from s3fs import S3FileSystem

    file_system = S3FileSystem(
        use_listings_cache=False,
        config_kwargs={
            "max_pool_connections": CONNECTIONS,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            # More attempts would multiply with the attempts of s3fs and of s3_faults.retry. aiohttp's own second
            # attempt, on a connection that broke, cannot be switched off.
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    )
    file_system.retries = 1
    with convert_service_errors():
        try:
            file_system.connect()
        except ValueError as error:  # of botocore, for an AWS_ENDPOINT_URL without http://
            raise OSError(f"{error}; expected AWS_ENDPOINT_URL=http://host:port") from error
    return file_system


# --- operations ---------------------------------------------------------------------------------------------------


def info(uri: str) -> dict[str, Any]:
    """Return the metadata of an object or folder.

    Returns:
        ``size`` in bytes, ``ETag`` and ``type``: ``file`` for an object, ``directory`` for a folder of objects.

    Raises:
        FileNotFoundError: There is neither an object nor a folder.
        OSError: The request failed.
    """
    return retry(lambda: client().info(bucket_key(uri)), [uri])


def open_stream(uri: str, range_bytes: int = RANGE_BYTES) -> BinaryIO:
    """Open a seekable stream of an object.

    Args:
        uri: URI of the object.
        range_bytes: The object is read in ranges of this size; one range is in memory at a time.

    Raises:
        FileNotFoundError: The object does not exist.
        OSError: The object cannot be opened. Every ``read`` of the stream may raise OSError, too.
    """
    return BufferedReader(_Stream(uri, range_bytes), 1 << 16)  # libsndfile and Arrow read a few bytes at a time


def read_bytes(uri: str) -> bytes:
    """Return the content of an object, read in ranges.

    A short range, or an object that is replaced meanwhile, raises OSError. ``cat_file`` of s3fs would leave zeros where
    a range of a large object is short (2026.9.0).
    """
    with _Stream(uri, RANGE_BYTES) as stream:
        return b"".join(iter(lambda: stream.read(RANGE_BYTES), b""))


def read_many(uris: list[str], sizes: list[int]) -> list[bytes | OSError]:
    """Read several objects at once; objects that failed are retried together.

    Args:
        uris: URIs of the objects.
        sizes: Expected bytes of each object. For a negative size only the length that the server states is checked.

    Returns:
        For each object its bytes, or the error.

    Raises:
        OSError: There is no client, for example because of an invalid profile.
    """
    s3 = client()
    results: dict[int, bytes | OSError] = {}
    missing = list(range(len(uris)))
    missing_uris = list(uris)

    def fetch() -> None:
        no_limits = [None] * len(missing)
        # max_concurrency is the number of requests per object: above 1, s3fs looks up the size of each object first.
        keys = [bucket_key(uri) for uri in missing_uris]
        bodies = s3.cat_ranges(keys, no_limits, no_limits, on_error="return", max_concurrency=1)
        results.update({i: _body_or_error(body, sizes[i]) for i, body in zip(missing, bodies, strict=True)})
        missing[:] = [i for i in missing if is_transient(results[i])]
        missing_uris[:] = [uris[i] for i in missing]
        if missing:
            raise cast(OSError, results[missing[0]])  # one error for all objects that failed

    with suppress(OSError):  # the error is in `results`
        retry(fetch, missing_uris)
    return [results[i] for i in range(len(uris))]


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object completely or not at all, with one PUT."""
    retry(lambda: client().pipe_file(bucket_key(uri), data, chunksize=PUT_BYTES), [uri])


def create_bytes(uri: str, data: bytes) -> bool:
    """Create an object that does not exist yet.

    An object with the same bytes counts as created by this call: the answer to an earlier attempt may be lost, and
    aiohttp silently repeats a request on a broken connection. Writers that must exclude each other put something unique
    into ``data``.

    Returns:
        False if the object exists with other bytes.
    """
    try:
        retry(lambda: client().pipe_file(bucket_key(uri), data, chunksize=PUT_BYTES, mode="create"), [uri])
        return True
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return _check_then_create(uri, data)
        if not _exists_already(error):
            raise
    with suppress(FileNotFoundError):  # the object existed, and was deleted meanwhile
        return read_bytes(uri) == data
    return False


def _check_then_create(uri: str, data: bytes) -> bool:
    """Create an object in a store that answers 501 to ``If-None-Match``: two writers at once may both get True."""
    with suppress(FileNotFoundError):
        if info(uri)["type"] == "file":
            return False
    write_bytes(uri, data)
    return True


def delete(uri: str) -> None:
    """Delete an object, if it exists."""
    with suppress(FileNotFoundError):
        retry(lambda: client().rm_file(bucket_key(uri)), [uri])


def list_objects(uri_prefix: str) -> Iterator[tuple[str, int, str]]:
    """Yield ``(bucket/key, size in bytes, ETag)`` of every object whose URI begins with ``uri_prefix``.

    ``find`` of s3fs keeps every object of a listing as a dict (about 1 KB each), and ten million dicts do not fit into
    the memory of a driver. So pages are requested one by one through ``call_s3``, which is public.

    Raises:
        OSError: No such bucket, no credentials, no connection.
    """
    bucket, _, prefix = bucket_key(uri_prefix).partition("/")
    token: dict[str, str] = {}

    def request_page() -> dict[str, Any]:
        page: Any = client().call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **token)
        if "IsTruncated" not in page:  # botocore's result for an empty body, which would end the listing
            raise ShortBodyError("a page of the listing is incomplete")
        return page

    while True:
        page = retry(request_page, [uri_prefix])
        for item in page.get("Contents", ()):
            yield f"{bucket}/{item['Key']}", item["Size"], item["ETag"]
        if not page["IsTruncated"]:
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


class _Stream(RawIOBase):
    """An object as a file, read in ranges of the version that was opened.

    After a failure every further read fails at once: libsndfile repeats a failed read, and each repetition would wait
    for all retries.
    """

    def __init__(self, uri: str, range_bytes: int) -> None:
        self._uri = uri
        self._range_bytes = range_bytes
        self._file = retry(self._open, [uri])
        self._fault: OSError | None = None
        self._position = 0
        self._range_start = 0
        self._range = b""

    def _open(self) -> Any:
        """Open s3fs's file without its caches: it knows size and version, and one read of it is one request."""
        try:
            file: Any = client().open(bucket_key(self._uri), "rb", cache_type="none")
        except (FileNotFoundError, ValueError) as error:  # the message of s3fs is the key alone, or has no key
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._uri) from error
        if file.details["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._uri)
        return file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if not self._range_start <= self._position < self._range_start + len(self._range):
            self._fetch()
        offset = self._position - self._range_start
        piece = self._range[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fetch(self) -> None:
        """Fetch the range that begins at the position; an empty range at the end of the object."""
        if self._fault is not None:
            raise self._fault
        start, n_bytes = self._position, max(0, min(self._range_bytes, self._file.size - self._position))
        self._range = b""  # freed before the next range is in memory

        def fetch() -> bytes:
            self._file.seek(start)
            return check_length(self._file.read(n_bytes), n_bytes)

        try:
            self._range = retry(fetch, [self._uri]) if n_bytes else b""
        except OSError as error:
            self._fault = error
            raise
        self._range_start = start


def _exists_already(error: OSError) -> bool:
    """Return whether ``If-None-Match`` failed. s3fs knows only AWS's answer; other stores omit the condition's name."""
    response = getattr(error.__cause__, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(error, FileExistsError) or status == _PRECONDITION_FAILED


def _body_or_error(body: bytes | BaseException, n_bytes: int) -> bytes | OSError:
    """Return an answer of s3fs: the bytes if they are complete, otherwise the error."""
    if isinstance(body, BaseException):
        return as_os_error(body)
    try:
        return check_length(body, n_bytes)
    except ShortBodyError as error:
        return error
