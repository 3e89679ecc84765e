"""Inputs to recordings: listing, manifests, identity.

A listing streams into Arrow columns and never becomes Python objects per recording, so that ten million recordings
fit the driver (the length of their names and some 20 bytes each; `benchmarks/listing.py` measures it).
"""

import glob
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile as sf

from embedding import storage
from embedding.errors import RequestError
from embedding.listing.duplicates import Row, Seen
from embedding.listing.file_identity import file_id, real_name, spelling, without_links
from embedding.listing.glob_patterns import EVERYTHING, Pattern
from embedding.listing.manifests import MANIFEST_SUFFIXES, manifest_files
from embedding.schema.recordings import RECORDINGS
from embedding.stopping import threads_of
from embedding.storage import open_regular, s3
from embedding.text import plural

# libsndfile names formats, users name files; these are the further suffixes of the formats it reads.
_MORE_SUFFIXES = {
    "AIFF": ("aif", "aifc"),
    "AU": ("snd",),
    "IRCAM": ("sf",),
    "MP3": ("mp1", "mp2"),
    "NIST": ("sph",),
    "OGG": ("oga", "opus"),
    "SVX": ("8svx", "iff"),
}
# RAW has no header to read. A .mat in an archive of recordings is a table of annotations, not MATLAB's rare audio:
# thousands of them would be thousands of failures. A manifest or a file named by itself still takes both.
_NOT_BY_SUFFIX = {"RAW", "MAT4", "MAT5", "WAVEX", "MPC2K"}

UNKNOWN_SIZE = -1

_HEAD_BYTES = 4096  # of a file, to find out whether it is text
_SHORTEST_TEXT_BYTES = 16  # a few bytes may be anything
_FOLDERS = 4096  # of a manifest, whose real names are kept
_HEADS = 512  # objects of a manifest that are asked for at a time: what --limit 1 costs

# Files left out are counted by suffix and told in one line; what follows a name's last dot may be a time stamp.
_LONGEST_SUFFIX = 8
_SUFFIXES_SHOWN = 8

_NOT_FOUND_SHOWN = 3

# Further names of files that are listed, among the files that are left out.
LINKED = "linked a second time"

# Files that a glob would match if upper and lower case were the same.
OTHER_CASE = "with a name that differs from the pattern in case only"

_Object = tuple[str, int, str]  # of S3: key, size in bytes, version
# File, size in bytes, version, the name of the file without links on the way, and a number that hard links share.
_Entry = tuple[str, int, str, str, int]


@cache
def audio_suffixes() -> frozenset[str]:
    """Every suffix that libsndfile, as it is installed here, reads; lower case, with the dot."""
    formats = sf.available_formats().keys() - _NOT_BY_SUFFIX
    names = {name.lower() for name in formats} | {more for name in formats for more in _MORE_SUFFIXES.get(name, ())}
    return frozenset("." + name for name in names)


@dataclass
class Listing:
    """The recordings of the inputs (columns of RECORDINGS); ``left_out`` counts other files by suffix."""

    recordings: pa.Table
    left_out: Counter[str] = field(default_factory=Counter)
    n_hard_links: int = 0  # recordings that are hard links to others of them

    @property
    def n_bytes(self) -> int:
        """Bytes of the recordings, as far as their sizes are known."""
        return n_bytes(self.recordings)

    @property
    def n_not_found(self) -> int:
        """Number of recordings that a manifest names and that are not there, or that we may not ask for."""
        return sum(int((sizes.to_numpy() == UNKNOWN_SIZE).sum()) for sizes in self.recordings["size"].chunks)

    @property
    def not_found(self) -> list[str]:
        """Some of them."""
        rows = self.recordings.filter(pc.field("size") == UNKNOWN_SIZE)
        return rows["file"].slice(0, _NOT_FOUND_SHOWN).to_pylist()


