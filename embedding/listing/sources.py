"""Inputs to recordings: listing, manifests, identity.

A listing streams into Arrow columns and never becomes Python objects per recording, so that ten million recordings
fit the driver (the length of their names and some 20 bytes each; `benchmarks/listing.py` measures it).
"""

import glob
import hashlib
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import soundfile as sf
from numpy.typing import NDArray

from embedding import storage
from embedding.errors import RequestError
from embedding.listing.manifests import MANIFEST_SUFFIXES, manifest_files
from embedding.listing.patterns import EVERYTHING, Pattern
from embedding.storage import s3

RECORDINGS = pa.schema([("file", pa.string()), ("size", pa.int64()), ("file_id", pa.int64())])

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

_CHUNK = 8192  # rows of one Arrow batch
_HEADS = 512  # objects of a manifest that are asked for at a time: what --limit 1 costs

# Files left out are counted by suffix and told in one line; what follows a name's last dot may be a time stamp.
_LONGEST_SUFFIX = 8
_SUFFIXES_SHOWN = 8

_Entry = tuple[str, int, str]  # file, size in bytes, version
_Row = tuple[str, int, int]  # one row of RECORDINGS


@cache
def audio_suffixes() -> frozenset[str]:
    """Every suffix that libsndfile, as it is installed here, reads; lower case, with the dot."""
    formats = sf.available_formats().keys() - _NOT_BY_SUFFIX
    names = {name.lower() for name in formats} | {more for name in formats for more in _MORE_SUFFIXES.get(name, ())}
    return frozenset("." + name for name in names)


def file_id(file: str, size: int, version: str) -> int:
    """Identity of a recording: the first 8 bytes of BLAKE2b over its name, size and version, as a signed integer."""
    digest = hashlib.blake2b(f"{file}\0{size}\0{version}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass
class Listing:
    """What the inputs hold: ``recordings`` has the columns of RECORDINGS, ``left_out`` counts other files by suffix."""

    recordings: pa.Table
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def n_bytes(self) -> int:
        return n_bytes(self.recordings)


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
    rows = ((file, size, file_id(file, size, version)) for file, size, version in entries)
    batches = list(_distinct(rows, limit or sys.maxsize))
    if not batches:
        where = inputs[0] if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1:,} more"
        seen = f"; left out: {describe_left_out(left_out)}" if left_out else ""
        raise RequestError(f"--input: no recording found in {where}{seen}")
    return Listing(pa.Table.from_batches(batches, RECORDINGS), left_out)


def describe_left_out(left_out: Counter[str]) -> str:
    """``9 .txt, 3 .xml``, the most frequent first."""
    shown = [f"{n:,} {suffix}" for suffix, n in left_out.most_common(_SUFFIXES_SHOWN)]
    rest = left_out.total() - sum(n for _, n in left_out.most_common(_SUFFIXES_SHOWN))
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)


def _distinct(rows: Iterator[_Row], n_wanted: int) -> Iterator[pa.RecordBatch]:
    """The first ``n_wanted`` recordings, without the second mention of one that several inputs (or rows of a manifest)
    name. Takes no row more than it needs."""
    seen: list[NDArray[np.int64]] = []
    while n_wanted and (chunk := list(islice(rows, min(n_wanted, _CHUNK)))):
        batch = _batch(chunk)
        new = _unseen(batch["file_id"].to_numpy(), seen)
        if new.any():
            n_wanted -= int(new.sum())
            yield batch if new.all() else batch.filter(pa.array(new))


def _batch(rows: list[_Row]) -> pa.RecordBatch:
    """Made to measure: pa.array's own builders leave 60 bytes per row unused in Arrow's allocator (pyarrow 26)."""
    files, sizes, ids = zip(*rows, strict=True)
    names = [file.encode() for file in files]
    ends = np.cumsum([0, *map(len, names)], dtype=np.int32)
    column = pa.StringArray.from_buffers(len(names), pa.py_buffer(ends), pa.py_buffer(b"".join(names)))
    return pa.record_batch([column, pa.array(np.array(sizes)), pa.array(np.array(ids))], RECORDINGS)


