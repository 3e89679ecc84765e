"""The stored windows of labelled recordings: a sample of them, and their vectors."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.errors import RequestError
from embedding.output.inventory import KEY_RANGE_BYTES, map_in_threads
from embedding.output.shard_reading import open_shard
from embedding.output.shard_schema import EMBED_AGAIN
from embedding.probing.labels import Booleans, Floats, Integers, Labels, Names
from embedding.probing.stratified_sample import StratifiedSample
from embedding.schema.vectors import matrix

WINDOW_KEYS = ["file_id", "window_index", "start_time", "end_time"]
# Shards whose windows may be in memory at once, without vectors.
SHARDS_AT_ONCE = 32
# Windows that are read at a time with their vectors.
BATCH_ROWS = 8192


def find_stored(files: Names, shards: list[str]) -> Booleans:
    """Return which recordings have windows in these shards, as ``[files]``."""
    labelled = pa.array(files, pa.string())
    is_stored = np.zeros(len(files), bool)
    for positions in map_in_threads(_find_files, [(uri, labelled) for uri in shards]):
        is_stored[positions] = True
    return is_stored


def _find_files(uri: str, labelled: pa.Array) -> Integers:
    """Return the positions in ``labelled`` of the recordings in a shard."""
    with open_shard(uri, KEY_RANGE_BYTES) as shard:
        files = shard.read(columns=["file"], use_threads=False)["file"]
    return _index_in(files.unique(), labelled).drop_null().to_numpy()


def stored_files(shards: list[str]) -> list[str]:
    """Return the names of all recordings in some shards."""
    names: set[str] = set()
    for files in map_in_threads(_read_files, [(uri,) for uri in shards]):
        names.update(files)
    return sorted(names)


def _read_files(uri: str) -> list[str]:
    with open_shard(uri, KEY_RANGE_BYTES) as shard:
        return shard.read(columns=["file"], use_threads=False)["file"].unique().to_pylist()


def _index_in(files: pa.Array, labelled: pa.Array) -> pa.Array:
    return pc.index_in(files, labelled)  # type: ignore[attr-defined]


def first_file(uri: str) -> str:
    """Return the name of the first recording in a shard."""
    with open_shard(uri, KEY_RANGE_BYTES) as shard:
        return next(shard.iter_batches(1, columns=["file"]))["file"][0].as_py()


def sample_windows(
    labels: Labels, is_test: Booleans, shards: list[str], limit: int, seed: int
) -> tuple[StratifiedSample, StratifiedSample]:
    """Draw windows for training, and windows for the test.

    Windows for training have equal numbers of each class; a window of several classes counts as one of the rarest.
    Windows for the test are drawn from all, so that classes keep their shares.

    Args:
        labels: The labels.
        is_test: ``[recordings]``, the recordings for the test.
        shards: URIs of the shards.
        limit: Largest number of windows in each sample.
        seed: Seed of the random numbers.

    Returns:
        Two samples with WINDOW_KEYS, ``recording`` (index into the files of ``labels``), ``shard`` (index into
        ``shards``) and ``row`` (in the shard).
    """
    labelled = pa.array(labels.files, pa.string())
    rng = np.random.default_rng(seed)
    train, test = StratifiedSample(limit, rng), StratifiedSample(limit, rng)
    n_annotations = np.bincount(labels.label, minlength=len(labels.classes))
    rarity = np.argsort(np.argsort(n_annotations, kind="stable"))  # 0 for the rarest class
    for stored in _read_labelled_windows(shards, labelled):
        windows = stored.filter(pa.array(labels.is_usable(*recording_and_times(stored))))
        is_test_window = is_test[windows["recording"].to_numpy()]
        test_windows, train_windows = (windows.filter(pa.array(which)) for which in (is_test_window, ~is_test_window))
        test.add(test_windows, np.zeros(len(test_windows), np.int64))
        window, annotation = labels.match_windows(*recording_and_times(train_windows))
        stratum = np.full(len(train_windows), len(rarity))  # the last stratum: windows without a label
        np.minimum.at(stratum, window, rarity[labels.label[annotation]])
        train.add(train_windows, stratum)
    return train, test


def recording_and_times(windows: pa.Table) -> tuple[Integers, Floats, Floats]:
    """Return the columns ``recording``, ``start_time`` and ``end_time`` as arrays."""
    recording, start_s, end_s = (windows[name].to_numpy() for name in ("recording", "start_time", "end_time"))
    return recording, start_s, end_s


def _read_labelled_windows(shards: list[str], labelled: pa.Array) -> Iterator[pa.Table]:
    for first in range(0, len(shards), SHARDS_AT_ONCE):
        numbers = range(first, min(first + SHARDS_AT_ONCE, len(shards)))
        yield from map_in_threads(_read_shard, [(shards[number], number, labelled) for number in numbers])


def _read_shard(uri: str, number: int, labelled: pa.Array) -> pa.Table:
    """Return the windows of labelled recordings in a shard, without vectors; ``number`` is the shard's index."""
    with open_shard(uri, KEY_RANGE_BYTES) as shard:
        table = shard.read(columns=["file", *WINDOW_KEYS], use_threads=False)
    recording = _index_in(table["file"].combine_chunks(), labelled)
    windows = table.select(WINDOW_KEYS).replace_schema_metadata(None)
    origin = {
        "recording": recording.cast(pa.int64()),
        "shard": pa.array(np.full(len(windows), number, np.int32)),
        "row": pa.array(np.arange(len(windows))),
    }
    for name, values in origin.items():
        windows = windows.append_column(name, values)
    return windows.filter(recording.is_valid())


def drop_repeated(windows: pa.Table) -> pa.Table:
    """Return the first row of each window, in order."""
    keys = np.column_stack([windows["file_id"].to_numpy(), windows["window_index"].to_numpy()])
    _, first = np.unique(keys, axis=0, return_index=True)
    return windows.take(pa.array(np.sort(first)))


def read_vectors(windows: pa.Table, shards: list[str], column: str) -> NDArray[np.float32]:
    """Read the vectors of windows.

    Args:
        windows: Rows of a sample of ``sample_windows``, in the order of shards and rows.
        shards: URIs of the shards.
        column: The column of vectors.

    Returns:
        ``[windows, dim]``.

    Raises:
        OSError: The storage failed.
        RequestError: A shard is damaged, or its vectors are missing, of another length, or not finite.
    """
    shard, row = windows["shard"].to_numpy(), windows["row"].to_numpy()
    vectors = np.empty((0, 0), np.float32)
    for number in np.unique(shard):
        in_shard = np.arange(*np.searchsorted(shard, (number, number + 1)))
        for first_row, batch in _read_batches(shards[number], column):
            if not vectors.size:
                vectors = np.empty((len(windows), batch.shape[1]), np.float32)
            if batch.shape[1] != vectors.shape[1]:
                raise RequestError(f"{shards[number]} holds vectors of another length than the shards before it")
            in_batch = in_shard[slice(*np.searchsorted(row[in_shard], (first_row, first_row + len(batch))))]
            vectors[in_batch] = batch[row[in_batch] - first_row]
        if not np.isfinite(vectors[in_shard]).all():
            raise RequestError(f"{shards[number]} holds vectors that are not finite: {EMBED_AGAIN}")
    return vectors


def _read_batches(uri: str, column: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the vectors of a shard in batches, each with the row of its first vector."""
    first_row = 0
    with open_shard(uri, vectors=column) as shard:
        for batch in shard.iter_batches(BATCH_ROWS, columns=[column]):
            vectors = matrix(pa.chunked_array([batch[column]]))
            yield first_row, vectors
            first_row += len(vectors)