def n_bytes(recordings: pa.Table) -> int:
    """Bytes of ``recordings`` (columns of RECORDINGS), as far as their sizes are known."""
    return sum(int(np.maximum(sizes, 0).sum()) for sizes in recordings["size"].chunks)


def list_recordings(inputs: Iterable[str], limit: int | None = None) -> Listing:
    """Every recording of ``inputs``, once, in the order given (names sorted within each directory).

    With ``limit``, the first so many of them: what comes after is not looked at, nor counted as left out.

    Raises:
        RequestError: an input that does not exist or cannot be listed, or no recording in any of them.
    """
    inputs = list(inputs)
    left_out: Counter[str] = Counter()
    entries = (entry for uri in inputs for entry in _entries(uri, left_out))
    seen = Seen()
    batches = list(seen.distinct(map(_row, entries), limit or sys.maxsize))
    if seen.n_linked:
        left_out[LINKED] = seen.n_linked
    if not batches:
        where = inputs[0] if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1:,} more"
        seen = f"; left out: {describe_left_out(left_out)}" if left_out else ""
        raise RequestError(f"--input: no recording found in {where}{seen}")
    return Listing(pa.Table.from_batches(batches, RECORDINGS), left_out, seen.n_hard_links)


def _row(entry: _Entry) -> Row:
    file, size, version, real, hard_link = entry
    own = file_id(file, size, version)
    return file, size, own, own if real == file else file_id(real, size, version), hard_link


def describe_not_found(listing: Listing) -> str:
    """Return a text like ``2 of 8 recordings were not found: /a/b.wav, /a/c.wav``."""
    n, n_listed = listing.n_not_found, len(listing.recordings)
    shown = ", ".join(listing.not_found) + (" …" if n > _NOT_FOUND_SHOWN else "")
    verb = "was" if n == 1 else "were"
    hint = ""
    if any("\\" in file for file in listing.not_found):
        hint = "; names with backslashes are Windows paths, and this system separates folders by /"
    return f"{n:,} of {plural(n_listed, 'recording')} {verb} not found: {shown}{hint}"


def describe_left_out(left_out: Counter[str]) -> str:
    """``9 .txt, 3 .xml``, the most frequent first."""
    shown = [f"{n:,} {suffix}" for suffix, n in left_out.most_common(_SUFFIXES_SHOWN)]
    rest = left_out.total() - sum(n for _, n in left_out.most_common(_SUFFIXES_SHOWN))
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)


def _entries(uri: str, left_out: Counter[str]) -> Iterator[_Entry]:
    uri = storage.normalise(uri, "--input")
    is_manifest = uri.lower().endswith(MANIFEST_SUFFIXES)
    if storage.is_s3(uri):
        return _from_manifest(uri, left_out) if is_manifest else _from_s3(uri, left_out)
    if is_manifest and os.path.isfile(uri):  # noqa: PTH113 — pathlib's raises where a folder is closed
        return _from_manifest(uri, left_out)
    return _from_disk(uri, left_out)


def _wanted(path: str, left_out: Counter[str]) -> bool:
    """Return whether a name is that of a recording; count all other names."""
    try:
        path.encode()
    except UnicodeEncodeError:
        left_out["with a name that is not UTF-8"] += 1
        return False
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 — pathlib takes 13 s longer for 10⁷ names
    if suffix in audio_suffixes():
        return True
    if not suffix:
        suffix = "without suffix"
    elif len(suffix) > _LONGEST_SUFFIX:
        suffix = "with a long suffix"
    left_out[suffix] += 1
    return False


# --- local disk -------------------------------------------------------------------------------------------------


def _from_disk(path: str, left_out: Counter[str]) -> Iterator[_Entry]:
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise RequestError(f"--input: cannot read {path}: {error.strerror}") from error
    if mode is None:
        yield from _glob(path, left_out)
    elif stat.S_ISDIR(mode):
        yield from _walk(path, EVERYTHING, left_out)
    else:  # named by itself: whatever its suffix
        _refuse_text(path)
        yield from _file(path, real_name(path), left_out)


