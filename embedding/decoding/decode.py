"""A batch of recordings to tables of windows: fetch, decode, resample, cut. One row per window.

This is the CPU stage of the pipeline, a generator over Arrow tables that knows nothing of Ray.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding import storage
from embedding.decoding.audio import AudioFault, Recording, open_recording
from embedding.decoding.windows import WindowSpec, cut

# S3 objects up to this size are fetched whole and many at a time (a request costs 20–60 ms, whatever its size);
# longer ones are read as a stream of ranges.
WHOLE_OBJECT_BYTES = 32 << 20
FETCH_BYTES = 64 << 20
FETCH_OBJECTS = 32

# A recording up to this length is decoded to its end before its first window travels on, so that `n_windows` and
# `duration` are what was found, not what the header promises: 10 min at 32 kHz are 77 MB.
WHOLE_RECORDING_S = 600


_Row = dict[str, Any]  # one row of sources.RECORDINGS


@dataclass(frozen=True)
class Failure:
    """Why a recording has no vectors, or fewer than it should. ``stage`` is where, ``kind`` what, for counting.

    Kinds of the stage ``decode``: those of ``AudioFault``, and ``io``, the storage did not deliver it.
    """

    file: str
    file_id: int
    size: int
    stage: str
    kind: str
    message: str


# What is known of a window besides its samples and its vector; docs/schema.md says what each means.
WINDOW_COLUMNS = [
    ("file", pa.string()),
    ("file_id", pa.int64()),
    ("window_index", pa.int32()),
    ("n_windows", pa.int32()),
    ("start_time", pa.float64()),
    ("end_time", pa.float64()),
    ("sample_rate", pa.int32()),
    ("channels", pa.int32()),
    ("duration", pa.float64()),
]


# What travels besides, and becomes metadata of a shard: the hash of the recording's audio, null until it is known.
AUDIO_HASH = ("audio_hash", pa.int64())


def windows_schema(spec: WindowSpec) -> pa.Schema:
    """Columns of a table of windows: the output's, with ``window`` (float32 samples) where the vector will be."""
    return pa.schema([*WINDOW_COLUMNS, AUDIO_HASH, ("window", pa.list_(pa.float32(), spec.length))])


class Observer:
    """Who wants to know how decoding goes; this one does not."""

    def reading(self, file: str) -> None:
        """This recording is about to be opened."""

    def failed(self, failure: Failure) -> None:
        """Told before the failed recording's last window is yielded."""

    def unchanged(self, file_id: int) -> None:
        """A recording's audio is what is stored of it already (``known_hash``): no window of it will come."""

    def decoded(self, audio_s: float, n_bytes: int) -> None:
        """A recording of ``n_bytes`` (-1: unknown) was decoded to its end."""

    def without_windows(self) -> None:
        """A recording is done with of which no further window will come."""


def decode(recordings: pa.Table, spec: WindowSpec, batch_size: int, observer: Observer) -> Iterator[pa.Table]:
    """Windows of ``recordings``, in order.

    Args:
        recordings: columns of ``sources.RECORDINGS``; optionally ``stored``, the windows of each to leave out, and
            ``known_hash``, that of audio which need not be embedded again.

    Yields:
        tables of ``windows_schema(spec)`` with exactly ``batch_size`` rows; the last may have fewer. What was decoded
        of a recording before a fault is kept, and the fault told to ``observer``.
    """
    batch = _Batch(spec, batch_size)
    for row, source in _fetch(recordings.to_pylist()):
        try:
            if isinstance(source, OSError):
                raise source
            observer.reading(row["file"])
            if row.get("known_hash") is not None and _audio_hash(source, spec.rate_hz) == row["known_hash"]:
                observer.unchanged(row["file_id"])
                observer.without_windows()
                continue
            with open_recording(source) as recording:
                yield from _windows(row, recording, batch, observer)
        except AudioFault as fault:
            observer.failed(_failure(row, fault.kind, str(fault)))
            observer.without_windows()
        except OSError as error:
            observer.failed(_failure(row, "io", f"cannot be read: {error.strerror or error}"))
            observer.without_windows()
        else:
            observer.decoded(recording.duration_s, row["size"])
    if batch.n_rows:
        yield batch.take()


def _audio_hash(source: str | BinaryIO, rate_hz: int) -> int | None:
    """Of the whole recording, None if there is a fault in it. Decoding twice is little beside encoding once."""
    try:
        with open_recording(source) as recording:
            for _ in recording.blocks(rate_hz):
                pass
            return recording.audio_hash
    except AudioFault:
        return None


