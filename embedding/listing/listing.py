"""Listing of the recordings that the inputs hold.

A listing streams into Arrow columns and never becomes Python objects per recording, so that ten million recordings fit
into the memory of the driver (the length of their names and some 20 bytes each, measured by `benchmarks/listing.py`).
"""

import os
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding import storage
from embedding.errors import RequestError
from embedding.listing.disk_inputs import file_entry, list_from_disk
from embedding.listing.duplicates import DuplicateFilter, Row
from embedding.listing.entries import UNKNOWN_SIZE, Entry
from embedding.listing.file_identity import file_id, resolve_links, resolved_name
from embedding.listing.manifests import MANIFEST_SUFFIXES, manifest_files
from embedding.listing.s3_inputs import head_entries, list_from_s3
from embedding.schema.recordings import RECORDINGS
from embedding.text import plural

# Further names of files that are already listed, among the ignored files.
LINKED = "linked a second time"

_CACHED_FOLDERS = 4096  # folders of a manifest whose resolved names are cached
_HEAD_REQUESTS = 512  # objects of a manifest that are looked up together; --limit 1 also looks up so many
_SUFFIXES_SHOWN = 8
_NOT_FOUND_SHOWN = 3


@dataclass
class Listing:
    """Recordings that the inputs hold.

    Attributes:
        recordings: Columns of RECORDINGS.
        ignored: Counts of other files, by suffix or reason.
        n_hard_links: Number of recordings that are hard links to other recordings of the listing.
    """

    recordings: pa.Table
    ignored: Counter[str] = field(default_factory=Counter)
    n_hard_links: int = 0

    @property
    def n_bytes(self) -> int:
        """Total size of the recordings in bytes; unknown sizes count as 0."""
        return n_bytes(self.recordings)

    @property
    def n_not_found(self) -> int:
        """Number of recordings that a manifest names and that do not exist or may not be read."""
        return sum(int((sizes.to_numpy() == UNKNOWN_SIZE).sum()) for sizes in self.recordings["size"].chunks)

    @property
    def not_found(self) -> list[str]:
        """The first recordings that were not found."""
        rows = self.recordings.filter(pc.field("size") == UNKNOWN_SIZE)
        return rows["file"].slice(0, _NOT_FOUND_SHOWN).to_pylist()


def n_bytes(recordings: pa.Table) -> int:
    """Return the total size of recordings in bytes; unknown sizes count as 0.

    Args:
        recordings: Columns of RECORDINGS.
    """
    return sum(int(np.maximum(sizes, 0).sum()) for sizes in recordings["size"].chunks)


def list_recordings(inputs: Iterable[str], limit: int | None = None) -> Listing:
    """List every recording of the inputs once.

    Args:
        inputs: Directories, glob patterns, files, ``s3://`` URIs or manifests. The listing keeps their order; within a
            directory it has the order of names.
        limit: Maximum number of recordings; everything after them is neither looked up nor counted as ignored.

    Raises:
        RequestError: An input does not exist or cannot be listed, or no input has a recording.
    """
    inputs = list(inputs)
    ignored: Counter[str] = Counter()
    duplicates = DuplicateFilter()
    with closing(_all_entries(inputs, ignored)) as entries:
        batches = list(duplicates.distinct(map(_row, entries), limit or sys.maxsize))
    if duplicates.n_linked:
        ignored[LINKED] = duplicates.n_linked
    if not batches:
        where = inputs[0] if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1:,} more"
        details = f"; ignored: {describe_ignored(ignored)}" if ignored else ""
        raise RequestError(f"--input: no recording found in {where}{details}")
    return Listing(pa.Table.from_batches(batches, RECORDINGS), ignored, duplicates.n_hard_links)


def describe_not_found(listing: Listing) -> str:
    """Return a text like ``2 of 8 recordings were not found: /a/b.wav, /a/c.wav``."""
    n, n_listed = listing.n_not_found, len(listing.recordings)
    shown = ", ".join(listing.not_found) + (" …" if n > _NOT_FOUND_SHOWN else "")
    verb = "was" if n == 1 else "were"
    hint = ""
    if any("\\" in file for file in listing.not_found):
        hint = "; names with backslashes are Windows paths, and this system separates folders by /"
    return f"{n:,} of {plural(n_listed, 'recording')} {verb} not found: {shown}{hint}"


def describe_ignored(ignored: Counter[str]) -> str:
    """Return a text like ``9 .txt, 3 .xml``, the most frequent suffix first."""
    shown = [f"{n:,} {suffix}" for suffix, n in ignored.most_common(_SUFFIXES_SHOWN)]
    rest = ignored.total() - sum(n for _, n in ignored.most_common(_SUFFIXES_SHOWN))
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)


def _row(entry: Entry) -> Row:
    file, size, version, resolved, hard_link = entry
    identity = file_id(file, size, version)
    return file, size, identity, identity if resolved == file else file_id(resolved, size, version), hard_link


def _all_entries(inputs: list[str], ignored: Counter[str]) -> Generator[Entry]:
    for uri in inputs:
        yield from _entries(uri, ignored)


def _entries(uri: str, ignored: Counter[str]) -> Iterator[Entry]:
    uri = storage.normalise(uri, "--input")
    is_manifest = uri.lower().endswith(MANIFEST_SUFFIXES)
    if storage.is_s3(uri):
        return _list_from_manifest(uri, ignored) if is_manifest else list_from_s3(uri, ignored)
    if is_manifest and os.path.isfile(uri):  # noqa: PTH113 — pathlib raises PermissionError where a folder is closed
        return _list_from_manifest(uri, ignored)
    return list_from_disk(uri, ignored)


def _list_from_manifest(uri: str, ignored: Counter[str]) -> Iterator[Entry]:
    resolve_folder = lru_cache(_CACHED_FOLDERS)(resolve_links)
    with closing(manifest_files(uri)) as lists:
        for files in lists:
            for start in range(0, len(files), _HEAD_REQUESTS):
                chunk = files[start : start + _HEAD_REQUESTS]
                remote = list(dict.fromkeys(file for file in chunk if storage.is_s3(file)))
                remote_entries = dict(zip(remote, head_entries(remote), strict=True))
                for file in chunk:
                    if file in remote_entries:
                        yield remote_entries[file]
                    else:
                        yield from file_entry(file, resolved_name(file, resolve_folder), ignored)