def _refuse_text(path: str) -> None:
    """Raise RequestError for a file of text that is named as an input: a list of recordings is a manifest."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 — as for all names here
    if suffix in audio_suffixes():
        return
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return  # reading the recording will report it
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


def _glob(path: str, left_out: Counter[str]) -> Iterator[_Entry]:
    folder, parts = "", path.split("/")[1:]
    while parts and Path(f"{folder}/{parts[0]}").exists():
        folder += "/" + parts.pop(0)  # what exists is meant, even where its name has a * or a [ in it
    if not any(glob.has_magic(part) for part in parts):
        raise RequestError(f"--input: {path} does not exist")
    pattern = Pattern(*parts)
    n_left_out = left_out.total()
    any_match = False
    for entry in _walk(folder or "/", pattern, left_out):
        any_match = True
        yield entry
    if not any_match and left_out.total() == n_left_out:
        raise RequestError(f"--input: nothing matches {path}")


@dataclass
class _Folder:
    """A folder that is being walked."""

    path: str
    real: str  # without links
    state: frozenset[int]  # of the pattern, after this folder
    identity: tuple[int, int]  # device and inode
    # Names, and each only until it is listed: os.DirEntry objects of a folder of 10⁶ recordings take 400 bytes each.
    names: list[str] = field(default_factory=list)  # the first one last
    folders: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)

    def real_name(self, name: str) -> str:
        """The name of an entry without links."""
        if name in self.links:
            return without_links(storage.join(self.path, name))
        return storage.join(self.real, name)


def _walk(directory: str, pattern: Pattern, left_out: Counter[str]) -> Iterator[_Entry]:
    """Depth first, names in order. A link back up is not followed."""
    found = _open_folder(directory, without_links(directory), pattern.start, frozenset())
    open_folders = [] if found is None else [found]
    above = {folder.identity for folder in open_folders}
    while open_folders:  # no recursion: folders may be nested deeper than Python's stack
        folder = open_folders[-1]
        if not folder.names:
            above.discard(open_folders.pop().identity)
            continue
        name = folder.names.pop()
        path = storage.join(folder.path, name)
        below = pattern.step(folder.state, name)
        if name in folder.folders:
            if below and (found := _open_folder(path, folder.real_name(name), below, above)) is not None:
                above.add(found.identity)
                open_folders.append(found)
        elif pattern.matches(below):
            if _wanted(path, left_out):
                yield from _file(path, folder.real_name(name), left_out)
        elif pattern.matches(pattern.step(folder.state, name, any_case=True)):
            left_out[OTHER_CASE] += 1


def _open_folder(path: str, real: str, state: frozenset[int], above: Collection[tuple[int, int]]) -> _Folder | None:
    """The entries of a folder; None where it is one of those ``above`` it, of which it was a link."""
    try:
        status = Path(path).stat()
        folder = _Folder(path, real, state, (status.st_dev, status.st_ino))
        if folder.identity in above:
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
    except OSError:  # a link to itself, or to where we may not look: reading it will say so
        return False


def _file(path: str, real: str, left_out: Counter[str]) -> Iterator[_Entry]:
    """Yield the entry of one file, unless the file is a pipe or a device, whose reading might never end.

    A file whose size cannot be read is still a recording: reading it will give the failure.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 — pathlib takes 50 s longer for 10⁷ names
    except OSError:
        yield path, UNKNOWN_SIZE, "", path, 0
        return
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        has_names = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
        hard_link = hash((status.st_dev, status.st_ino)) if has_names else 0
        yield path, status.st_size, str(status.st_mtime_ns), spelling(real), hard_link
    else:
        left_out["pipe or device"] += 1


# --- S3 ---------------------------------------------------------------------------------------------------------


