"""A batch of recordings to tables of windows: fetch, decode, resample, cut. One row per window.

This is the CPU stage of the pipeline, a generator over Arrow tables that knows nothing of Ray.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from itertools import tee
from operator import itemgetter
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding import storage
from embedding.config import MOST_MODELS
from embedding.decoding.audio import AudioFault, Recording, open_recording
from embedding.decoding.cut import cut
from embedding.schema.batches import (
    AUDIO_HASH,
    WANTED,
    by_rate,
    hash_column,
    wanted_by_all,
    window_column,
    windows_schema,
)
from embedding.schema.failures import Failure
from embedding.schema.vectors import column
from embedding.schema.windows import WindowSpec

# S3 objects up to this size are fetched whole and many at a time (a request costs 20–60 ms, whatever its size);
# longer ones are read as a stream of ranges.
WHOLE_OBJECT_BYTES = 32 << 20
FETCH_BYTES = 64 << 20
FETCH_OBJECTS = 32

# A recording up to this length is decoded to its end before its first window travels on, so that `n_windows` and
# `duration` are what was found, not what the header promises: 10 min at 32 kHz are 77 MB.
WHOLE_RECORDING_S = 600


_Row = dict[str, Any]  # one row of sources.RECORDINGS, and what else ``decode`` takes
_Block = TypeVar("_Block")
_Windows = tuple[NDArray[np.float32], ...]  # ``[k, length]``, one of each sample rate


class Observer:
    """Who wants to know how decoding goes; this one does not. ``wanted``: bits of the targets that it is told to."""

    def reading(self, file: str) -> None:
        """This recording is about to be opened."""

    def failed(self, failure: Failure, wanted: int) -> None:
        """Told before the failed recording's last window is yielded."""

    def unchanged(self, file_id: int, wanted: int) -> None:
        """A recording's audio is what these have stored of it (``known_hash``): no window of it will come to them."""

    def decoded(self, audio_s: float, n_bytes: int) -> None:
        """A recording of ``n_bytes`` (-1: unknown) was decoded to its end."""

    def without_windows(self) -> None:
        """A recording is done with of which no further window will come."""


def decode(
    recordings: pa.Table, specs: Sequence[WindowSpec], batch_size: int, observer: Observer
) -> Iterator[pa.Table]:
    """Windows of ``recordings``, in order.

    Args:
        recordings: columns of ``sources.RECORDINGS``; optionally WANTED (else every target wants all of them), and per
            target, as lists, ``stored``, the windows to leave out, and ``known_hash``, that of audio which need not be
            embedded again.
        specs: the windows of each target. At different sample rates they begin and end at the same times; where only
            one rate has a last one, by the fraction of a sample, it is dropped.

    Yields:
        tables of ``windows_schema(specs)`` with exactly ``batch_size`` rows; the last may have fewer. What was decoded
        of a recording before a fault is kept, and the fault told to ``observer``.
    """
    batch = _Batch(specs, batch_size)
    everyone = {WANTED[0]: wanted_by_all(len(specs))}
    for row, source in _fetch([everyone | row for row in recordings.to_pylist()]):
        try:
            if isinstance(source, OSError):
                raise source
            observer.reading(row["file"])
            if unchanged := _unchanged(row, source, specs):
                observer.unchanged(row["file_id"], unchanged)
                row[WANTED[0]] &= ~unchanged
                if not row[WANTED[0]]:
                    observer.without_windows()
                    continue
            with open_recording(source) as recording:
                yield from _windows(row, recording, batch, observer)
        except AudioFault as fault:
            _fail(row, fault, observer)
            observer.without_windows()
        except OSError as error:
            _fail(row, AudioFault("io", f"cannot be read: {error.strerror or error}"), observer)
            observer.without_windows()
        else:
            observer.decoded(recording.duration_s, row["size"])
    if batch.n_rows:
        yield batch.take()


def _unchanged(row: _Row, source: str | BinaryIO, specs: Sequence[WindowSpec]) -> int:
    """The targets, of those that want it, that have this very audio already."""
    known = {target: of_it for target, of_it in enumerate(row.get("known_hash") or []) if of_it is not None}
    known = {target: of_it for target, of_it in known.items() if row[WANTED[0]] >> target & 1}
    if not known:
        return 0
    found = _audio_hashes(source, [spec.rate_hz for spec in by_rate(specs)])
    return sum(1 << target for target, of_it in known.items() if found.get(specs[target].rate_hz) == of_it)


