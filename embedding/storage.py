"""Bytes on a local disk or in S3, behind the few verbs this project needs.

Local paths go through Python itself, so that any name a disk allows works; ``s3://`` goes through s3fs, which takes
endpoint, credentials and region from the usual AWS environment.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from embedding.errors import RequestError

if TYPE_CHECKING:
    from s3fs import S3FileSystem

S3_SCHEME = "s3://"
# One read of a long S3 recording: 8 MB amortise a 60 ms request and keep the worker small.
S3_RANGE_BYTES = 8 << 20
# Requests at once. botocore opens 10 connections, whatever asks it; small objects are fetched 32 at a time, and a
# manifest's objects are asked for their versions 64 at a time.
S3_CONNECTIONS = 64
# s3fs tries a read this often within as many tries, and botocore each of those AWS_MAX_ATTEMPTS times (5): with s3fs's
# own 5, a server that takes requests and never answers would be 125 × 15 s of silence.
S3_TRIES = 3
# A name that starts like this is an unfinished write: readers' globs (*.parquet) do not see it.
TEMPORARY_PREFIX = ".tmp-"


def is_s3(uri: str) -> bool:
    return uri.startswith(S3_SCHEME)


@cache
def s3() -> "S3FileSystem":
    """The process's S3 client. Listings are never cached: what another process wrote must be seen.

    Raises:
        OSError: the environment describes no client (a profile or an endpoint that is none).
    """
    from s3fs import S3FileSystem

    client = S3FileSystem(
        use_listings_cache=False,
        default_cache_type="readahead",
        default_block_size=S3_RANGE_BYTES,
        config_kwargs={"max_pool_connections": S3_CONNECTIONS},
    )
    client.retries = S3_TRIES
    with service_errors():
        try:
            client.connect()
        except ValueError as error:  # botocore's, for an AWS_ENDPOINT_URL without http://
            raise OSError(f"{error}; expected AWS_ENDPOINT_URL=http://host:port") from error
    return client


def s3_key(uri: str) -> str:
    """``s3://bucket/key`` → ``bucket/key``, the key taken literally (``?``, ``#``, ``%`` and all)."""
    return uri.removeprefix(S3_SCHEME)


def normalise(uri: str, option: str) -> str:
    """An absolute local path or an ``s3://`` URI without a trailing slash.

    Raises:
        RequestError: another scheme, no bucket, credentials, or no name: not UTF-8 (Arrow and S3 hold no other), or
            with a NUL.
    """
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{option}: {os.fsencode(uri)!r} is not UTF-8; rename it") from error
    if "\0" in uri:
        raise RequestError(f"{option}: {uri!r} names no file: it has a NUL in it")
    if is_s3(uri):
        bucket = s3_key(uri).partition("/")[0]
        if not bucket:
            raise RequestError(f"{option}: {uri} names no bucket; expected s3://bucket/prefix")
        if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):  # not repeated: it may be a secret
            raise RequestError(
                f"{option}: no bucket's name has a ':' or '@' in it; credentials belong in the environment "
                "(AWS_PROFILE or AWS_ACCESS_KEY_ID/AWS_SECRET_ACCESS_KEY), not in a URI"
            )
        return uri.rstrip("/")
    if "://" in uri:
        raise RequestError(
            f"{option}: {uri.split('://', maxsplit=1)[0]}:// is not supported; expected a local path or s3://…"
        )
    # abspath, not Path.absolute: "x/../y" and "y" are one recording, and a link's name is the name its owner chose.
    # expanduser, not Path.expanduser: "~2023.wav" is a recording, not a user without a home.
    return os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111


def join(root: str, *names: str) -> str:
    return "/".join((root.rstrip("/"), *names))


