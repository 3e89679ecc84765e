"""The query of a search as vectors: of a clip, encoded as the output was, or of a stored window."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.config import GPU_PRECISIONS, make_config
from embedding.decoding.decode import decode
from embedding.decoding.events import Failed, Windows
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.listing.listing import list_recordings
from embedding.output.inventory import map_in_threads
from embedding.output.shard_reading import open_shard
from embedding.output.shard_schema import check_values
from embedding.output.store import Store
from embedding.quiet import native_output_hidden
from embedding.schema.batches import WINDOW_COLUMNS, window_column
from embedding.schema.recordings import read_pending
from embedding.schema.vectors import EMBEDDING, matrix
from embedding.schema.windows import WindowSpec

# What run.json says of the settings, under the names of the options.
OPTIONS = ("model", "checkpoint", "window_s", "hop_s", "tail", "pooling", "mask_padding", "precision")
# What stands beside the vectors that are compared.
BESIDE = ("layers", "predict", "labels_digest", "device")
# Of a clip: a query is a sound, not a recording of a day.
MOST_WINDOWS = 256


def of_clip(clip: str, store: Store, column: str, n_threads: int) -> NDArray[np.float32]:
    """Return a vector for each window of a clip, ``[windows, dim]``, computed as the vectors of an output.

    Args:
        clip: absolute path or URI.
        store: the output.
        column: the column of vectors.
        n_threads: threads of the encoder.

    Raises:
        RequestError: the clip cannot be read, or the output's weights cannot be had.
    """
    run = store.read_json("run.json")
    if run is None:
        raise RequestError(f"{store.root} has no run.json, so nothing says how to encode a clip: search with --like")
    options = {name: run["settings"].get(name) for name in OPTIONS}
    if column != EMBEDDING:
        options["layers"] = run["settings"].get("layers")
    settings = Settings.of(make_config(options | {"input": [clip], "output": store.root}))
    store.refuse_other_settings({name: value for name, value in settings.guarded().items() if name not in BESIDE})
    # torch and avex take seconds.
    from embedding.encoding.devices import Cpu
    from embedding.encoding.encoder import load_encoders

    with native_output_hidden():  # libmpg123 warns of every damaged frame
        windows = _windows(clip, settings.windows)
    if len(windows) > MOST_WINDOWS:
        raise RequestError(f"--clip: {clip} has more than {MOST_WINDOWS} windows: cut out the sound to search for")
    spec = settings.windows
    n_audio = spec.audio_samples(windows["start_time"].to_numpy(), windows["end_time"].to_numpy())
    if settings.precision in GPU_PRECISIONS:  # the nearest that a CPU computes in
        settings = replace(settings, precision="fp32")
    (encoder,) = load_encoders([settings], Cpu(), n_threads)
    vectors = encoder.encode(matrix(windows[window_column(spec.rate_hz)]), n_audio)[column]
    return vectors[np.isfinite(vectors).all(axis=1)]


def _recording(clip: str) -> pa.Table:
    """The clip as a listing of one."""
    try:
        found = list_recordings([clip]).recordings
    except RequestError as error:
        raise RequestError(str(error).replace("--input", "--clip", 1)) from error
    if found["file"].to_pylist() != [clip]:
        raise RequestError(f"--clip: {clip} is not one recording")
    return found


def _windows(clip: str, spec: WindowSpec) -> pa.Table:
    """Return the windows of the clip.

    Raises:
        RequestError: the clip cannot be read, or not all of it.
    """
    for event in decode(read_pending(_recording(clip), 1), [spec], MOST_WINDOWS + 1):
        if isinstance(event, Failed):
            raise RequestError(f"--clip: {clip}: {event.failure.kind}: {event.failure.message}")
        if isinstance(event, Windows):
            return event.table
    raise RequestError(f"--clip: {clip}: no audio in it")


def of_window(file: str, at_s: float, shards: list[str], column: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """The vector ``[1, dim]`` in ``column`` of the stored window of ``file`` in which ``at_s`` lies, and its row.

    Raises:
        RequestError: there is none.
    """
    found = [table for table in map_in_threads(_read, [(uri, file, column) for uri in shards]) if table is not None]
    if not found:
        raise RequestError(f"--like: no window of {file} is stored")
    windows = pa.concat_tables(found).sort_by("start_time")
    start_s, end_s = windows["start_time"].to_numpy(), windows["end_time"].to_numpy()
    within = np.flatnonzero((start_s <= at_s) & (at_s < end_s))
    if not len(within):
        stored = f"whose windows begin at {start_s[0]:g} s and end before {end_s[-1]:g} s"
        raise RequestError(f"--at: no window holds {at_s:g} s of {file}, {stored}")
    window = windows.slice(within[0], 1)
    return matrix(window[column]), window.select([name for name, _ in WINDOW_COLUMNS]).to_pylist()[0]


def _read(uri: str, file: str, column: str) -> pa.Table | None:
    """The windows of ``file`` in a shard; the vectors of a shard that has none are not read."""
    with open_shard(uri, vectors=column) as shard:
        names = shard.read(columns=["file"], use_threads=False)["file"].combine_chunks()
        is_own = pc.equal(names, file)  # type: ignore[attr-defined]
        if not is_own.true_count:
            return None
        wanted = [*(name for name, _ in WINDOW_COLUMNS), column]
        windows = shard.read(columns=wanted, use_threads=False).filter(is_own).replace_schema_metadata(None)
        check_values(uri, windows)
        return windows
