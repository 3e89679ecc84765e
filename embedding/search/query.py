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

# Settings in run.json, under the names of the options, with which a clip is encoded.
ENCODING_OPTIONS = ("model", "checkpoint", "window_s", "hop_s", "tail", "pooling", "mask_padding", "precision", "speed")
# Settings that may differ from those of the output: they do not change the vectors that are compared.
IGNORED_SETTINGS = ("layers", "predict", "labels_digest", "device")
# A query is a sound, not the recording of a day.
MAX_CLIP_WINDOWS = 256


def encode_clip(clip: str, store: Store, column: str, n_threads: int) -> NDArray[np.float32]:
    """Return a vector for each window of a clip, computed as the vectors of an output.

    Args:
        clip: Absolute path or URI.
        store: The output.
        column: The column of vectors.
        n_threads: Threads of the encoder.

    Returns:
        ``[windows, dim]``, without windows whose vectors are not finite.

    Raises:
        RequestError: The clip cannot be read, or the weights of the output cannot be loaded.
    """
    # 1. Take the settings of the output.
    run = store.read_json("run.json")
    if run is None:
        raise RequestError(f"{store.root} has no run.json, which says how to encode a clip: search with --like")
    options = {name: run["settings"].get(name) for name in ENCODING_OPTIONS}
    if column != EMBEDDING:
        options["layers"] = run["settings"].get("layers")
    settings = Settings.of(make_config(options | {"input": [clip], "output": store.root}))
    store.refuse_other_settings(
        {name: value for name, value in settings.guarded().items() if name not in IGNORED_SETTINGS}
    )

    # 2. Decode the clip.
    with native_output_hidden():  # libmpg123 warns of every damaged frame
        windows = _decode_clip(clip, settings.windows)
    if len(windows) > MAX_CLIP_WINDOWS:
        raise RequestError(f"--clip: {clip} has more than {MAX_CLIP_WINDOWS} windows: cut out the sound to search for")

    # 3. Encode its windows.
    from embedding.encoding.encoder_loading import load_encoders  # imports OpenVINO

    if settings.precision in GPU_PRECISIONS:
        settings = replace(settings, precision="fp32")  # the nearest precision that CPUs have
    (encoder,) = load_encoders([settings], n_threads)
    spec = settings.windows
    n_audio_samples = spec.audio_samples(windows["start_time"].to_numpy(), windows["end_time"].to_numpy())
    vectors = encoder.encode(matrix(windows[window_column(spec.rate_hz)]), n_audio_samples)[column]
    return vectors[np.isfinite(vectors).all(axis=1)]


def _list_clip(clip: str) -> pa.Table:
    """Return the listing of the clip, with one row.

    Raises:
        RequestError: The clip does not exist, or is a folder or a pattern.
    """
    try:
        recordings = list_recordings([clip]).recordings
    except RequestError as error:
        raise RequestError(str(error).replace("--input", "--clip", 1)) from error
    if recordings["file"].to_pylist() != [clip]:
        raise RequestError(f"--clip: {clip} is not one recording")
    return recordings


def _decode_clip(clip: str, spec: WindowSpec) -> pa.Table:
    """Return the windows of the clip.

    Raises:
        RequestError: The clip, or a part of it, cannot be read.
    """
    for event in decode(read_pending(_list_clip(clip), 1), [spec], MAX_CLIP_WINDOWS + 1):
        if isinstance(event, Failed):
            raise RequestError(f"--clip: {clip}: {event.failure.kind}: {event.failure.message}")
        if isinstance(event, Windows):
            return event.table
    raise RequestError(f"--clip: {clip}: the file has no audio")


def find_window(file: str, at_s: float, shards: list[str], column: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Find the stored window of a recording at a time.

    Args:
        file: The recording, as listed.
        at_s: Seconds from the start of the recording.
        shards: URIs of the shards.
        column: The column of vectors.

    Returns:
        The vector of the window, ``[1, dim]``, and its row with WINDOW_COLUMNS.

    Raises:
        RequestError: No such window is stored.
    """
    tables = map_in_threads(_read_windows, [(uri, file, column) for uri in shards])
    tables = [table for table in tables if table is not None]
    if not tables:
        raise RequestError(f"--like: no window of {file} is stored")
    windows = pa.concat_tables(tables).sort_by("start_time")
    start_s, end_s = windows["start_time"].to_numpy(), windows["end_time"].to_numpy()
    rows = np.flatnonzero((start_s <= at_s) & (at_s < end_s))
    if not len(rows):
        stored = f"whose windows begin at {start_s[0]:g} s and end before {end_s[-1]:g} s"
        raise RequestError(f"--at: no window holds {at_s:g} s of {file}, {stored}")
    window = windows.slice(rows[0], 1)
    return matrix(window[column]), window.select([name for name, _ in WINDOW_COLUMNS]).to_pylist()[0]


def _read_windows(uri: str, file: str, column: str) -> pa.Table | None:
    """Return the windows of a recording in a shard, with their vectors; None if there are none."""
    with open_shard(uri, vectors=column) as shard:
        names = shard.read(columns=["file"], use_threads=False)["file"].combine_chunks()
        is_of_file = pc.equal(names, file)  # type: ignore[attr-defined]
        if not is_of_file.true_count:
            return None  # without reading vectors
        columns = [*(name for name, _ in WINDOW_COLUMNS), column]
        windows = shard.read(columns=columns, use_threads=False).filter(is_of_file).replace_schema_metadata(None)
        check_values(uri, windows)
        return windows
