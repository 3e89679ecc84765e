"""The form of a shard, checked once when it is read back: columns, values that cannot be, and what its metadata says.

Anybody may have put a Parquet file among the shards, or damaged one. Types and the number of vectors come from the
file's footer; values are checked by whoever reads them.
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

# In the metadata of a shard: its settings; and of the recordings that end in it the hashes of their audio, as base64
# of pairs of int64 (file_id, hash). A column would be part of what readers rely on.
SETTINGS_KEY = "avex_batch.settings"
AUDIO_HASHES_KEY = "avex_batch.audio_hashes"

# The way out of damage.
DO_ANEW = "delete it and run jobs.embed again, which does anew what was in it"

# Far above what --shard-rows makes sense for: vectors of so many rows would be 50 GB. Some kilobytes of Parquet can
# claim any number of equal rows, whose keys take 24 bytes a row once read.
MOST_ROWS = 1 << 24

_LEAF = ".list.element"  # Parquet's name of the numbers in a column of vectors
_TEXTS = (pa.string(), pa.large_string(), pa.string_view())


class BadShardError(pa.ArrowInvalid):
    """A file that is damaged or no shard; the message is one line that names the file and says what to do."""


def not_ours(uri: str, why: str = "by its columns") -> BadShardError:
    """The error of a Parquet file that lies among the shards and does not have their form."""
    return BadShardError(f"{uri} is no shard of jobs.embed, {why}: move it elsewhere")


def damaged(uri: str, why: str, way_out: str = DO_ANEW) -> BadShardError:
    """The error of a file whose content cannot be."""
    return BadShardError(f"{uri} is damaged ({why}): {way_out}")


@contextmanager
def reading(uri: str, way_out: str = DO_ANEW) -> Iterator[None]:
    """A block that reads a Parquet file.

    Raises:
        BadShardError: the file is no Parquet, or not all of it.
        OSError: the storage failed.
    """
    try:
        yield
    except BadShardError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow tells damage as an OSError, too; one of the storage has a number, or the service's own for a cause.
        if isinstance(error, OSError) and not (error.errno is None and error.__cause__ is None):
            raise
        raise damaged(uri, (str(error).splitlines() or [type(error).__name__])[0], way_out) from error


def check_columns(uri: str, schema: pa.Schema) -> None:
    """Check that a file has the columns of a shard.

    Raises:
        BadShardError: a column is missing, is there twice or has another type.
    """
    names = schema.names
    for name, kind in WINDOW_COLUMNS:
        if names.count(name) != 1:
            raise not_ours(uri)
        held = schema.field(name).type
        if held != kind and not (kind == pa.string() and held in _TEXTS):
            raise not_ours(uri, f"its column {name!r} holds {held}, not {kind}")
    if names.count(EMBEDDING) != 1 or EMBEDDING not in vector_columns(schema):
        raise not_ours(uri)


def check_form(uri: str, file: pq.ParquetFile) -> None:
    """Check that an open file has the columns of a shard, and no more rows than a shard can have.

    Raises:
        BadShardError: the file is no shard.
    """
    check_columns(uri, file.schema_arrow)
    if file.metadata.num_rows > MOST_ROWS:
        raise not_ours(uri, f"it claims {file.metadata.num_rows:,} rows")


def check_vectors(uri: str, file: pq.ParquetFile) -> None:
    """Check that each row of an open shard has its vectors, of which only the first ones are read.

    Reading comes first on purpose: it refuses damage that pyarrow 26, asked for the same numbers in the footer, answers
    by aborting the process. For the same reason statistics, which would say more, are not used.

    Raises:
        BadShardError: a vector is missing.
    """
    schema = file.schema_arrow
    numbers = {f"{name}{_LEAF}": schema.field(name).type.list_size for name in vector_columns(schema)}
    leaves = [(at, numbers[path]) for at in range(len(file.schema)) if (path := file.schema.column(at).path) in numbers]
    for number in range(file.metadata.num_row_groups):
        next(file.iter_batches(1, row_groups=[number], columns=vector_columns(schema), use_threads=False), None)
        group = file.metadata.row_group(number)
        for at, size in leaves:
            if group.column(at).num_values != size * group.num_rows:  # a missing vector counts as one value
                raise damaged(uri, f"vectors of {file.schema.column(at).path.removesuffix(_LEAF)!r} are missing")


def check_values(uri: str, table: pa.Table) -> None:
    """Check that no value is missing in a table that was read from a file.

    Raises:
        BadShardError: a value is missing.
    """
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count or count_missing(column):
            raise damaged(uri, f"values of {name!r} are missing")


def check_keys(
    uri: str, window_index: NDArray[np.int32], n_windows: NDArray[np.int32], duration_s: NDArray[np.float64]
) -> None:
    """Check the keys of a shard, arrays ``[rows]``.

    Raises:
        BadShardError: there is a value that no window has.
    """
    if not len(window_index):
        return
    if window_index.min() < 0 or n_windows.min() < 1:
        raise damaged(uri, "a window has a negative index, or is of a recording without windows")
    if not (np.isfinite(duration_s).all() and duration_s.min() >= 0):
        raise damaged(uri, "a duration is no length of time")


def settings_of(uri: str, schema: pa.Schema) -> dict[str, Any]:
    """Return the settings in the metadata of a file; none where it has none.

    Raises:
        BadShardError: they are no settings.
    """
    try:
        content = (schema.metadata or {}).get(SETTINGS_KEY.encode(), b"{}")
        return json_files.parse(SettingsRecord, content).model_dump(exclude_unset=True)
    except json_files.BadRecordError as error:
        raise damaged(uri, f"its settings: {error}") from None


def hashes_of(uri: str, schema: pa.Schema) -> pa.Table:
    """Return the hashes of audio in the metadata of a shard: ``file_id`` and AUDIO_HASH.

    Raises:
        BadShardError: they are no pairs of numbers.
    """
    text = (schema.metadata or {}).get(AUDIO_HASHES_KEY.encode(), b"")
    try:
        pairs = np.frombuffer(base64.b64decode(text, validate=True), np.int64).reshape(-1, 2)
    except (binascii.Error, ValueError):
        raise damaged(uri, "its hashes of audio are no pairs of numbers") from None
    return pa.table({"file_id": pairs[:, 0], AUDIO_HASH[0]: pairs[:, 1]})