def _unseen(ids: NDArray[np.int64], seen: list[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """For each of ``ids``, whether it is its first mention; those then belong to ``seen``.

    ``seen`` holds sorted runs, each longer than the next: few to search, and an id is merged into a longer run only
    some twenty times. A set would take 60 bytes per id, these take 8, and as many again for a moment.
    """
    new = np.zeros(len(ids), bool)
    new[np.unique(ids, return_index=True)[1]] = True
    for run in seen:
        new &= run[np.minimum(np.searchsorted(run, ids), len(run) - 1)] != ids
    run = np.sort(ids[new])
    while seen and len(seen[-1]) <= len(run):
        run = np.sort(np.concatenate([seen.pop(), run]), kind="stable")  # which merges what is sorted
    if len(run):
        seen.append(run)
    return new


def _entries(uri: str, left_out: Counter[str]) -> Iterator[_Entry]:
    uri = storage.normalise(uri, "--input")
    is_manifest = uri.lower().endswith(MANIFEST_SUFFIXES)
    if storage.is_s3(uri):
        return _from_manifest(uri, left_out) if is_manifest else _from_s3(uri, left_out)
    if is_manifest and os.path.isfile(uri):  # noqa: PTH113 — pathlib's raises where a folder is closed
        return _from_manifest(uri, left_out)
    return _from_disk(uri, left_out)


def _wanted(path: str, left_out: Counter[str]) -> bool:
    """Whether a file's name is a recording's; if it is not, it is counted."""
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
        yield from _walk(path, EVERYTHING, EVERYTHING.start, frozenset(), left_out)
    else:
        yield from _file(path, left_out)  # named by itself: whatever its suffix


def _glob(path: str, left_out: Counter[str]) -> Iterator[_Entry]:
    folder, parts = "", path.split("/")[1:]
    while parts and Path(f"{folder}/{parts[0]}").exists():
        folder += "/" + parts.pop(0)  # what exists is meant, even where its name has a * or a [ in it
    if not any(glob.has_magic(part) for part in parts):
        raise RequestError(f"--input: {path} does not exist")
    pattern = Pattern(*parts)
    n_left_out = left_out.total()
    any_match = False
    for entry in _walk(folder or "/", pattern, pattern.start, frozenset(), left_out):
        any_match = True
        yield entry
    if not any_match and left_out.total() == n_left_out:
        raise RequestError(f"--input: nothing matches {path}")


def _walk(
    directory: str,
    pattern: Pattern,
    state: frozenset[int],
    above: frozenset[tuple[int, int]],
    left_out: Counter[str],
) -> Iterator[_Entry]:
    """Depth first, names in order; ``state`` is that of ``pattern`` after ``directory``.

    ``above`` holds the (device, inode) of the directories we are in: a link back up is not followed.
    """
    # Names, and each only until it is listed: os.DirEntry objects of a folder of 10⁶ recordings take 400 bytes each.
    names: list[str] = []
    folders: set[str] = set()
    try:
        status = Path(directory).stat()
        here = above | {(status.st_dev, status.st_ino)}
        if here == above:
            return
        with os.scandir(directory) as entries:
            for entry in entries:
                names.append(entry.name)
                if _is_folder(entry):
                    folders.add(entry.name)
    except OSError as error:
        raise RequestError(f"--input: cannot list {directory}: {error.strerror}") from error
    names.sort(reverse=True)
    while names:
        name = names.pop()
        path = storage.join(directory, name)
        below = pattern.step(state, name)
        if name in folders:
            if below:
                yield from _walk(path, pattern, below, here, left_out)
        elif pattern.matches(below) and _wanted(path, left_out):
            yield from _file(path, left_out)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not look: reading it will say so
        return False


def _file(path: str, left_out: Counter[str]) -> Iterator[_Entry]:
    """The entry of one file. One that cannot be asked for its size is still a recording: reading it becomes the failure
    row that says why. A pipe or a device is none: reading it might never end."""
    try:
        status = os.stat(path)  # noqa: PTH116 — pathlib takes 50 s longer for 10⁷ names
    except OSError:
        yield path, UNKNOWN_SIZE, ""
        return
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        yield path, status.st_size, str(status.st_mtime_ns)
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
    objects: Iterator[_Entry], folder: str, pattern: Pattern, uri: str, left_out: Counter[str]
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
                yield s3.SCHEME + key, size, etag
    except OSError as error:
        raise RequestError(f"--input: cannot list {uri}: {error.strerror or error}") from error
    if not any_match:
        raise RequestError(f"--input: nothing {'lies under' if pattern is EVERYTHING else 'matches'} {uri}")


def _s3_folder(uri: str) -> Iterator[_Entry]:
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
    for files in manifest_files(uri):
        for start in range(0, len(files), _HEADS):
            named = files[start : start + _HEADS]
            remote = list(dict.fromkeys(file for file in named if storage.is_s3(file)))
            known = dict(zip(remote, _s3_entries(remote), strict=True))
            for file in named:
                if file in known:
                    yield known[file]
                else:
                    yield from _file(file, left_out)


def _s3_entries(uris: list[str]) -> Iterator[_Entry]:
    """One HEAD per object, many at a time: a manifest names objects but does not know their versions."""

    def entry(uri: str) -> _Entry:
        try:
            info = s3.info(uri)
        except (FileNotFoundError, PermissionError):
            return uri, UNKNOWN_SIZE, ""
        except OSError as error:
            raise RequestError(f"--input: cannot ask for {uri}: {error.strerror or error}") from error
        if info["type"] != "file":
            return uri, UNKNOWN_SIZE, ""
        return uri, info["size"], info["ETag"]

    with ThreadPoolExecutor(s3.CONNECTIONS) as pool:
        yield from pool.map(entry, uris)
