"""Inputs to recordings: listing, manifests, identity.

A listing streams into Arrow columns and never becomes Python objects per recording, so that ten million recordings
fit the driver (the length of their names and some 20 bytes each; `benchmarks/listing.py` measures it).
"""

import fnmatch
import glob
import hashlib
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import soundfile as sf

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

_CHUNK = 8192  # rows of one Arrow batch
_HEADS = 512  # objects of a manifest that are asked for at a time: what --limit 1 costs

# What is counted by suffix is told in one line, and kept in memory: of names that end in a time stamp, neither.
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
        return pc.sum(pc.max_element_wise(self.recordings["size"], 0)).as_py() or 0


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
    batches = list(_batches(islice(_distinct(rows), limit) if limit else rows))
    _drop_repeats(batches)
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


def _batches(rows: Iterator[_Row]) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(rows, _CHUNK)):
        columns = zip(*chunk, strict=True)
        yield pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, RECORDINGS, strict=True)], RECORDINGS)


def _distinct(rows: Iterator[_Row]) -> Iterator[_Row]:
    """As ``_drop_repeats``, but row by row, at 60 bytes of memory for each: for the few that --limit asks for."""
    seen: set[int] = set()
    for row in rows:
        if row[2] not in seen:
            seen.add(row[2])
            yield row


def _drop_repeats(batches: list[pa.RecordBatch]) -> None:
    """Drop the second mention of a recording that several inputs (or rows of a manifest) name; batch by batch, so
    that there are never two copies of the listing."""
    ids = np.concatenate([batch["file_id"].to_numpy() for batch in batches] or [np.empty(0, np.int64)])
    _, first = np.unique(ids, return_index=True)
    if len(first) == len(ids):
        return
    keep = np.zeros(len(ids), bool)
    keep[first] = True
    for i, (batch, kept) in enumerate(zip(batches, np.split(keep, range(_CHUNK, len(keep), _CHUNK)), strict=True)):
        batches[i] = batch.filter(pa.array(kept))


def _entries(uri: str, left_out: Counter[str]) -> Iterator[_Entry]:
    uri = storage.normalise(uri, "--input")
    is_manifest = uri.lower().endswith(MANIFEST_SUFFIXES)
    if storage.is_s3(uri):
        return _from_manifest(uri, left_out) if is_manifest else _from_s3(uri, left_out)
    if is_manifest and Path(uri).is_file():
        return _from_manifest(uri, left_out)
    return _from_disk(uri, left_out)


def _wanted(path: str, left_out: Counter[str]) -> bool:
    """Whether a file's name is a recording's; if it is not, and not hidden either, it is counted."""
    name = path.rpartition("/")[2]
    if name.startswith("."):  # hidden, and macOS's ._ companions
        return False
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 — Path takes 15 s longer for 10⁷ names (2 cores, 2025-11)
    if suffix in audio_suffixes():
        return True
    if not suffix:
        suffix = "without suffix"
    elif len(suffix) > _LONGEST_SUFFIX:
        suffix = "with a long suffix"
    left_out[suffix] += 1
    return False


class _Pattern:
    """A glob, matched name by name from some folder down, alike on a disk and in S3.

    ``**`` stands for any number of folders, a matched folder for everything in it; a hidden name is matched only by
    what begins with a dot itself. The state of a match is the set of parts that may match the next name.
    """

    def __init__(self, *parts: str) -> None:
        self._any_depth = [part == "**" for part in (*parts, "**")]
        self._match = [
            re.compile(("" if part.startswith(".") else r"(?!\.)") + fnmatch.translate(part)).match
            for part in (*parts, "**")
        ]
        self.start = self._from(0)

    def _from(self, i: int) -> frozenset[int]:
        """Part ``i``, and what may follow at once because a ``**`` also stands for no folder."""
        end = i
        while self._any_depth[end] and end + 1 < len(self._match):
            end += 1
        return frozenset(range(i, end + 1))

    def step(self, state: frozenset[int], name: str) -> frozenset[int]:
        """The state after ``name``; empty where nothing below it can match."""
        return frozenset().union(
            *(self._from(i if self._any_depth[i] else i + 1) for i in state if self._match[i](name))
        )

    def matches(self, state: frozenset[int]) -> bool:
        """Whether the names so far match: what is left is the ``**`` that every pattern ends in."""
        return len(self._match) - 1 in state


_EVERYTHING = _Pattern()


# --- local disk -------------------------------------------------------------------------------------------------


def _from_disk(path: str, left_out: Counter[str]) -> Iterator[_Entry]:
    try:
        is_folder = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        yield from _glob(path, left_out)
    except OSError as error:
        raise RequestError(f"--input: cannot read {path}: {error.strerror}") from error
    else:
        if stat.S_ISDIR(is_folder):
            yield from _walk(path, left_out, _EVERYTHING, _EVERYTHING.start, frozenset())
        else:
            yield from _file(path, left_out)  # named by itself: whatever its suffix
