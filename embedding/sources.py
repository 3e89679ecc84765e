"""Inputs to recordings: listing, manifests, identity.

A listing streams into Arrow columns and never becomes Python objects per recording, so that ten million recordings
fit the driver (about the length of their names plus 24 bytes each; `benchmarks/listing.py` measures it).
"""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import soundfile as sf
from fsspec.utils import glob_translate

from embedding import storage
from embedding.errors import RequestError

RECORDINGS = pa.schema([("file", pa.string()), ("size", pa.int64()), ("file_id", pa.int64())])

MANIFEST_SUFFIXES = (".csv", ".parquet")

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
_CHUNK = 8192


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
        sizes = self.recordings["size"]
        return pc.sum(pc.if_else(pc.greater(sizes, 0), sizes, 0)).as_py() or 0


def list_recordings(inputs: Iterable[str], limit: int | None = None) -> Listing:
    """Every recording of ``inputs``, once, in the order given (names sorted within each directory).

    Raises:
        RequestError: an input that does not exist or cannot be listed, or no recording in any of them.
    """
    inputs = list(inputs)
    left_out: Counter[str] = Counter()
    found = (entry for uri in inputs for entry in _entries(uri, left_out))
    batches = list(_batches(islice(found, limit) if limit and len(inputs) == 1 else found))
    recordings = _unique(pa.Table.from_batches(batches, RECORDINGS))
    if limit:
        recordings = recordings.slice(0, limit)
    if not len(recordings):
        seen = f"; left out: {describe_left_out(left_out)}" if left_out else ""
        raise RequestError(f"--input: no recording found in {', '.join(inputs)}{seen}")
    return Listing(recordings, left_out)


def describe_left_out(left_out: Counter[str]) -> str:
    """``9 .txt, 3 .xml``, the most frequent first."""
    return ", ".join(f"{n:,} {suffix}" for suffix, n in left_out.most_common())


_Entry = tuple[str, int, str]  # file, size in bytes, version


def _batches(entries: Iterator[_Entry]) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(entries, _CHUNK)):
        files, sizes, _ = zip(*chunk, strict=True)
        ids = np.fromiter((file_id(*entry) for entry in chunk), np.int64, len(chunk))
        yield pa.record_batch([pa.array(files, pa.string()), pa.array(sizes, pa.int64()), pa.array(ids)], RECORDINGS)


def _unique(recordings: pa.Table) -> pa.Table:
    """Without the second mention of a recording that several inputs (or manifest rows) name."""
    ids = recordings["file_id"].to_numpy()
    _, first = np.unique(ids, return_index=True)
    return recordings if len(first) == len(ids) else recordings.take(pa.array(np.sort(first)))


def _entries(uri: str, left_out: Counter[str]) -> Iterator[_Entry]:
    uri = storage.normalise(uri, "--input")
    is_manifest = uri.lower().endswith(MANIFEST_SUFFIXES)
    if storage.is_s3(uri):
        return _from_manifest(uri) if is_manifest else _from_s3(uri, left_out)
    if is_manifest and Path(uri).is_file():
        return _from_manifest(uri)
    return _from_disk(uri, left_out)


# --- local disk -------------------------------------------------------------------------------------------------


def _from_disk(path: str, left_out: Counter[str]) -> Iterator[_Entry]:
    if Path(path).is_dir():
        yield from _walk(path, left_out, audio_suffixes(), set())
    elif Path(path).exists():
        yield _stat(path)  # named by itself: whatever its suffix
    elif glob.has_magic(path):
        suffixes = audio_suffixes()
        for match in sorted(glob.iglob(path, recursive=True)):
            if Path(match).is_dir():
                if "**" not in path:  # which names what is in the directory, too
                    yield from _walk(match, left_out, suffixes, set())
            elif _wanted(match, suffixes, left_out):
                yield _stat(match)
    else:
        raise RequestError(f"--input: {path} does not exist")


def _walk(
    directory: str, left_out: Counter[str], suffixes: frozenset[str], above: set[tuple[int, int]]
) -> Iterator[_Entry]:
    """Depth first. ``above`` holds the (device, inode) of the directories we are in: a link back up is not followed."""
    try:
        with os.scandir(directory) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        status = Path(directory).stat()
    except OSError as error:
        raise RequestError(f"--input: cannot list {directory}: {error.strerror}") from error
    here = above | {(status.st_dev, status.st_ino)}
    for entry in ordered:
        if entry.is_dir():
            below = entry.stat()
            if not entry.name.startswith(".") and (below.st_dev, below.st_ino) not in here:
                yield from _walk(entry.path, left_out, suffixes, here)
        elif _wanted(entry.name, suffixes, left_out):
            yield _stat(entry.path)