def open_stream(uri: str, range_bytes: int = S3_RANGE_BYTES) -> BinaryIO:
    """A seekable stream; a long S3 object is read as ranges of ``range_bytes`` or a little more, never whole.

    Raises:
        OSError: it cannot be opened; likewise every ``read`` of the stream.
    """
    if not is_s3(uri):
        return open(uri, "rb")  # noqa: PTH123 — the caller closes it
    with service_errors():
        try:
            file = s3().open(s3_key(uri), "rb", block_size=range_bytes)
        except FileNotFoundError as error:  # s3fs's has the key for a message
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from error
    return BufferedReader(_S3Stream(file), 1 << 16)  # libsndfile and Arrow read a few bytes at a time


class _S3Stream(RawIOBase):
    """An open S3 object whose failures are OSErrors: s3fs's own lets botocore's errors through."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with service_errors():
            return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def service_errors() -> Iterator[None]:
    """What s3fs lets through of botocore and aiohttp (no credentials, no route, time-outs) becomes an OSError."""
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except OSError:  # some of aiohttp's are
        raise
    except (BotoCoreError, ClientError, HttpError) as error:
        raise as_os_error(error) from error


def read_bytes(uri: str) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_s3(uri):
        return Path(uri).read_bytes()
    with service_errors():
        return cast(bytes, s3().cat_file(s3_key(uri)))


def read_many(uris: list[str]) -> list[bytes | OSError]:
    """Several S3 objects at once, each its bytes or what the storage said instead."""
    keys = [s3_key(uri) for uri in uris]
    whole = [None] * len(keys)
    with service_errors():
        # max_concurrency is within one object: above 1, s3fs asks for each object's size before it fetches it.
        fetched = s3().cat_ranges(keys, whole, whole, on_error="return", max_concurrency=1)
    return [item if isinstance(item, bytes) else as_os_error(item) for item in fetched]


def as_os_error(error: BaseException) -> OSError:
    """``error`` itself if it is one, otherwise one whose message is its name and what it says, in one line."""
    return error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {' '.join(str(error).split())}")


def write_bytes(uri: str, data: bytes) -> None:
    """Complete or absent: a rename on a local disk, one PUT (or one completed multipart upload) on S3."""
    if is_s3(uri):
        with service_errors():
            s3().pipe_file(s3_key(uri), data)
        return
    target = Path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{target.name}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def delete(uri: str) -> None:
    """Remove one object, if it is there."""
    if not is_s3(uri):
        Path(uri).unlink(missing_ok=True)
        return
    with service_errors(), suppress(FileNotFoundError):
        s3().rm_file(s3_key(uri))


def list_names(uri: str, suffix: str) -> Iterator[str]:
    """URIs of the objects directly under ``uri`` whose name ends in ``suffix``, in order; none if it does not exist.

    Raises:
        OSError: it cannot be listed, or its bucket does not exist.
    """
    if is_s3(uri):
        names = (key.removeprefix(s3_key(uri) + "/") for key, _, _ in s3_objects(uri + "/"))
    else:
        names = sorted(os.listdir(uri)) if Path(uri).is_dir() else []  # noqa: PTH208 — names are what is wanted
    for name in names:
        if name.endswith(suffix) and "/" not in name and not name.startswith("."):
            yield join(uri, name)


def s3_objects(uri_prefix: str) -> Iterator[tuple[str, int, str]]:
    """``(bucket/key, size in bytes, ETag)`` of every object whose URI starts with ``uri_prefix``, page by page.

    s3fs's own ``find`` keeps every object of a listing as a dict (about 1 KB each); ten million of those do not fit a
    driver, so pages are asked for one at a time through its public ``call_s3``.

    Raises:
        OSError: no such bucket, no credentials, no connection.
    """
    bucket, _, prefix = s3_key(uri_prefix).partition("/")
    token: dict[str, str] = {}
    while True:
        with service_errors():
            page = cast(dict[str, Any], s3().call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **token))
        for item in page.get("Contents", ()):
            yield f"{bucket}/{item['Key']}", item["Size"], item["ETag"]
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def create_bytes(uri: str, data: bytes) -> bool:
    target = Path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def sweep(uri: str) -> None:
    """Remove unfinished writes directly under ``uri``. On S3 there are none: a PUT is there or not."""
    if is_s3(uri) or not Path(uri).is_dir():
        return
    for path in Path(uri).glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)
