"""Batches of windows, the tables between the stages: a row is one window, however many targets need the window.

A row carries its samples once per sample rate, and behind the encoders the outputs of each target.
"""

from collections.abc import Iterable

import pyarrow as pa

from embedding.schema.targets import FIELD, TargetColumn
from embedding.schema.windows import WindowSpec

# Columns of a window beside its samples and its vector; docs/schema.md gives their meanings.
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

# The hash of the recording's audio, null until all of the audio is decoded. Shards hold the hash in their metadata.
AUDIO_HASH = ("audio_hash", pa.int64())
# What the recorder wrote into the recording's file, as ``recording_facts.encode_facts`` returns it. Shards hold it in
# their metadata, too.
RECORDER_FACTS = ("recorder_facts", pa.string())


def windows_schema(specs: Iterable[WindowSpec]) -> pa.Schema:
    """Return the columns of a table of windows.

    Args:
        specs: The windows of each target. Samples and hashes have a column for each sample rate among them.
    """
    rates = by_rate(specs)
    hashes = [(hash_column(spec.rate_hz), AUDIO_HASH[1]) for spec in rates]
    windows = [(window_column(spec.rate_hz), pa.list_(pa.float32(), spec.length)) for spec in rates]
    return pa.schema([*WINDOW_COLUMNS, FIELD, RECORDER_FACTS, *hashes, *windows])


def by_rate(specs: Iterable[WindowSpec]) -> list[WindowSpec]:
    """Return the windows of all targets, once per sample rate."""
    return list({spec.rate_hz: spec for spec in specs}.values())


def window_column(rate_hz: int) -> str:
    """Return the name of the column of samples at a rate."""
    return f"window_{rate_hz}"


def hash_column(rate_hz: int) -> str:
    """Return the name of the column of audio hashes at a rate."""
    return f"{AUDIO_HASH[0]}_{rate_hz}"


def output_column(target: int, name: str) -> str:
    """Return the name of the column with output ``name`` of the encoder of ``target``."""
    return f"{target}.{name}"


def rows_of_target(rows: pa.Table, target: int, rate_hz: int) -> pa.Table:
    """Return the rows that ``target`` needs, with the columns of its output, RECORDER_FACTS and AUDIO_HASH."""
    columns = {name: name for name, _ in [*WINDOW_COLUMNS, RECORDER_FACTS]} | {hash_column(rate_hz): AUDIO_HASH[0]}
    prefix = output_column(target, "")
    columns |= {name: name.removeprefix(prefix) for name in rows.column_names if name.startswith(prefix)}
    own = rows.select(list(columns)).rename_columns(list(columns.values()))
    needed = TargetColumn.of(rows).needed_by(target)
    return own if needed.all() else own.filter(pa.array(needed))
