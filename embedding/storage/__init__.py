"""Bytes on a local disk or in S3, behind the few verbs this project needs.

Local paths go through Python itself, so that any name a disk allows works; ``s3://`` goes through
``embedding.storage.s3``, which waits out the faults that pass. Whatever fails raises an OSError.
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

# A name that starts like this is an unfinished write: readers' globs (*.parquet) do not see it.
TEMPORARY_PREFIX = ".tmp-"
# The whole name; that of earlier versions ended in the target's. An input may lie in the same folder, with a recording
# called .tmp-1.wav.
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{32}}(-.+|\.\w+)?", re.DOTALL)


def is_s3(uri: str) -> bool:
    """Return whether a URI names an object or prefix in S3."""
    return uri.startswith(s3.SCHEME)


def normalise(uri: str, option: str) -> str:
    """Return an absolute local path, or an ``s3://`` URI without a trailing slash.

    Raises:
        RequestError: another scheme, no bucket, credentials, or no name: not UTF-8 (Arrow and S3 hold no other), or
            with a NUL, or empty.
    """
    if not uri:
        raise RequestError(f"{option}: expected a path or an s3:// URI, got an empty name")
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{option}: {os.fsencode(uri)!r} is not UTF-8; rename it") from error
    if "\0" in uri:
        raise RequestError(f"{option}: {uri!r} names no file: it has a NUL in it")
    if is_s3(uri):
        bucket = s3.bucket_key(uri).partition("/")[0]
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
    if looks_like := _likely_meaning(uri):
        raise RequestError(f"{option}: {uri} is no local path that avex-batch writes or reads: {looks_like}")
    # abspath, not Path.absolute: "x/../y" and "y" are one recording, and a link's name is the name its owner chose.
    # expanduser, not Path.expanduser: "~2023.wav" is a recording, not a user without a home.
    path = os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111
    return f"/{path.lstrip('/')}"  # POSIX leaves a second slash at the beginning to the system; to ours it is nothing


_SCHEMES = ("s3", "s3a", "s3n", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "file", "hdfs")


def _likely_meaning(path: str) -> str:
    """Return the likely meaning of a path that looks like a URI or a Windows path; empty for any other path."""
    begin, colon, rest = path.partition(":")
    if colon and begin.lower() in _SCHEMES:
        if begin.lower() == "file":
            return "write the path without file:"
        if begin.lower() in ("s3", "s3a", "s3n"):
            return f"did you mean s3://{rest.lstrip('/')}? For a local folder of this name write ./{path}"
        return f"{begin}: is not supported; expected a local path or s3://…"
    if len(begin) == 1 and begin.isalpha() and rest.startswith(("\\", "/")) and os.name != "nt":
        return "it is a Windows path, and this system has no drives; in WSL write /mnt/" + f"{begin.lower()}/…"
    if path.startswith("\\\\"):
        return "it is a Windows share, and this system has none: mount the share, and give its folder"
    return ""


def join(root: str, *names: str) -> str:
    """Return the URI of a name below ``root``."""
    return "/".join((root.rstrip("/"), *names))


def child(folder: str, name: str) -> str:
    """Return the URI of ``name`` directly under ``folder``, for names that are made of what was read back.

    Raises:
        OSError: the name would lead elsewhere, or is none.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "not the name of a file", name)
    return join(folder, name)


def open_stream(uri: str, range_bytes: int = s3.RANGE_BYTES) -> BinaryIO:
    """A seekable stream; a long S3 object is read as ranges of ``range_bytes``, one held at a time, never whole.

    Raises:
        OSError: it cannot be opened; likewise every ``read`` of the stream.
    """
    if is_s3(uri):
        return s3.open_stream(uri, range_bytes)
    return open_regular(uri)