def _from_s3(uri: str, left_out: Counter[str]) -> Iterator[_Entry]:
    bucket_key = s3.bucket_key(uri)
    if glob.has_magic(bucket_key.partition("/")[0]):
        raise RequestError(f"--input: {uri} has a wildcard in its bucket; only keys take them")
    if not glob.has_magic(bucket_key) or _s3_exists(uri):
        yield from _s3_matches(_s3_folder(uri), bucket_key, EVERYTHING, uri, left_out)
        return
    # Listed from what comes before the first wildcard, matched from the last folder in that.
    start = re.split(r"[*?\[]", uri, maxsplit=1)[0]
    folder = s3.bucket_key(start).rpartition("/")[0]
    pattern = Pattern(*bucket_key.removeprefix(folder + "/").split("/"))
    yield from _s3_matches(s3.objects(start), folder, pattern, uri, left_out)


def _s3_matches(
    objects: Iterator[_Object], folder: str, pattern: Pattern, uri: str, left_out: Counter[str]
) -> Iterator[_Entry]:
    """The recordings among ``objects`` that match ``pattern`` from ``folder`` (``bucket/prefix``) down."""
    any_match = False
    try:
        for key, size, etag in objects:
            state = pattern.start
            for name in key.removeprefix(folder).removeprefix("/").split("/"):
                state = pattern.step(state, name)
            if not pattern.matches(state):
                continue
            any_match = True
            if not key.endswith("/") and (key == folder or _wanted(key, left_out)):
                yield s3.SCHEME + key, size, etag, s3.SCHEME + key, 0
    except OSError as error:
        raise RequestError(f"--input: cannot list {uri}: {error.strerror or error}") from error
    if not any_match:
        raise RequestError(f"--input: nothing {'lies under' if pattern is EVERYTHING else 'matches'} {uri}")


def _s3_folder(uri: str) -> Iterator[_Object]:
    """The object itself, if ``uri`` is one, then everything in the folder of that name."""
    if "/" in s3.bucket_key(uri):
        # Of the keys that begin with a key, that key itself comes first. Those of s3://bucket/site-10 begin with
        # s3://bucket/site-1, but lie in another folder: hence the second listing.
        first = next(s3.objects(uri), None)
        if first is not None and first[0] == s3.bucket_key(uri):
            yield first
    yield from s3.objects(uri + "/")


def _s3_exists(uri: str) -> bool:
    try:
        return any(True for _ in _s3_folder(uri))
    except OSError as error:
        raise RequestError(f"--input: cannot list {uri}: {error.strerror or error}") from error


# --- manifests --------------------------------------------------------------------------------------------------


def _from_manifest(uri: str, left_out: Counter[str]) -> Iterator[_Entry]:
    """Rows of a .csv or .parquet with a column ``file``; a relative path counts from the manifest's folder."""
    real_folder = lru_cache(_FOLDERS)(without_links)
    for files in manifest_files(uri):
        for start in range(0, len(files), _HEADS):
            named = files[start : start + _HEADS]
            remote = list(dict.fromkeys(file for file in named if storage.is_s3(file)))
            known = dict(zip(remote, _s3_entries(remote), strict=True))
            for file in named:
                if file in known:
                    yield known[file]
                else:
                    yield from _file(file, real_name(file, real_folder), left_out)


def _s3_entries(uris: list[str]) -> Iterator[_Entry]:
    """One HEAD per object, many at a time: a manifest names objects but does not know their versions."""

    def entry(uri: str) -> _Entry:
        try:
            info = s3.info(uri)
        except (FileNotFoundError, PermissionError):
            return uri, UNKNOWN_SIZE, "", uri, 0
        except OSError as error:
            raise RequestError(f"--input: cannot ask for {uri}: {error.strerror or error}") from error
        if info["type"] != "file":
            return uri, UNKNOWN_SIZE, "", uri, 0
        return uri, info["size"], info["ETag"], uri, 0

    with threads_of(s3.CONNECTIONS) as pool:
        yield from pool.map(entry, uris)