def _stat(path: str) -> _Entry:
    """A file that cannot be asked for its size is still a recording: reading it becomes the failure row that says why."""
    try:
        status = Path(path).stat()
    except OSError:
        return path, UNKNOWN_SIZE, ""
    return path, status.st_size, str(status.st_mtime_ns)


def _wanted(path: str, suffixes: frozenset[str], left_out: Counter[str]) -> bool:
    name = path.rpartition("/")[2]
    if name.startswith("."):  # hidden, and macOS's ._ companions
        return False
    suffix = PurePosixPath(name).suffix.lower()
    try:
        path.encode()
    except UnicodeEncodeError:
        left_out["with a name that is not UTF-8"] += 1
        return False
    if suffix not in suffixes:
        left_out[suffix or "without suffix"] += 1
        return False
    return True


# --- S3 ---------------------------------------------------------------------------------------------------------


def _from_s3(uri: str, left_out: Counter[str]) -> Iterator[_Entry]:
    pattern = None
    prefix = uri
    if any(sign in storage.s3_key(uri) for sign in "*?[") and not _s3_exists(uri):
        # Listed from the last complete folder before the first wildcard; a match of a folder takes all below it.
        prefix = re.split(r"[*?\[]", uri, maxsplit=1)[0].rpartition("/")[0]
        pattern = re.compile(
            glob_translate(storage.s3_key(uri)).removesuffix(r"\Z").removesuffix("$") + r"(?:/.*)?\Z", re.S
        )
    suffixes = audio_suffixes()
    root = storage.s3_key(prefix)
    any_object = False
    for key, size, etag in _s3_listing(prefix):
        any_object = True
        below = key.removeprefix(root).lstrip("/")
        if key.endswith("/") or any(part.startswith(".") for part in below.split("/")):
            continue
        if pattern is not None and not pattern.match(key):
            continue
        if key == root or _wanted(key, suffixes, left_out):
            yield storage.S3_SCHEME + key, size, etag
    if not any_object:
        raise RequestError(f"--input: nothing lies under {uri}")


def _s3_listing(uri: str) -> Iterator[_Entry]:
    """The object itself, if ``uri`` is one, then everything in the folder of that name."""
    root = storage.s3_key(uri)
    try:
        for entry in storage.s3_objects(uri if "/" in root else uri + "/"):
            # s3://bucket/site-1 also begins the keys of s3://bucket/site-10: those are another folder.
            if entry[0] == root or entry[0].startswith(root + "/"):
                yield entry
    except OSError as error:
        raise RequestError(f"--input: cannot list {uri}: {error}") from error


def _s3_exists(uri: str) -> bool:
    return next(iter(_s3_listing(uri)), None) is not None


# --- manifests --------------------------------------------------------------------------------------------------


def _from_manifest(uri: str) -> Iterator[_Entry]:
    """Rows of a .csv or .parquet with a column ``file``; a relative path counts from the manifest's folder."""
    folder = uri.rpartition("/")[0]
    for files in _manifest_columns(uri):
        named = [name if storage.is_s3(name) or name.startswith("/") else storage.join(folder, name) for name in files]
        remote = [name for name in named if storage.is_s3(name)]
        known = dict(zip(remote, _s3_stats(remote), strict=True))
        for name in named:
            yield known[name] if name in known else _stat(name)


def _manifest_columns(uri: str) -> Iterator[list[str]]:
    try:
        with storage.open_stream(uri) as stream:
            if uri.lower().endswith(".csv"):
                batches: Iterable[pa.RecordBatch] = pyarrow.csv.open_csv(
                    stream, convert_options=pyarrow.csv.ConvertOptions(column_types={"file": pa.string()})
                )
            else:
                batches = pq.ParquetFile(stream).iter_batches(_CHUNK)
            for batch in batches:
                if "file" not in batch.schema.names:
                    names = ", ".join(batch.schema.names)
                    raise RequestError(f"--input: manifest {uri} has no column 'file' (it has: {names})")
                column = batch.column("file").drop_null()
                yield [str(name) for name in column.to_pylist() if name]
    except OSError as error:
        raise RequestError(f"--input: cannot read manifest {uri}: {error.strerror or error}") from error
    except pa.ArrowInvalid as error:
        raise RequestError(f"--input: manifest {uri} is damaged: {' '.join(str(error).split())}") from error


def _s3_stats(uris: list[str]) -> Iterator[_Entry]:
    """One HEAD per object, 64 at a time: a manifest names objects but does not know their versions."""

    def stat(uri: str) -> _Entry:
        try:
            info = storage.s3().info(storage.s3_key(uri))
        except OSError:
            return uri, UNKNOWN_SIZE, ""
        return uri, info["size"] or 0, info["ETag"]

    with ThreadPoolExecutor(64) as pool:
        yield from pool.map(stat, uris)
