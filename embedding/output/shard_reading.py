"""Reading of shards and failure files; everything that is read is checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage
from embedding.config import MODEL_FOLDER
from embedding.errors import RequestError
from embedding.output.inventory import KEY_RANGE_BYTES
from embedding.output.shard_facts import facts_of, look_up_facts
from embedding.output.shard_schema import (
    EMBED_AGAIN,
    BadShardError,
    check_columns,
    check_form,
    check_values,
    check_vectors,
    detect_damage,
    hashes_of,
    settings_of,
)
from embedding.schema.batches import AUDIO_HASH, RECORDER_FACTS, WINDOW_COLUMNS
from embedding.schema.failures import FAILURES
from embedding.schema.vectors import EMBEDDING, vector_columns
from embedding.storage import s3

# Failures as they are read back, each with the run that recorded it.
STORED_FAILURES = FAILURES.append(pa.field("run_id", pa.string()))

_BUFFER_BYTES = 64 << 10  # read at a time from a column of which only the first vectors are needed


# --- for jobs that read an output -------------------------------------------------------------------------------------


def list_shards(root: str) -> list[str]:
    """Return the URIs of the shards of an output, in order.

    Args:
        root: Directory or prefix of the output.

    Raises:
        OSError: The storage failed.
        RequestError: There are no shards.
    """
    shards = list(storage.list_names(storage.join(root, "embeddings"), ".parquet"))
    if not shards:
        raise no_embeddings_error(root)
    return shards


def no_embeddings_error(root: str) -> RequestError:
    """Return the error for an output without embeddings; it suggests a next step."""
    folder = storage.first_folder(root, MODEL_FOLDER)
    if folder is None:
        if next(storage.list_names(storage.join(root, "failures"), ".parquet"), None) is not None:
            return RequestError(
                f"{root} holds failures alone, no embeddings: python -m jobs.report {root} counts them by kind"
            )
        return RequestError(f"{root} holds no embeddings: write them with jobs.embed")
    return RequestError(f"{root} holds the outputs of several models: name one of them, like {root}/{folder}")


@contextmanager
def refuse_damage(uri: str, advice: str) -> Iterator[None]:
    """Refuse a Parquet file in which the block, which reads the file, finds damage.

    Args:
        uri: The file.
        advice: What the user can do, for the message.

    Raises:
        OSError: The storage failed.
        RequestError: The file is no Parquet file, or not a whole one.
    """
    try:
        with detect_damage(uri, advice):
            yield
    except BadShardError as error:
        raise RequestError(str(error)) from error


@contextmanager
def open_shard(
    uri: str, range_bytes: int = s3.RANGE_BYTES, *, vectors: str = EMBEDDING, **options: Any
) -> Iterator[pq.ParquetFile]:
    """Open a shard while the block runs.

    Args:
        uri: The shard.
        range_bytes: Bytes of a request to S3.
        vectors: A column of vectors that the shard must have.
        options: Options of ``ParquetFile``.

    Raises:
        OSError: The storage failed.
        RequestError: The file is damaged, or no shard with these vectors.
    """
    with refuse_damage(uri, EMBED_AGAIN), storage.open_stream(uri, range_bytes) as stream:
        file = pq.ParquetFile(stream, **options)
        check_form(uri, file)
        refuse_other_columns(uri, file.schema_arrow, vectors)
        yield file


def refuse_other_columns(uri: str, schema: pa.Schema, vectors: str) -> None:
    """Refuse a Parquet file among the shards that does not have their columns, for example one of another program.

    Args:
        uri: The file.
        schema: Its columns.
        vectors: A column of vectors that the file must have.

    Raises:
        RequestError: The file does not have the columns.
    """
    with refuse_damage(uri, EMBED_AGAIN):
        check_columns(uri, schema)
    if vectors not in vector_columns(schema):
        raise RequestError(f"{uri} holds no vectors of {vectors!r}, but other shards do: {EMBED_AGAIN}")


# --- for the store; damage is a BadShardError -------------------------------------------------------------------------


def read_shard(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of a shard, with AUDIO_HASH and RECORDER_FACTS as columns.

    Args:
        uri: The shard.
        columns: Read only these columns; they must include ``file_id``.

    Raises:
        OSError: The storage failed.
        BadShardError: The file is damaged, or no shard.
    """
    with detect_damage(uri), storage.open_stream(uri) as stream:
        file = pq.ParquetFile(stream)
        check_form(uri, file)
        table = file.read(columns=columns, use_threads=False)
        table.validate(full=True)
        check_values(uri, table)
        hashes, facts = hashes_of(uri, file.schema_arrow), facts_of(uri, file.schema_arrow)
    ids = table["file_id"].to_numpy()
    table = table.append_column(AUDIO_HASH[0], look_up_hashes(ids, hashes))
    return table.append_column(RECORDER_FACTS[0], look_up_facts(ids, facts)).replace_schema_metadata(None)


def read_schema(uri: str) -> pa.Schema:
    """Return the columns and the metadata of a shard.

    Raises:
        OSError: The storage failed.
        BadShardError: The file is damaged.
    """
    with detect_damage(uri), storage.open_stream(uri) as stream:
        return pq.read_schema(stream)


def examine_shard(uri: str) -> dict[str, Any]:
    """Check a whole shard except the numbers in its vectors, most of which are not read; return its settings.

    Raises:
        OSError: The storage failed.
        BadShardError: The file is damaged, or no shard.
    """
    read_shard(uri, [name for name, _ in WINDOW_COLUMNS])
    with detect_damage(uri), storage.open_stream(uri, KEY_RANGE_BYTES) as stream:
        file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES)
        check_vectors(uri, file)
        return settings_of(uri, file.schema_arrow)


def read_failures(uri: str) -> pa.Table:
    """Return the rows of a failure file, a table of STORED_FAILURES.

    Raises:
        OSError: The storage failed.
        BadShardError: The file is damaged.
    """
    with storage.open_stream(uri) as stream, detect_damage(uri):
        table = pq.read_table(stream, schema=FAILURES, use_threads=False)
        table.validate(full=True)
        check_values(uri, table)
    run_id = uri.rpartition("/")[2].removesuffix(".parquet").partition("-")[0]
    return table.append_column("run_id", pa.repeat(run_id, len(table))).cast(STORED_FAILURES)


def look_up_hashes(ids: NDArray[np.int64], hashes: pa.Table) -> pa.Array:
    """Return the audio hash of each recording; null where it is unknown.

    Args:
        ids: ``file_id`` of the recordings.
        hashes: A table with the columns ``file_id`` and AUDIO_HASH.
    """
    if not len(hashes):
        return pa.nulls(len(ids), pa.int64())
    hashes = hashes.sort_by("file_id")
    known_ids = hashes["file_id"].to_numpy()
    rows = np.minimum(np.searchsorted(known_ids, ids), len(known_ids) - 1)
    return pa.array(hashes[AUDIO_HASH[0]].to_numpy()[rows], mask=known_ids[rows] != ids)
