"""What travels between the stages: a row is one window, whatever number of models want it.

Each model of a run is a target, with an output of its own. A row says which targets want it, as bits of a number; it
carries its samples once per sample rate, and behind the encoder what each target gets.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from embedding.config import MOST_MODELS
from embedding.schema.windows import WindowSpec

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

# The hash of the recording's audio, null until it is known. In a shard it becomes metadata.
AUDIO_HASH = ("audio_hash", pa.int64())

# Bit t: target t wants this window (or, of a recording, windows of it).
WANTED = ("wanted", pa.uint16())


def windows_schema(specs: Iterable[WindowSpec]) -> pa.Schema:
    """Columns of a table of windows: samples and hashes of every rate of ``specs``, one per target."""
    rates = by_rate(specs)
    hashes = [(hash_column(spec.rate_hz), AUDIO_HASH[1]) for spec in rates]
    windows = [(window_column(spec.rate_hz), pa.list_(pa.float32(), spec.length)) for spec in rates]
    return pa.schema([*WINDOW_COLUMNS, WANTED, *hashes, *windows])


def by_rate(specs: Iterable[WindowSpec]) -> list[WindowSpec]:
    """The windows of all targets, once per sample rate."""
    return list({spec.rate_hz: spec for spec in specs}.values())


def window_column(rate_hz: int) -> str:
    return f"window_{rate_hz}"


def hash_column(rate_hz: int) -> str:
    return f"{AUDIO_HASH[0]}_{rate_hz}"


def output_column(target: int, name: str) -> str:
    """Of what the encoder of ``target`` gives; ``name`` is that of the output."""
    return f"{target}.{name}"


def wanted_by_all(n_targets: int) -> int:
    return (1 << n_targets) - 1


def targets_in(wanted: int) -> Iterator[int]:
    """The targets whose bits are set."""
    return (target for target in range(MOST_MODELS) if wanted >> target & 1)


def of_target(rows: pa.Table, target: int, rate_hz: int) -> pa.Table:
    """The rows that ``target`` wants, with the columns of its output and AUDIO_HASH."""
    columns = {name: name for name, _ in WINDOW_COLUMNS} | {hash_column(rate_hz): AUDIO_HASH[0]}
    prefix = output_column(target, "")
    columns |= {name: name.removeprefix(prefix) for name in rows.column_names if name.startswith(prefix)}
    own = rows.select(list(columns)).rename_columns(list(columns.values()))
    is_wanted = (rows[WANTED[0]].to_numpy() >> np.uint16(target) & np.uint16(1)).astype(bool)
    return own if is_wanted.all() else own.filter(pa.array(is_wanted))
