"""Inputs on a local disk: directories, glob patterns and files."""

import glob
import os
import stat
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from embedding import storage
from embedding.errors import RequestError
from embedding.listing.entries import UNKNOWN_SIZE, Entry, audio_suffixes, is_recording_name, suffix_of
from embedding.listing.file_identity import composed_spelling, resolve_links, resolved_name
from embedding.listing.glob_patterns import EVERYTHING, GlobPattern

# Files that a pattern would match if upper and lower case were the same.
OTHER_CASE = "with a name that differs from the pattern in case only"

_TEXT_HEAD_BYTES = 4096  # bytes that are checked for text
_SHORTEST_TEXT_BYTES = 16  # fewer bytes may be anything


def list_from_disk(path: str, ignored: Counter[str]) -> Iterator[Entry]:
    """Yield the recordings of a directory, a glob pattern or a file.

    Args:
        path: Absolute path.
        ignored: Counts of other files; updated.

    Raises:
        RequestError: The path does not exist or cannot be read, the pattern matches nothing, or the file is text.
    """
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise RequestError(f"--input: cannot read {path}: {error.strerror}") from error
    if mode is None:
        yield from _glob_entries(path, ignored)
    elif stat.S_ISDIR(mode):
        yield from _walk(path, EVERYTHING, ignored)
    else:  # a file that is named explicitly is a recording whatever its suffix
        _refuse_text(path)
        yield from file_entry(path, resolved_name(path), ignored)


def file_entry(path: str, resolved: str, ignored: Counter[str]) -> Iterator[Entry]:
    """Yield the entry of one file.

    A file whose size cannot be read is still a recording: reading it produces the failure row with the reason. A pipe
    or a device is ignored: reading it might never end.

    Args:
        path: Absolute path.
        resolved: The path after symbolic links are resolved.
        ignored: Counts of other files; updated.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 — pathlib takes 50 s longer for 10⁷ names
    except OSError:
        yield path, UNKNOWN_SIZE, "", path, 0
        return
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        has_hard_links = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
        hard_link = hash((status.st_dev, status.st_ino)) if has_hard_links else 0
        yield path, status.st_size, str(status.st_mtime_ns), composed_spelling(resolved), hard_link
    else:
        ignored["pipe or device"] += 1


def _refuse_text(path: str) -> None:
    """Raise RequestError if an input is a text file: a list of recordings has to be a manifest."""
    if suffix_of(path) in audio_suffixes():
        return
    try:
        with storage.open_regular(path) as file:
            head = file.read(_TEXT_HEAD_BYTES)
    except OSError:
        return  # reading the recording will report the error
    if len(head) >= _SHORTEST_TEXT_BYTES and b"\0" not in head and _is_text(head):
        raise RequestError(
            f"--input: {path} is text, not audio; a list of recordings is a .csv or .parquet with a column 'file'"
        )


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        text = head[: error.start].decode() if error.start > len(head) - 4 else ""  # cut within a character
    return bool(text) and all(character.isprintable() or character.isspace() for character in text)


def _glob_entries(path: str, ignored: Counter[str]) -> Iterator[Entry]:
    folder, parts = "", path.split("/")[1:]
    # A part that exists is a literal name, even if the name has a * or a [ in it.
    while parts and Path(f"{folder}/{parts[0]}").exists():
        folder += "/" + parts.pop(0)
    if not any(glob.has_magic(part) for part in parts):
        raise RequestError(f"--input: {path} does not exist")
    n_ignored = ignored.total()
    any_match = False
    with closing(_walk(folder or "/", GlobPattern(*parts), ignored)) as entries:
        for entry in entries:
            any_match = True
            yield entry
    if not any_match and ignored.total() == n_ignored:
        raise RequestError(f"--input: nothing matches {path}")


@dataclass
class _OpenFolder:
    """A folder that is being walked.

    Attributes:
        path: Absolute path.
        resolved: The path after symbolic links are resolved.
        state: State of the pattern after this folder.
        identity: Device and inode.
        names: Names of the entries that are left, the first one last. Each name is dropped when its entry is listed:
            os.DirEntry objects of a folder of 10⁶ recordings take 400 bytes each.
        folders: Names of entries that are folders.
        links: Names of entries that are symbolic links.
    """

    path: str
    resolved: str
    state: frozenset[int]
    identity: tuple[int, int]
    names: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)

    def resolved_name(self, name: str) -> str:
        """Return the path of an entry after symbolic links are resolved."""
        if name in self.links:
            return resolve_links(storage.join(self.path, name))
        return storage.join(self.resolved, name)


def _walk(directory: str, pattern: GlobPattern, ignored: Counter[str]) -> Generator[Entry]:
    """Walk a tree depth first, in the order of names; a link to a folder above itself is not followed."""
    root = _open_folder(directory, resolve_links(directory), pattern.start, frozenset())
    open_folders = [] if root is None else [root]
    open_identities = {folder.identity for folder in open_folders}
    while open_folders:  # no recursion: folders may be nested deeper than Python's stack
        folder = open_folders[-1]
        if not folder.names:
            open_identities.discard(open_folders.pop().identity)
            continue
        name = folder.names.pop()
        path = storage.join(folder.path, name)
        state = pattern.step(folder.state, name)
        if name in folder.folders:
            inner = _open_folder(path, folder.resolved_name(name), state, open_identities) if state else None
            if inner is not None:
                open_identities.add(inner.identity)
                open_folders.append(inner)
        elif pattern.matches(state):
            if is_recording_name(path, ignored):
                yield from file_entry(path, folder.resolved_name(name), ignored)
        elif pattern.matches(pattern.step(folder.state, name, any_case=True)):
            ignored[OTHER_CASE] += 1


def _open_folder(
    path: str, resolved: str, state: frozenset[int], open_identities: Collection[tuple[int, int]]
) -> _OpenFolder | None:
    """Read the entries of a folder; return None for a link to a folder that is already open."""
    try:
        status = Path(path).stat()
        folder = _OpenFolder(path, resolved, state, (status.st_dev, status.st_ino))
        if folder.identity in open_identities:
            return None
        with os.scandir(path) as entries:
            for entry in entries:
                folder.names.append(entry.name)
                if _is_folder(entry):
                    folder.folders.add(entry.name)
                if entry.is_symlink():
                    folder.links.add(entry.name)
    except OSError as error:
        raise RequestError(f"--input: cannot list {path}: {error.strerror}") from error
    folder.names.sort(reverse=True)
    return folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a closed folder: reading the recording will report it
        return False
