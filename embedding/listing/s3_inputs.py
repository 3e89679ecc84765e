"""Inputs in S3: prefixes, glob patterns and objects."""

import glob
import re
from collections import Counter
from collections.abc import Iterator

from embedding.errors import RequestError
from embedding.listing.entries import UNKNOWN_SIZE, Entry, is_recording_name
from embedding.listing.glob_patterns import EVERYTHING, GlobPattern
from embedding.stopping import thread_pool
from embedding.storage import s3

_Object = tuple[str, int, str]  # ``bucket/key``, size in bytes, ETag


def list_from_s3(uri: str, ignored: Counter[str]) -> Iterator[Entry]:
    """Yield the recordings of a prefix, a glob pattern or an object.

    Args:
        uri: ``s3://bucket/…``.
        ignored: Counts of other objects; updated.

    Raises:
        RequestError: The bucket cannot be listed, or nothing matches.
    """
    bucket_key = s3.bucket_key(uri)
    if glob.has_magic(bucket_key.partition("/")[0]):
        raise RequestError(f"--input: {uri} has a wildcard in the bucket name; only keys may have wildcards")
    if not glob.has_magic(bucket_key) or _exists(uri):
        yield from _matching(_objects_in_folder(uri), bucket_key, EVERYTHING, uri, ignored)
        return
    # Objects are listed from the text before the first wildcard, and matched from the last folder in this text.
    literal = re.split(r"[*?\[]", uri, maxsplit=1)[0]
    folder = s3.bucket_key(literal).rpartition("/")[0]
    pattern = GlobPattern(*bucket_key.removeprefix(folder + "/").split("/"))
    yield from _matching(s3.list_objects(literal), folder, pattern, uri, ignored)


def head_entries(uris: list[str]) -> Iterator[Entry]:
    """Yield the entry of each object, in order.

    A manifest names objects but not their versions, so each object takes a HEAD request; many are sent at a time.

    Raises:
        RequestError: S3 does not answer.
    """

    def entry(uri: str) -> Entry:
        try:
            info = s3.info(uri)
        except (FileNotFoundError, PermissionError):
            return uri, UNKNOWN_SIZE, "", uri, 0
        except OSError as error:
            raise RequestError(f"--input: cannot read size and version of {uri}: {error.strerror or error}") from error
        if info["type"] != "file":
            return uri, UNKNOWN_SIZE, "", uri, 0
        return uri, info["size"], info["ETag"], uri, 0

    with thread_pool(s3.CONNECTIONS) as pool:
        yield from pool.map(entry, uris)


def _matching(
    objects: Iterator[_Object], folder: str, pattern: GlobPattern, uri: str, ignored: Counter[str]
) -> Iterator[Entry]:
    """Yield the recordings among ``objects`` whose keys below ``folder`` (``bucket/prefix``) match ``pattern``."""
    any_match = False
    try:
        for key, size, etag in objects:
            state = pattern.start
            for name in key.removeprefix(folder).removeprefix("/").split("/"):
                state = pattern.step(state, name)
            if not pattern.matches(state):
                continue
            any_match = True
            if not key.endswith("/") and (key == folder or is_recording_name(key, ignored)):
                yield s3.SCHEME + key, size, etag, s3.SCHEME + key, 0
    except OSError as error:
        raise RequestError(f"--input: cannot list {uri}: {error.strerror or error}") from error
    if not any_match:
        raise RequestError(f"--input: nothing {'is stored under' if pattern is EVERYTHING else 'matches'} {uri}")


def _objects_in_folder(uri: str) -> Iterator[_Object]:
    """Yield the object with the key of ``uri``, if it exists, then all objects in the folder of that name."""
    if "/" in s3.bucket_key(uri):
        # Of all keys that begin with the key of `uri`, this key is listed first. The second listing is needed because
        # keys in s3://bucket/site-10/ also begin with s3://bucket/site-1, but belong to another folder.
        first = next(s3.list_objects(uri), None)
        if first is not None and first[0] == s3.bucket_key(uri):
            yield first
    yield from s3.list_objects(uri + "/")


def _exists(uri: str) -> bool:
    try:
        return any(True for _ in _objects_in_folder(uri))
    except OSError as error:
        raise RequestError(f"--input: cannot list {uri}: {error.strerror or error}") from error
