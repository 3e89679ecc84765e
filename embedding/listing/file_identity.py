"""The identity of a recording, and the name of a file after symbolic links are resolved."""

import hashlib
import os
import unicodedata
from collections.abc import Callable

from embedding import storage


def file_id(file: str, size: int, version: str) -> int:
    """Return the identity of a recording: the first 8 bytes of BLAKE2b, as a signed integer.

    Args:
        file: Absolute path or URI.
        size: Bytes.
        version: ETag in S3, modification time in nanoseconds on a disk.
    """
    digest = hashlib.blake2b(f"{file}\0{size}\0{version}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def resolve_links(path: str) -> str:
    """Return ``path`` with all symbolic links resolved."""
    return os.path.realpath(path)


def resolved_name(path: str, resolve_folder: Callable[[str], str] = resolve_links) -> str:
    """Return the path of a file with all symbolic links resolved.

    Args:
        path: Absolute path of the file.
        resolve_folder: ``resolve_links``, or the same function with a cache; called for the folder of ``path``.
    """
    if os.path.islink(path):  # noqa: PTH114 — pathlib takes 13 s longer for 10⁷ names
        return os.path.realpath(path)
    folder, _, name = path.rpartition("/")
    return storage.join(resolve_folder(folder or "/"), name)


def composed_spelling(path: str) -> str:
    """Return ``path`` in Unicode's composed form (NFC), if the file system treats both forms as the same file.

    macOS writes names in the decomposed form, and most manifests have the composed form. On other file systems the two
    forms may name two files; then ``path`` is returned unchanged.
    """
    if path.isascii() or (composed := unicodedata.normalize("NFC", path)) == path:
        return path
    try:
        return composed if os.path.samefile(path, composed) else path  # noqa: PTH121 — pathlib is slower
    except OSError:  # no file has a name of the other form
        return path
