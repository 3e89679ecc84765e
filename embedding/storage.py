"""Bytes on a local disk or in S3, behind the few verbs this project needs.

Local paths go through Python itself, so that any name a disk allows works; ``s3://`` goes through s3fs, which takes
endpoint, credentials and region from the usual AWS environment.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from embedding.errors import RequestError

if TYPE_CHECKING:
    from s3fs import S3FileSystem

S3_SCHEME = "s3://"
# One read of a long S3 recording: 8 MB amortise a 60 ms request and keep the worker small.
S3_RANGE_BYTES = 8 << 20
# A name that starts like this is an unfinished write: readers' globs (*.parquet) do not see it.
TEMPORARY_PREFIX = ".tmp-"


def is_s3(uri: str) -> bool:
    return uri.startswith(S3_SCHEME)


@cache
def s3() -> "S3FileSystem":
    """The process's S3 client. Listings are never cached: what another process wrote must be seen."""
    from s3fs import S3FileSystem

    return S3FileSystem(use_listings_cache=False, default_cache_type="readahead", default_block_size=S3_RANGE_BYTES)


def s3_key(uri: str) -> str:
    """``s3://bucket/key`` → ``bucket/key``, the key taken literally (``?``, ``#``, ``%`` and all)."""
    return uri.removeprefix(S3_SCHEME)


def normalise(uri: str, option: str) -> str:
    """An absolute local path or an ``s3://`` URI without a trailing slash.

    Raises:
        RequestError: another scheme, or no bucket.
    """
    if is_s3(uri):
        if not s3_key(uri).strip("/"):
            raise RequestError(f"{option}: {uri} names no bucket; expected s3://bucket/prefix")
        return uri.rstrip("/")
    if "://" in uri:
        raise RequestError(
            f"{option}: {uri.split('://', maxsplit=1)[0]}:// is not supported; expected a local path or s3://…"
        )
    # abspath, not Path.absolute: "x/../y" and "y" are one recording, and a link's name is the name its owner chose.
    return os.path.abspath(Path(uri).expanduser())  # noqa: PTH100


def join(root: str, *names: str) -> str:
    return "/".join((root.rstrip("/"), *names))


def open_stream(uri: str) -> BinaryIO:
    """A seekable stream; a long S3 object is read as ranges, never whole."""
    if is_s3(uri):
        with service_errors():
            return cast(BinaryIO, s3().open(s3_key(uri), "rb"))
    return open(uri, "rb")  # noqa: PTH123 — the caller closes it


@contextmanager
def service_errors() -> Iterator[None]:
    """What s3fs lets through of botocore and aiohttp (no credentials, no route, time-outs) becomes an OSError."""
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, HttpError, TimeoutError) as error:
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
    with service_errors():
        fetched = s3().cat_ranges(keys, [None] * len(keys), [None] * len(keys), on_error="return")
    return [item if isinstance(item, bytes) else as_os_error(item) for item in fetched]


def as_os_error(error: BaseException) -> OSError:
    return error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")


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


def list_names(uri: str, suffix: str) -> Iterator[str]:
    """URIs of the objects directly under ``uri`` whose name ends in ``suffix``, in order; none if it does not exist."""
    if is_s3(uri):
        for key, _, _ in s3_objects(uri + "/"):
            name = key.removeprefix(s3_key(uri) + "/")
            if "/" not in name and name.endswith(suffix):
                yield S3_SCHEME + key
    elif Path(uri).is_dir():
        for path in sorted(Path(uri).iterdir()):
            if path.name.endswith(suffix) and not path.name.startswith("."):
                yield str(path)


def s3_objects(uri_prefix: str) -> Iterator[tuple[str, int, str]]:
    """``(bucket/key, size in bytes, ETag)`` of every object whose URI starts with ``uri_prefix``, page by page.

    s3fs's own ``find`` keeps every object of a listing as a dict (about 1 KB each); ten million of those do not fit a
    driver, so pages are asked for one at a time through its public ``call_s3``.
    """
    bucket, _, prefix = s3_key(uri_prefix).partition("/")
    token: dict[str, str] = {}
    while True:
        with service_errors():
            page = s3().call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **token)
        for item in page.get("Contents", ()):
            yield f"{bucket}/{item['Key']}", item["Size"], item["ETag"]
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}
