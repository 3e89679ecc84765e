"""Reading and writing of bytes on a local disk or in S3.

Local paths are opened by Python itself, so that every name that a disk allows works. ``s3://`` URIs are handled by
``embedding.storage.s3``, which retries transient faults. Every failure is an OSError.
"""

import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from embedding.errors import RequestError
from embedding.storage import s3

# Prefix of an unfinished write; patterns of readers (*.parquet) do not match hidden names.
TEMPORARY_PREFIX = ".tmp-"
# The whole name of an unfinished write; in earlier versions the name ended in the name of the target. A recording
# .tmp-1.wav may be in the same folder, so the prefix alone is not enough.
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{32}}(-.+|\.\w+)?", re.DOTALL)

_SCHEMES = ("s3", "s3a", "s3n", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "file", "hdfs")


# --- names ------------------------------------------------------------------------------------------------------


def is_s3(uri: str) -> bool:
    """Return whether ``uri`` is an ``s3://`` URI."""
    return uri.startswith(s3.SCHEME)


def normalise(uri: str, option: str) -> str:
    """Return an absolute local path or an ``s3://`` URI without a trailing slash.

    Args:
        uri: Path or URI as the user wrote it.
        option: The option that has this value; messages begin with it.

    Raises:
        RequestError: ``uri`` is empty, is not UTF-8 (Arrow and S3 hold no other text), contains a NUL character or
            credentials, has another scheme or no bucket, or looks like a URI or a Windows path with a typing error.
    """
    if not uri:
        raise RequestError(f"{option}: expected a path or an s3:// URI, got an empty name")
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{option}: {os.fsencode(uri)!r} is not UTF-8; rename it") from error
    if "\0" in uri:
        raise RequestError(f"{option}: {uri!r} contains a NUL character; no file has such a name")
    if is_s3(uri):
        bucket = s3.bucket_key(uri).partition("/")[0]
        if not bucket:
            raise RequestError(f"{option}: {uri} has no bucket name; expected s3://bucket/prefix")
        # The message does not repeat the URI, because the URI may contain a secret.
        if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
            raise RequestError(
                f"{option}: a bucket name cannot contain ':' or '@'; credentials belong in the environment "
                "(AWS_PROFILE or AWS_ACCESS_KEY_ID/AWS_SECRET_ACCESS_KEY), not in a URI"
            )
        return uri.rstrip("/")
    if "://" in uri:
        raise RequestError(
            f"{option}: {uri.split('://', maxsplit=1)[0]}:// is not supported; expected a local path or s3://…"
        )
    if hint := _likely_meaning(uri):
        raise RequestError(f"{option}: {uri} is not a local path: {hint}")
    # abspath instead of Path.absolute: "x/../y" and "y" are one recording, and a symbolic link keeps its own name.
    # expanduser instead of Path.expanduser: "~2023.wav" is a recording, not a user without a home.
    path = os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111
    # POSIX lets the system define the meaning of a second slash at the beginning; on Linux and macOS it has none.
    return f"/{path.lstrip('/')}"


def _likely_meaning(path: str) -> str:
    """Return a hint for a path that looks like a URI or a Windows path; empty for any other path."""
    begin, colon, rest = path.partition(":")
    if colon and begin.lower() in _SCHEMES:
        if begin.lower() == "file":
            return "write the path without file:"
        if begin.lower() in ("s3", "s3a", "s3n"):
            return f"did you mean s3://{rest.lstrip('/')}? For a local folder of this name write ./{path}"
        return f"{begin}: is not supported; expected a local path or s3://…"
    if len(begin) == 1 and begin.isalpha() and rest.startswith(("\\", "/")) and os.name != "nt":
        return f"it is a Windows path, and this system has no drives; in WSL write /mnt/{begin.lower()}/…"
    if path.startswith("\\\\"):
        return "it is a Windows share, and this system has none: mount the share, and write the path of its folder"
    return ""


def join(root: str, *names: str) -> str:
    """Return the path or URI of ``names`` below ``root``."""
    return "/".join((root.rstrip("/"), *names))


def child(folder: str, name: str) -> str:
    """Return the URI of ``name`` directly under ``folder``, for names that were read from an output.

    Raises:
        OSError: ``name`` is not a file name, or leads to another folder.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "not the name of a file", name)
    return join(folder, name)


# --- reading ----------------------------------------------------------------------------------------------------


def open_stream(uri: str, range_bytes: int = s3.RANGE_BYTES) -> BinaryIO:
    """Open a seekable stream.

    Args:
        uri: Absolute path or URI.
        range_bytes: A long S3 object is read in ranges of this size; one range is in memory at a time.

    Raises:
        OSError: The file or object cannot be opened. Every ``read`` of the stream may raise OSError, too.
    """
    if is_s3(uri):
        return s3.open_stream(uri, range_bytes)
    return open_regular(uri)


def open_regular(path: str) -> BinaryIO:
    """Open a file of a disk. Pipes, sockets and devices are refused unopened, because reading them may never end.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: The file cannot be opened, or is not a regular file.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 — pathlib is slower
    except FileNotFoundError:
        if os.path.islink(path):  # noqa: PTH114
            raise OSError(errno.ELOOP, "a link that leads nowhere", path) from None
        raise
    except ValueError as error:  # a NUL character in a name that was read from an output
        raise OSError(errno.EINVAL, str(error), path) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # open() refuses a folder
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a file", path)
    # O_NONBLOCK: a pipe may have replaced the file since, and open() must not wait for its writer.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_bytes(uri: str, at_most: int = sys.maxsize) -> bytes:
    """Return the content of a file or object.

    Args:
        uri: Absolute path or URI.
        at_most: Maximum number of bytes; a larger object is refused unread.

    Raises:
        FileNotFoundError: The file or object does not exist.
        OSError: The file or object cannot be read, or is too large.
    """
    if is_s3(uri) and at_most == sys.maxsize:
        return s3.read_bytes(uri)
    with open_stream(uri) as stream:
        if stream.seek(0, os.SEEK_END) > at_most:
            raise OSError(errno.EFBIG, f"larger than {at_most:,} bytes", uri)
        stream.seek(0)
        return stream.read()


