"""The identity of a recording, and of the file on a disk that a name leads to."""

import hashlib
import os
import unicodedata
from collections.abc import Callable

from embedding import storage


def file_id(file: str, size: int, version: str) -> int:
    """Identity of a recording: the first 8 bytes of BLAKE2b over its name, size and version, as a signed integer."""
    digest = hashlib.blake2b(f"{file}\0{size}\0{version}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def without_links(path: str) -> str:
    """Return the name of what ``path`` leads to, without links on the way."""
    return os.path.realpath(path)


def real_name(path: str, real_folder: Callable[[str], str] = without_links) -> str:
    """Return the name of the file that ``path`` leads to, without links on the way.

    Args:
        path: absolute.
        real_folder: ``without_links``, or the same with a memory: it is asked for the folder of ``path``.
    """
    if os.path.islink(path):  # noqa: PTH114 — pathlib takes 13 s longer for 10⁷ names
        return os.path.realpath(path)
    folder, _, name = path.rpartition("/")
    return storage.join(real_folder(folder or "/"), name)


def spelling(path: str) -> str:
    """Return ``path`` in Unicode's composed form (NFC) where the file system takes both forms for the same file.

    macOS writes names in the decomposed form, and most manifests have the composed one. Elsewhere the two forms may be
    two files: then each keeps its own name.
    """
    if path.isascii() or (composed := unicodedata.normalize("NFC", path)) == path:
        return path
    try:
        return composed if os.path.samefile(path, composed) else path  # noqa: PTH121 — likewise
    except OSError:  # there is no file of the other form
        return path