def _audio_hashes(source: str | BinaryIO, rates_hz: list[int]) -> dict[int, int]:
    """Of the whole recording, none if there is a fault in it. Decoding twice is little beside encoding once."""
    try:
        with open_recording(source) as recording:
            for _ in recording.blocks(*rates_hz):
                pass
            return recording.audio_hashes
    except AudioFault:
        return {}


def _windows(row: _Row, recording: Recording, batch: "_Batch", observer: Observer) -> Iterator[pa.Table]:
    """Put a recording's windows into ``batch``; yield it whenever it is full."""
    faults: list[AudioFault] = []
    blocks = recording.blocks(*(spec.rate_hz for spec in batch.specs))
    cuts: Iterable[_Windows] = _side_by_side(_until_fault(blocks, faults), batch.specs)
    cuts = list(cuts) if recording.duration_s <= WHOLE_RECORDING_S else _one_ahead(cuts)
    n_cut = 0
    for windows in cuts:
        while faults:
            _fail(row, faults.pop(), observer)
        index = np.arange(n_cut, n_cut + len(windows[0]))
        n_cut += len(index)
        wanted = _wanted(row, index)
        # Windows overlap in memory until they are picked: as many at a time as a batch takes.
        for start in range(0, len(index), batch.size):
            piece = slice(start, start + batch.size)
            some = slice(None) if wanted[piece].all() else wanted[piece] > 0
            picked = tuple(each[piece][some] for each in windows)
            yield from batch.add(row, recording, index[piece][some], wanted[piece][some], picked)
    if faults:  # not one window was complete
        raise faults.pop()
    if not n_cut:
        window_s = batch.specs[0].length / batch.specs[0].rate_hz
        raise AudioFault(
            "short", f"{recording.duration_s:.3f} s are less than a window of {window_s:g} s (--tail drop)"
        )


def _wanted(row: _Row, index: NDArray[np.int64]) -> NDArray[np.uint16]:
    """For each window who wants it: of the targets that want the recording, those that have not stored it."""
    wanted = np.full(len(index), row[WANTED[0]], np.uint16)
    for target, stored in enumerate(row.get("stored") or []):
        if stored:
            wanted[np.isin(index, stored)] &= np.uint16(wanted_by_all(MOST_MODELS) ^ (1 << target))
    return wanted


def _side_by_side(blocks: Iterator[tuple[NDArray[np.float32], ...]], specs: Sequence[WindowSpec]) -> Iterator[_Windows]:
    """The windows of each rate, as many of one as of the others."""
    if len(specs) == 1:
        yield from ((windows,) for windows in cut(map(itemgetter(0), blocks), specs[0]))
        return
    streams = [
        cut(map(itemgetter(at), same), spec)
        for at, (same, spec) in enumerate(zip(tee(blocks, len(specs)), specs, strict=True))
    ]
    held = [next(stream, None) for stream in streams]
    while all(windows is not None for windows in held):
        some: list[NDArray[np.float32]] = [windows for windows in held if windows is not None]
        n = min(map(len, some))
        yield tuple(windows[:n] for windows in some)
        held = [
            windows[n:] if len(windows) > n else next(stream, None)
            for windows, stream in zip(some, streams, strict=True)
        ]


def _one_ahead(cuts: Iterable[_Windows]) -> Iterator[_Windows]:
    """The same, each one after the next is made: whatever ends a recording is then known before its last window."""
    ahead = None
    for windows in cuts:
        if ahead is not None:
            yield ahead
        ahead = windows
    if ahead is not None:
        yield ahead


def _until_fault(blocks: Iterator[_Block], faults: list[AudioFault]) -> Iterator[_Block]:
    """The blocks up to a fault, as a stream that simply ends there; the fault goes into ``faults``."""
    try:
        yield from blocks
    except AudioFault as fault:
        faults.append(fault)


def _fail(row: _Row, fault: AudioFault, observer: Observer) -> None:
    failure = Failure(row["file"], row["file_id"], row["size"], "decode", fault.kind, str(fault))
    observer.failed(failure, row[WANTED[0]])