def read_many(uris: list[str], sizes: list[int]) -> list[bytes | OSError]:
    """Read several S3 objects at once.

    Args:
        uris: URIs of the objects.
        sizes: Expected bytes of each object; fewer bytes are a fault. -1 where the size is unknown.

    Returns:
        For each object its bytes, or the error.
    """
    return s3.read_many(uris, sizes)


# --- writing ----------------------------------------------------------------------------------------------------


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file or object completely or not at all: a rename on a local disk, one PUT in S3."""
    if is_s3(uri):
        s3.write_bytes(uri, data)
        return
    with _replaced_by(Path(uri), data):
        pass


def write_together(contents: Mapping[str, bytes]) -> None:
    """Write several objects in order. On a disk no file is replaced before all new files are written.

    Args:
        contents: The bytes of each object, by URI.
    """
    with ExitStack() as stack:
        for uri, data in reversed(list(contents.items())):  # a stack: the file that is entered last is replaced first
            if not is_s3(uri):
                stack.enter_context(_replaced_by(Path(uri), data))
    for uri, data in contents.items():
        if is_s3(uri):
            s3.write_bytes(uri, data)


@contextmanager
def _replaced_by(target: Path, data: bytes) -> Iterator[None]:
    """Write ``data`` beside ``target`` before the block, and replace ``target`` after the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield the path of a new file beside ``target``, which replaces ``target`` atomically after the block succeeds.

    If ``target`` is a symbolic link, the link itself is replaced; the file that it leads to does not change.
    """
    # The name does not contain the name of the target, which may have the maximum length. It has the suffix of the
    # target, which tells the format to a library that writes the file.
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create_bytes(uri: str, data: bytes) -> bool:
    """Create a file or object that does not exist yet.

    In S3 an object with the same bytes counts as created by this call (see ``s3.create_bytes``), so writers that must
    exclude each other put something unique into ``data``. On a disk the name exists a moment before the bytes.

    Returns:
        Whether this call created it; of several concurrent writers, one gets True.
    """
    if is_s3(uri):
        return s3.create_bytes(uri, data)
    target = Path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = target.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return True


def delete(uri: str) -> None:
    """Delete a file or object, if it exists."""
    if is_s3(uri):
        s3.delete(uri)
    else:
        Path(uri).unlink(missing_ok=True)


def remove_unfinished_writes(uri: str) -> None:
    """Remove unfinished writes directly under a folder. S3 has none: a PUT succeeds completely or not at all."""
    if is_s3(uri) or not Path(uri).is_dir():
        return
    for path in Path(uri).glob(f"{TEMPORARY_PREFIX}*"):
        # A folder of this name belongs to an export that is running or was killed.
        if _TEMPORARY.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
            path.unlink(missing_ok=True)


# --- listing ----------------------------------------------------------------------------------------------------


def list_names(uri: str, suffix: str) -> Iterator[str]:
    """Yield the URIs of the objects directly under ``uri`` whose names end in ``suffix``, in order; not hidden names.

    Raises:
        OSError: ``uri`` cannot be listed, or its bucket does not exist. A folder that does not exist has no objects.
    """
    if is_s3(uri):
        names = (key.removeprefix(s3.bucket_key(uri) + "/") for key, _, _ in s3.list_objects(uri + "/"))
    else:
        names = _names_in(uri)
    for name in names:
        if name.endswith(suffix) and "/" not in name and not name.startswith("."):
            yield join(uri, name)


def list_prefix(uri: str, prefix: str) -> list[str]:
    """Return the URIs of the objects directly under ``uri`` whose names begin with ``prefix``, in order.

    In S3 only objects with this prefix are listed, however many objects are stored under ``uri``.

    Raises:
        OSError: ``uri`` cannot be listed, or its bucket does not exist.
    """
    if is_s3(uri):
        names = [key.removeprefix(s3.bucket_key(uri) + "/") for key, _, _ in s3.list_objects(join(uri, prefix))]
    else:
        names = _names_in(uri)
    return [join(uri, name) for name in names if name.startswith(prefix) and "/" not in name]


def list_folders(uri: str) -> list[str]:
    """Return the names of the folders directly under ``uri``, in order. In S3 all objects under ``uri`` are listed.

    Raises:
        OSError: ``uri`` cannot be listed, or its bucket does not exist.
    """
    if is_s3(uri):
        keys = (key.removeprefix(s3.bucket_key(uri) + "/") for key, _, _ in s3.list_objects(join(uri, "")))
        return sorted({key.partition("/")[0] for key in keys if "/" in key})
    return [name for name in _names_in(uri) if Path(uri, name).is_dir()]


def first_folder(uri: str, prefix: str) -> str | None:
    """Return the name of the first folder directly under ``uri`` that begins with ``prefix``; None if there is none."""
    if is_s3(uri):
        found = next(s3.list_objects(join(uri, prefix)), None)
        return None if found is None else found[0].removeprefix(s3.bucket_key(uri) + "/").partition("/")[0]
    return next((name for name in _names_in(uri) if name.startswith(prefix) and Path(uri, name).is_dir()), None)


def _names_in(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if Path(folder).is_dir() else []  # noqa: PTH208 — only the names are needed
