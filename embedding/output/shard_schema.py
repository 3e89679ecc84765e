"""The form of a shard, checked when the shard is read: columns, impossible values, and the content of its metadata.

A Parquet file among the shards may come from another program, or be damaged. Types and the number of vectors are
checked in the file's footer; values are checked where they are read.
"""

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding.output import json_files
from embedding.output.json_files import SettingsRecord
from embedding.schema.batches import AUDIO_HASH, WINDOW_COLUMNS
from embedding.schema.vectors import EMBEDDING, count_missing, vector_columns

# Keys of a shard's metadata: the settings; and hashes of the audio of recordings that end in the shard, as base64 of
# pairs of int64 (file_id, hash). Hashes are no column, because readers would come to rely on the column.
SETTINGS_KEY = "avex_batch.settings"
AUDIO_HASHES_KEY = "avex_batch.audio_hashes"

# What the user can do about a damaged shard.
EMBED_AGAIN = "delete it and run jobs.embed again, which embeds its recordings again"

# Far above any useful --shard-rows: vectors of this many rows would be 50 GB. Some kilobytes of Parquet can claim any
# number of equal rows, whose keys take 24 bytes per row in memory.
MOST_ROWS = 1 << 24

_LEAF = ".list.element"  # Parquet's name for the numbers in a column of vectors
_TEXTS = (pa.string(), pa.large_string(), pa.string_view())


class BadShardError(pa.ArrowInvalid):
    """A file that is damaged or not a shard; the message is one line that names the file and says what to do."""


def not_a_shard(uri: str, reason: str = "its columns are not those of a shard") -> BadShardError:
    """Return the error for a Parquet file among the shards that does not have their form."""
    return BadShardError(f"{uri} is no shard of jobs.embed, {reason}: move it elsewhere")


def damaged_file(uri: str, reason: str, advice: str = EMBED_AGAIN) -> BadShardError:
    """Return the error for a file with impossible content."""
    return BadShardError(f"{uri} is damaged ({reason}): {advice}")


@contextmanager
def detect_damage(uri: str, advice: str = EMBED_AGAIN) -> Iterator[None]:
    """Raise BadShardError where the block, which reads a Parquet file, finds damage.

    Args:
        uri: The file.
        advice: What the user can do, for the message.

    Raises:
        BadShardError: The file is no Parquet file, or not a whole one.
        OSError: The storage failed.
    """
    try:
        yield
    except BadShardError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow reports damage as an OSError, too. An OSError of the storage has a number, or the service's error as its
        # cause.
        if isinstance(error, OSError) and not (error.errno is None and error.__cause__ is None):
            raise
        raise damaged_file(uri, (str(error).splitlines() or [type(error).__name__])[0], advice) from error


def check_columns(uri: str, schema: pa.Schema) -> None:
    """Check that a file has the columns of a shard.

    Args:
        uri: The file, for messages.
        schema: Its columns.

    Raises:
        BadShardError: A column is missing, occurs twice or has another type.
    """
    names = schema.names
    for name, expected in WINDOW_COLUMNS:
        if names.count(name) != 1:
            raise not_a_shard(uri)
        found = schema.field(name).type
        if found != expected and not (expected == pa.string() and found in _TEXTS):
            raise not_a_shard(uri, f"its column {name!r} holds {found}, not {expected}")
    if names.count(EMBEDDING) != 1 or EMBEDDING not in vector_columns(schema):
        raise not_a_shard(uri)


def check_form(uri: str, file: pq.ParquetFile) -> None:
    """Check that an open file has the columns of a shard, and no more rows than a shard can have.

    Args:
        uri: The file, for messages.
        file: The open file.

    Raises:
        BadShardError: The file is no shard.
    """
    check_columns(uri, file.schema_arrow)
    if file.metadata.num_rows > MOST_ROWS:
        raise not_a_shard(uri, f"it claims {file.metadata.num_rows:,} rows")


def check_vectors(uri: str, file: pq.ParquetFile) -> None:
    """Check that each row of an open shard has its vectors; only the first vectors are read.

    The first row of each group is read before the counts in the footer, on purpose: reading refuses damage over which
    pyarrow 26 aborts the process when it is asked for the counts. For the same reason statistics, which would say more,
    are not used.

    Args:
        uri: The file, for messages.
        file: The open file.

    Raises:
        BadShardError: A vector is missing.
    """
    schema = file.schema_arrow
    lengths = {f"{name}{_LEAF}": schema.field(name).type.list_size for name in vector_columns(schema)}
    paths = [file.schema.column(leaf).path for leaf in range(len(file.schema))]
    leaves = [(leaf, lengths[path]) for leaf, path in enumerate(paths) if path in lengths]
    for number in range(file.metadata.num_row_groups):
        next(file.iter_batches(1, row_groups=[number], columns=vector_columns(schema), use_threads=False), None)
        group = file.metadata.row_group(number)
        for leaf, length in leaves:
            if group.column(leaf).num_values != length * group.num_rows:  # a missing vector counts as one value
                raise damaged_file(uri, f"vectors of {paths[leaf].removesuffix(_LEAF)!r} are missing")


def check_values(uri: str, table: pa.Table) -> None:
    """Check that no value is missing in a table that was read from a file.

    Args:
        uri: The file, for messages.
        table: Its rows.

    Raises:
        BadShardError: A value is missing.
    """
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count or count_missing(column):
            raise damaged_file(uri, f"values of {name!r} are missing")


def check_keys(
    uri: str, window_index: NDArray[np.int32], n_windows: NDArray[np.int32], duration_s: NDArray[np.float64]
) -> None:
    """Check the keys of a shard.

    Args:
        uri: The file, for messages.
        window_index: ``[rows]``.
        n_windows: ``[rows]``.
        duration_s: ``[rows]``.

    Raises:
        BadShardError: A value is impossible.
    """
    if not len(window_index):
        return
    if window_index.min() < 0 or n_windows.min() < 1:
        raise damaged_file(uri, "a window has a negative index, or its recording has no windows")
    if not (np.isfinite(duration_s).all() and duration_s.min() >= 0):
        raise damaged_file(uri, "a duration is negative or not finite")


def settings_of(uri: str, schema: pa.Schema) -> dict[str, Any]:
    """Return the settings in the metadata of a file; empty where it has none.

    Args:
        uri: The file, for messages.
        schema: Its columns and metadata.

    Raises:
        BadShardError: The metadata does not hold settings.
    """
    try:
        content = (schema.metadata or {}).get(SETTINGS_KEY.encode(), b"{}")
        return json_files.parse(SettingsRecord, content).model_dump(exclude_unset=True)
    except json_files.BadRecordError as error:
        raise damaged_file(uri, f"its settings: {error}") from None


def hashes_of(uri: str, schema: pa.Schema) -> pa.Table:
    """Return the audio hashes in the metadata of a shard: ``file_id`` and AUDIO_HASH.

    Args:
        uri: The file, for messages.
        schema: Its columns and metadata.

    Raises:
        BadShardError: The metadata does not hold pairs of numbers.
    """
    text = (schema.metadata or {}).get(AUDIO_HASHES_KEY.encode(), b"")
    try:
        pairs = np.frombuffer(base64.b64decode(text, validate=True), np.int64).reshape(-1, 2)
    except (binascii.Error, ValueError):
        raise damaged_file(uri, "its audio hashes are not pairs of numbers") from None
    return pa.table({"file_id": pairs[:, 0], AUDIO_HASH[0]: pairs[:, 1]})