class _Batch:
    """Windows on their way into a table of ``size`` rows. Each window is copied once, into its place."""

    def __init__(self, specs: Sequence[WindowSpec], size: int) -> None:
        """``specs``: the windows of each target."""
        self.specs = by_rate(specs)
        self.size = size
        self._clear()

    def _clear(self) -> None:
        self.n_rows = 0
        self._windows = [np.empty((self.size, spec.length), dtype=np.float32) for spec in self.specs]
        self._parts: list[pa.Table] = []

    def add(
        self, row: _Row, recording: Recording, index: NDArray[np.int64], wanted: NDArray[np.uint16], windows: _Windows
    ) -> Iterator[pa.Table]:
        """Add ``windows``, number ``index`` (``[k]``) of ``recording``; yield each full table."""
        while len(index):
            n = min(len(index), self.size - self.n_rows)
            for held, added in zip(self._windows, windows, strict=True):
                held[self.n_rows : self.n_rows + n] = added[:n]
            self._parts.append(_columns(row, recording, index[:n], wanted[:n], self.specs))
            self.n_rows += n
            index, wanted, windows = index[n:], wanted[n:], tuple(each[n:] for each in windows)
            if self.n_rows == self.size:
                yield self.take()

    def take(self) -> pa.Table:
        table = pa.concat_tables(self._parts)
        for spec, held in zip(self.specs, self._windows, strict=True):
            table = table.append_column(window_column(spec.rate_hz), column(held[: self.n_rows]))
        self._clear()
        return table.cast(windows_schema(self.specs))


def _columns(
    row: _Row,
    recording: Recording,
    index: NDArray[np.int64],
    wanted: NDArray[np.uint16],
    specs: Sequence[WindowSpec],
) -> pa.Table:
    n = len(index)
    start_s, end_s = specs[0].times(index, recording.duration_s)
    n_windows = min(spec.count(recording.n_samples(spec.rate_hz)) for spec in specs)
    hashes = {hash_column(spec.rate_hz): recording.audio_hashes.get(spec.rate_hz) for spec in specs}
    return pa.table(
        {
            "file": pa.repeat(row["file"], n),
            "file_id": np.full(n, row["file_id"]),
            "window_index": index.astype(np.int32),
            "n_windows": np.full(n, n_windows, dtype=np.int32),
            "start_time": start_s,
            "end_time": end_s,
            "sample_rate": np.full(n, recording.sample_rate, dtype=np.int32),
            "channels": np.full(n, recording.channels, dtype=np.int32),
            "duration": np.full(n, recording.duration_s),
            WANTED[0]: wanted,
        }
        | {name: pa.repeat(pa.scalar(of_audio, AUDIO_HASH[1]), n) for name, of_audio in hashes.items()}
    )


def _fetch(rows: list[_Row]) -> Iterator[tuple[_Row, str | BinaryIO | OSError]]:
    """Each recording with where to read it: its path, a stream, or what the storage said.

    Small S3 objects are fetched in groups, the next group while this one is decoded.
    """
    groups = list(_groups(rows))
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        ahead: Future[list[str | BinaryIO | OSError]] | None = pool.submit(_sources, groups[0]) if groups else None
        for group, following in zip(groups, [*groups[1:], None], strict=False):
            assert ahead is not None
            sources = ahead.result()
            ahead = pool.submit(_sources, following) if following else None
            for row in group:
                # Popped, so that an object's bytes are freed once its windows are cut.
                yield row, sources.pop(0)


def _groups(rows: list[_Row]) -> Iterator[list[_Row]]:
    group: list[_Row] = []
    n_bytes = 0
    for row in rows:
        if group and (n_bytes + row["size"] > FETCH_BYTES or len(group) == FETCH_OBJECTS):
            yield group
            group, n_bytes = [], 0
        group.append(row)
        n_bytes += max(row["size"], 0)
    if group:
        yield group


def _sources(rows: list[_Row]) -> list[str | BinaryIO | OSError]:
    small = [row for row in rows if storage.is_s3(row["file"]) and row["size"] <= WHOLE_OBJECT_BYTES]
    whole = [row["file"] for row in small]
    fetched: dict[str, bytes | OSError] = {}
    if whole:
        try:
            fetched = dict(zip(whole, storage.read_many(whole, [row["size"] for row in small]), strict=True))
        except OSError as error:  # of all of them at once
            fetched = dict.fromkeys(whole, error)
    return [_source(row["file"], fetched) for row in rows]


def _source(file: str, fetched: dict[str, bytes | OSError]) -> str | BinaryIO | OSError:
    if not storage.is_s3(file):
        return file
    if file not in fetched:
        try:
            return storage.open_stream(file)
        except OSError as error:
            return error
    content = fetched.pop(file)
    return content if isinstance(content, OSError) else BytesIO(content)