def open_regular(path: str) -> BinaryIO:
    """Open a file of a disk; a pipe, a socket or a device may never answer and is refused unopened.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: the file cannot be opened, or is none.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 — pathlib is slower
    except FileNotFoundError:
        if os.path.islink(path):  # noqa: PTH114
            raise OSError(errno.ELOOP, "a link that leads nowhere", path) from None
        raise
    except ValueError as error:  # a NUL in a name that was read back
        raise OSError(errno.EINVAL, str(error), path) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a folder is refused by opening it
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a file", path)
    # Without waiting, should a pipe have taken the file's place since.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_bytes(uri: str, at_most: int = sys.maxsize) -> bytes:
    """Return the whole object.

    Args:
        uri: the object.
        at_most: bytes; a larger object is refused unread.

    Raises:
        FileNotFoundError: there is none.
        OSError: the object cannot be read, or is too large.
    """
    if is_s3(uri) and at_most == sys.maxsize:
        return s3.read_bytes(uri)
    with open_stream(uri) as stream:
        if stream.seek(0, os.SEEK_END) > at_most:
            raise OSError(errno.EFBIG, f"larger than {at_most:,} bytes", uri)
        stream.seek(0)
        return stream.read()


def read_many(uris: list[str], sizes: list[int]) -> list[bytes | OSError]:
    """Several S3 objects at once, each its bytes or what the storage said instead.

    ``sizes`` are the bytes to expect of each, of which fewer are a fault; -1 where nobody knows.
    """
    return s3.read_many(uris, sizes)


def write_bytes(uri: str, data: bytes) -> None:
    """Complete or absent: a rename on a local disk, one PUT on S3."""
    if is_s3(uri):
        s3.write_bytes(uri, data)
        return
    with _replaced_by(Path(uri), data):
        pass


def write_together(contents: Mapping[str, bytes]) -> None:
    """Write several objects, by URI, in order. On a disk none takes its place before there was room for all of them."""
    with ExitStack() as replaced:
        for uri, data in reversed(
            list(contents.items())
        ):  # a stack: the one that is entered last takes its place first
            if not is_s3(uri):
                replaced.enter_context(_replaced_by(Path(uri), data))
    for uri, data in contents.items():
        if is_s3(uri):
            s3.write_bytes(uri, data)


@contextmanager
def _replaced_by(target: Path, data: bytes) -> Iterator[None]:
    """``data`` is on the disk while the block runs, and takes the place of ``target`` when the block has ended well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new file beside ``target`` that takes its place, in one step, when the block has ended well.

    A link at ``target`` is replaced itself; nothing is written to where it leads.
    """
    # Without the target's name, which may be as long as names can be; with its suffix, which says the format.
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create_bytes(uri: str, data: bytes) -> bool:
    """Write what does not exist yet; False, and nothing written, if it does. Of several writers one is told True.

    In S3 an object with these very bytes counts as ours (``s3.create_bytes`` says why), so writers that must know each
    other apart put something of their own into ``data``. On a disk the name is there a moment before the bytes.
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
    """Remove one object, if it is there."""
    if is_s3(uri):
        s3.delete(uri)
    else:
        Path(uri).unlink(missing_ok=True)


def list_names(uri: str, suffix: str) -> Iterator[str]:
    """URIs of the objects directly under ``uri`` whose name ends in ``suffix``, in order; none if it does not exist.

    Raises:
        OSError: it cannot be listed, or its bucket does not exist.
    """
    if is_s3(uri):
        names = (key.removeprefix(s3.bucket_key(uri) + "/") for key, _, _ in s3.objects(uri + "/"))
    else:
        names = sorted(os.listdir(uri)) if Path(uri).is_dir() else []  # noqa: PTH208 — names are what is wanted
    for name in names:
        if name.endswith(suffix) and "/" not in name and not name.startswith("."):
            yield join(uri, name)


def list_prefix(uri: str, prefix: str) -> list[str]:
    """Return the URIs of the objects directly under ``uri`` whose name begins with ``prefix``, in order.

    In S3 only these are listed, however many objects lie under ``uri``.

    Raises:
        OSError: ``uri`` cannot be listed, or its bucket does not exist.
    """
    if is_s3(uri):
        names = [key.removeprefix(s3.bucket_key(uri) + "/") for key, _, _ in s3.objects(join(uri, prefix))]
    else:
        names = sorted(os.listdir(uri)) if Path(uri).is_dir() else []  # noqa: PTH208 — names are what is wanted
    return [join(uri, name) for name in names if name.startswith(prefix) and "/" not in name]


def first_folder(uri: str, prefix: str) -> str | None:
    """The first folder directly under ``uri`` whose name begins with ``prefix``; None if there is none."""
    if is_s3(uri):
        found = next(s3.objects(join(uri, prefix)), None)
        return None if found is None else found[0].removeprefix(s3.bucket_key(uri) + "/").partition("/")[0]
    names = sorted(os.listdir(uri)) if Path(uri).is_dir() else []  # noqa: PTH208 — names are what is wanted
    return next((name for name in names if name.startswith(prefix) and Path(uri, name).is_dir()), None)


def sweep(uri: str) -> None:
    """Remove unfinished writes directly under ``uri``. In S3 there are none: a PUT is there or not."""
    if is_s3(uri) or not Path(uri).is_dir():
        return
    for path in Path(uri).glob(f"{TEMPORARY_PREFIX}*"):
        # A folder is an export's, going on or dead.
        if _TEMPORARY.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
            path.unlink(missing_ok=True)
