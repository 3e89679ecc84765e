"""The stored windows of labelled recordings: which there are, a sample of them, their vectors."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.errors import RequestError
from embedding.output.inventory import KEY_RANGE_BYTES, map_in_threads
from embedding.output.shard_reading import open_shard
from embedding.output.shard_schema import EMBED_AGAIN
from embedding.probing.labels import Labels, Names, Truth
from embedding.probing.stratified_sample import Sample
from embedding.schema.vectors import matrix

COLUMNS = ["file_id", "window_index", "start_time", "end_time"]
# Shards whose windows may lie in memory at once, without vectors.
SHARDS_AT_ONCE = 32
# Windows that are read with their vectors at a time.
BATCH_ROWS = 8192


def which_are_stored(files: Names, shards: list[str]) -> Truth:
    """``[files]``: which have windows in these shards."""
    wanted = pa.array(files, pa.string())
    is_stored = np.zeros(len(files), bool)
    for found in map_in_threads(_files, [(uri, wanted) for uri in shards]):
        is_stored[found] = True
    return is_stored


def _files(uri: str, wanted: pa.Array) -> NDArray[np.int64]:
    with open_shard(uri, KEY_RANGE_BYTES) as opened:
        names = opened.read(columns=["file"], use_threads=False)["file"]
    return _index_in(names.unique(), wanted).drop_null().to_numpy()


def _index_in(names: pa.Array, wanted: pa.Array) -> pa.Array:
    return pc.index_in(names, wanted)  # type: ignore[attr-defined]


def first_file(shard: str) -> str:
    """Return the name of the first recording in a shard."""
    with open_shard(shard, KEY_RANGE_BYTES) as opened:
        return next(opened.iter_batches(1, columns=["file"]))["file"][0].as_py()


def draw(labels: Labels, is_test: Truth, shards: list[str], limit: int, seed: int) -> tuple[Sample, Sample]:
    """Draw windows to learn from, and windows for the test.

    Windows to learn from have equal numbers of each class; a window of several classes counts as one of the rarest.
    Windows for the test are drawn from all, so that classes keep their shares.

    Args:
        labels: the labels.
        is_test: ``[recordings]``, the recordings for the test.
        shards: the shards.
        limit: most windows on each side.
        seed: of the random numbers.

    Returns:
        Two samples with COLUMNS, ``recording`` (index into the files of ``labels``), ``shard`` (index into ``shards``)
        and ``row`` (in the shard).
    """
    wanted = pa.array(labels.files, pa.string())
    rng = np.random.default_rng(seed)
    train, test = Sample(limit, rng), Sample(limit, rng)
    n_annotations = np.bincount(labels.label, minlength=len(labels.classes))
    rarity = np.argsort(np.argsort(n_annotations, kind="stable"))  # 0 of the rarest class
    for windows in _of_shards(shards, wanted):
        is_for_test = is_test[windows["recording"].to_numpy()]
        for_test, to_learn = windows.filter(pa.array(is_for_test)), windows.filter(pa.array(~is_for_test))
        test.add(for_test, np.zeros(len(for_test), np.int64))
        window, annotation = labels.pairs(*places(to_learn))
        stratum = np.full(len(to_learn), len(rarity))  # without a label
        np.minimum.at(stratum, window, rarity[labels.label[annotation]])
        train.add(to_learn, stratum)
    return train, test


def places(windows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """``recording``, ``start_time`` and ``end_time``: arrays ``[windows]``."""
    recording, start_s, end_s = (windows[name].to_numpy() for name in ("recording", "start_time", "end_time"))
    return recording, start_s, end_s


def _of_shards(shards: list[str], wanted: pa.Array) -> Iterator[pa.Table]:
    for first in range(0, len(shards), SHARDS_AT_ONCE):
        some = range(first, min(first + SHARDS_AT_ONCE, len(shards)))
        yield from map_in_threads(_windows, [(shards[number], number, wanted) for number in some])


def _windows(uri: str, number: int, wanted: pa.Array) -> pa.Table:
    with open_shard(uri, KEY_RANGE_BYTES) as opened:
        table = opened.read(columns=["file", *COLUMNS], use_threads=False)
    recording = _index_in(table["file"].combine_chunks(), wanted)
    windows = table.select(COLUMNS).replace_schema_metadata(None)
    of_shard = {
        "recording": recording.cast(pa.int64()),
        "shard": pa.array(np.full(len(windows), number, np.int32)),
        "row": pa.array(np.arange(len(windows))),
    }
    for name, values in of_shard.items():
        windows = windows.append_column(name, values)
    return windows.filter(recording.is_valid())


def once(windows: pa.Table) -> pa.Table:
    """Without the rows that are there twice."""
    keys = np.column_stack([windows["file_id"].to_numpy(), windows["window_index"].to_numpy()])
    _, first = np.unique(keys, axis=0, return_index=True)
    return windows.take(pa.array(np.sort(first)))


def vectors_of(windows: pa.Table, shards: list[str], column: str) -> NDArray[np.float32]:
    """``[windows, dim]``, of rows of ``draw`` in the order of their shards and rows.

    Raises:
        OSError: the storage failed.
        RequestError: a shard is damaged, or its vectors are not there, of another length, or not finite.
    """
    shard, row = windows["shard"].to_numpy(), windows["row"].to_numpy()
    found = np.empty((0, 0), np.float32)
    for number in np.unique(shard):
        own = np.arange(*np.searchsorted(shard, (number, number + 1)))
        for first, batch in _batches(shards[number], column):
            if not found.size:
                found = np.empty((len(windows), batch.shape[1]), np.float32)
            if batch.shape[1] != found.shape[1]:
                raise RequestError(f"{shards[number]} holds vectors of another length than the shards before it")
            some = own[slice(*np.searchsorted(row[own], (first, first + len(batch))))]
            found[some] = batch[row[some] - first]
        if not np.isfinite(found[own]).all():
            raise RequestError(f"{shards[number]} holds vectors that are not finite: {EMBED_AGAIN}")
    return found


def _batches(uri: str, column: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The vectors of a shard, some thousand at a time, each time with the row they begin at."""
    first = 0
    with open_shard(uri, vectors=column) as opened:
        for batch in opened.iter_batches(BATCH_ROWS, columns=[column]):
            vectors = matrix(pa.chunked_array([batch[column]]))
            yield first, vectors
            first += len(vectors)
