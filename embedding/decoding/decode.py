"""Recordings to tables of windows: fetch, decode, resample, cut. One row per window.

This is the CPU stage of the pipeline: a generator of events over plain values, without Ray.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import tee
from operator import itemgetter
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from embedding.decoding.audio import Recording, open_recording
from embedding.decoding.audio_faults import AudioFault
from embedding.decoding.cut import cut
from embedding.decoding.events import Decoded, DecodingEvent, Failed, NoMoreWindows, Opened, Unchanged, Windows
from embedding.decoding.fetch import Source, fetch
from embedding.decoding.recorder_chunks import read_chunks
from embedding.decoding.recorder_facts import find_recorder_facts
from embedding.decoding.window_batch import WindowBatch, WindowsByRate
from embedding.schema.batches import by_rate
from embedding.schema.failures import Failure
from embedding.schema.recording_facts import encode_facts
from embedding.schema.recordings import PendingRecording
from embedding.schema.targets import TargetColumn, Targets
from embedding.schema.windows import WindowSpec

# A recording up to this length is decoded to its end before its first window travels on, so that `n_windows` and
# `duration` are what was found, not what the header promises: 10 min at 32 kHz are 77 MB.
WHOLE_RECORDING_S = 600

_Blocks = tuple[NDArray[np.float32], ...]  # mono samples of the same stretch of audio, ``[n]`` for each sample rate


def decode(
    recordings: Sequence[PendingRecording], specs: Sequence[WindowSpec], batch_size: int
) -> Iterator[DecodingEvent]:
    """Decode recordings, in order.

    Args:
        recordings: The recordings, with the targets that need each of them.
        specs: The windows of each target. At different sample rates windows begin and end at the same times. A last
            window that exists at one rate alone, because lengths are rounded to samples, is dropped.
        batch_size: Rows of a table of windows; the last table may have fewer.

    Yields:
        Events. Audio that was decoded before a fault is kept: its windows come as well as the failure.
    """
    batch = WindowBatch(specs, batch_size)
    for pending, source in fetch(recordings):
        try:
            yield from _decode_one(pending, source, specs, batch)
        except (AudioFault, OSError) as error:
            yield Failed(_failure(pending, error), pending.targets)
            yield NoMoreWindows()
    if batch.n_rows:
        yield Windows(batch.take())


def _decode_one(
    pending: PendingRecording, source: Source, specs: Sequence[WindowSpec], batch: WindowBatch
) -> Iterator[DecodingEvent]:
    """Decode one recording.

    Raises:
        AudioFault: The recording has no window.
        OSError: The storage failed.
    """
    place = source.open()
    yield Opened(pending.file)
    if unchanged := _targets_with_same_audio(pending, place, specs):
        yield Unchanged(pending.file_id, unchanged)
        pending = replace(pending, targets=pending.targets - unchanged)
        if not pending.targets:
            yield NoMoreWindows()
            return
    with open_recording(place) as recording:
        with source.open_for_chunks() as stream:
            recording.recorder_facts = encode_facts(find_recorder_facts(read_chunks(stream), recording.comment))
        yield from _cut_one(pending, recording, batch)
        yield Decoded(recording.duration_s, pending.size)


def _failure(pending: PendingRecording, error: AudioFault | OSError) -> Failure:
    if isinstance(error, AudioFault):
        kind, message = error.kind, str(error)
    else:
        kind, message = "io", f"cannot be read: {error.strerror or error}"
    return Failure(pending.file, pending.file_id, pending.size, "decode", kind, message)


def _targets_with_same_audio(pending: PendingRecording, place: str | BinaryIO, specs: Sequence[WindowSpec]) -> Targets:
    """Return the targets that need the recording and have stored this very audio."""
    known = {target: known_hash for target, known_hash in enumerate(pending.known_hashes) if known_hash is not None}
    known = {target: known_hash for target, known_hash in known.items() if target in pending.targets}
    if not known:
        return frozenset()
    found = _audio_hashes(place, [spec.rate_hz for spec in by_rate(specs)])
    return frozenset(target for target, known_hash in known.items() if found.get(specs[target].rate_hz) == known_hash)


def _audio_hashes(place: str | BinaryIO, rates_hz: list[int]) -> Mapping[int, int]:
    """Return the hash of the whole audio at each rate; none if there is a fault in it.

    The recording is decoded twice then, which takes little time beside encoding it once.
    """
    try:
        with open_recording(place) as recording:
            for _ in recording.blocks(*rates_hz):
                pass
            return recording.audio_hashes
    except AudioFault:
        return {}


class _BlocksUntilFault:
    """The blocks of a recording, as a stream that ends at the first fault.

    Attributes:
        fault: The fault that ended the stream; None so far.
    """

    def __init__(self, blocks: Iterator[_Blocks]) -> None:
        self._blocks = blocks
        self.fault: AudioFault | None = None

    def __iter__(self) -> Iterator[_Blocks]:
        try:
            yield from self._blocks
        except AudioFault as fault:
            self.fault = fault


def _cut_one(pending: PendingRecording, recording: Recording, batch: WindowBatch) -> Iterator[DecodingEvent]:
    """Put the windows of a recording into ``batch``; yield the batch whenever it is full.

    Raises:
        AudioFault: The recording has no window.
    """
    blocks = _BlocksUntilFault(recording.blocks(*(spec.rate_hz for spec in batch.specs)))
    pieces: Iterable[WindowsByRate] = _side_by_side(iter(blocks), batch.specs)
    pieces = list(pieces) if recording.duration_s <= WHOLE_RECORDING_S else _one_ahead(pieces)
    n_cut = 0
    is_fault_reported = False
    for windows in pieces:
        if blocks.fault is not None and not is_fault_reported:
            yield Failed(_failure(pending, blocks.fault), pending.targets)
            is_fault_reported = True
        index = np.arange(n_cut, n_cut + len(windows[0]))
        n_cut += len(index)
        targets = _targets_of_windows(pending, index)
        # Windows overlap in memory until they are picked: as many at a time as a batch takes.
        for start in range(0, len(index), batch.size):
            piece = slice(start, start + batch.size)
            needed = targets[piece].needed()
            rows = slice(None) if needed.all() else needed
            picked = tuple(each[piece][rows] for each in windows)
            tables = batch.add(pending, recording, index[piece][rows], targets[piece][rows], picked)
            yield from map(Windows, tables)
    if blocks.fault is not None and not is_fault_reported:  # before the first complete window
        raise blocks.fault
    if not n_cut:
        window_s = batch.specs[0].length / batch.specs[0].rate_hz
        raise AudioFault(
            "short", f"{recording.duration_s:.3f} s are less than a window of {window_s:g} s (--tail drop)"
        )


def _targets_of_windows(pending: PendingRecording, index: NDArray[np.int64]) -> TargetColumn:
    """Return for each window the targets that need the recording and have not stored the window."""
    targets = TargetColumn.repeat(pending.targets, len(index))
    for target, stored in enumerate(pending.stored):
        if stored:
            targets = targets.without(target, np.isin(index, list(stored)))
    return targets


def _side_by_side(blocks: Iterator[_Blocks], specs: Sequence[WindowSpec]) -> Iterator[WindowsByRate]:
    """Cut the blocks of each rate; yield as many windows of one rate as of the others."""
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


def _one_ahead(pieces: Iterable[WindowsByRate]) -> Iterator[WindowsByRate]:
    """Yield each item after the next one is made, so that a fault is known before the last window is yielded."""
    ahead = None
    for windows in pieces:
        if ahead is not None:
            yield ahead
        ahead = windows
    if ahead is not None:
        yield ahead