def _windows(row: _Row, recording: Recording, batch: "_Batch", observer: Observer) -> Iterator[pa.Table]:
    """Put a recording's windows into ``batch``; yield it whenever it is full."""
    spec = batch.spec
    faults: list[AudioFault] = []
    cuts: Iterable[NDArray[np.float32]] = cut(_until_fault(recording.blocks(spec.rate_hz), faults), spec)
    cuts = list(cuts) if recording.duration_s <= WHOLE_RECORDING_S else _one_ahead(cuts)
    stored = np.array(row.get("stored") or [], dtype=np.int64)  # windows that a former run has written
    n_cut = 0
    for windows in cuts:
        while faults:
            fault = faults.pop()
            observer.failed(_failure(row, fault.kind, str(fault)))
        index = np.arange(n_cut, n_cut + len(windows))
        n_cut += len(windows)
        missing = ~np.isin(index, stored) if len(stored) else slice(None)
        yield from batch.add(row, recording, index[missing], windows[missing])
    if faults:  # not one window was complete
        raise faults.pop()
    if not n_cut:
        window_s = spec.length / spec.rate_hz
        raise AudioFault(
            "short", f"{recording.duration_s:.3f} s are less than a window of {window_s:g} s (--tail drop)"
        )


def _one_ahead(cuts: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The same, each one after the next is made: whatever ends a recording is then known before its last window."""
    ahead = None
    for windows in cuts:
        if ahead is not None:
            yield ahead
        ahead = windows
    if ahead is not None:
        yield ahead


def _until_fault(blocks: Iterator[NDArray[np.float32]], faults: list[AudioFault]) -> Iterator[NDArray[np.float32]]:
    """The blocks up to a fault, as a stream that simply ends there; the fault goes into ``faults``."""
    try:
        yield from blocks
    except AudioFault as fault:
        faults.append(fault)


def _failure(row: _Row, kind: str, message: str) -> Failure:
    return Failure(row["file"], row["file_id"], row["size"], "decode", kind, message)


class _Batch:
    """Windows on their way into a table of ``size`` rows. Each window is copied once, into its place."""

    def __init__(self, spec: WindowSpec, size: int) -> None:
        self.spec = spec
        self.size = size
        self._clear()

    def _clear(self) -> None:
        self.n_rows = 0
        self._windows = np.empty((self.size, self.spec.length), dtype=np.float32)
        self._parts: list[pa.Table] = []

    def add(
        self, row: _Row, recording: Recording, index: NDArray[np.int64], windows: NDArray[np.float32]
    ) -> Iterator[pa.Table]:
        """Add ``windows`` (``[k, length]``), number ``index`` (``[k]``) of ``recording``; yield each full table."""
        while len(windows):
            n = min(len(windows), self.size - self.n_rows)
            self._windows[self.n_rows : self.n_rows + n] = windows[:n]
            self._parts.append(_columns(row, recording, index[:n], self.spec))
            self.n_rows += n
            index, windows = index[n:], windows[n:]
            if self.n_rows == self.size:
                yield self.take()

    def take(self) -> pa.Table:
        samples = pa.array(self._windows[: self.n_rows].reshape(-1))
        window = pa.FixedSizeListArray.from_arrays(samples, self.spec.length)
        table = pa.concat_tables(self._parts).append_column("window", window)
        self._clear()
        return table.cast(windows_schema(self.spec))


def _columns(row: _Row, recording: Recording, index: NDArray[np.int64], spec: WindowSpec) -> pa.Table:
    n = len(index)
    start_s, end_s = spec.times(index, recording.duration_s)
    return pa.table(
        {
            "file": pa.repeat(row["file"], n),
            "file_id": np.full(n, row["file_id"]),
            "window_index": index.astype(np.int32),
            "n_windows": np.full(n, spec.count(recording.n_samples(spec.rate_hz)), dtype=np.int32),
            "start_time": start_s,
            "end_time": end_s,
            "sample_rate": np.full(n, recording.sample_rate, dtype=np.int32),
            "channels": np.full(n, recording.channels, dtype=np.int32),
            "duration": np.full(n, recording.duration_s),
            "audio_hash": pa.repeat(pa.scalar(recording.audio_hash, pa.int64()), n),
        }
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
