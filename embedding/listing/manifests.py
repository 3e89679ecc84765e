"""Manifests: .csv or .parquet files with a column ``file``, one recording per row, and further columns about it."""

import posixpath
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from embedding import storage
from embedding.errors import RequestError
from embedding.listing.csv_format import HOW_TO_SAVE, detect_format
from embedding.storage import s3

MANIFEST_SUFFIXES = (".csv", ".parquet")
MOST_NAME_BYTES = 1 << 16  # 16 times the longest path of a disk, 64 times the longest key of S3
MOST_BYTES = 4 << 30  # of a manifest that is read whole: ten million rows with some notes

_BATCH_ROWS = 8192  # rows of a .parquet that are read at a time


def manifest_files(uri: str) -> Generator[list[str]]:
    """Yield the recordings that a manifest names, as absolute paths or URIs, in lists of some thousand.

    A relative path counts from the folder of the manifest.

    Raises:
        RequestError: The manifest cannot be read, or has no column ``file`` of names.
    """
    read = _csv_files if _is_csv(uri) else _parquet_files
    with _readable(uri, "--input"), closing(read(uri)) as lists:
        for files in lists:
            yield [_absolute(file, uri, "--input") for file in files]


def manifests_among(inputs: Iterable[str]) -> list[str]:
    """Return the manifests among the inputs of a run, as absolute paths or URIs."""
    uris = [storage.normalise(uri, "--input") for uri in inputs if uri.lower().endswith(MANIFEST_SUFFIXES)]
    return [uri for uri in uris if storage.is_s3(uri) or Path(uri).is_file()]


def read_manifest(uri: str, option: str) -> pa.Table:
    """Read a whole manifest.

    Args:
        uri: Absolute path or URI of the manifest.
        option: The option that names the manifest; messages begin with it.

    Returns:
        All columns, with ``file`` as ``manifest_files`` yields it, without rows whose ``file`` is empty. All columns of
        a .csv are text.

    Raises:
        RequestError: The manifest cannot be read, or has no column ``file`` of names.
    """
    if not uri.lower().endswith(MANIFEST_SUFFIXES):
        raise RequestError(f"{option}: {uri} is not a manifest: expected a .csv or .parquet with a column 'file'")
    with _readable(uri, option), storage.open_stream(uri) as stream:
        table = _csv_table(stream, uri, option) if _is_csv(uri) else _parquet_table(stream, uri, option)
        table.validate(full=True)  # finds, for example, text that is not UTF-8
        names = table["file"].cast(pa.string())
        has_name = pc.not_equal(names, "").combine_chunks().fill_null(False)  # type: ignore[attr-defined]
        files = [_absolute(file, uri, option) for file in names.filter(has_name).to_pylist()]
        table = table.set_column(table.column_names.index("file"), "file", names).filter(has_name)
    table = pa.table([_nan_to_null(column) for column in table.columns], table.column_names)
    return table.set_column(table.column_names.index("file"), "file", pa.array(files, pa.string()))


@contextmanager
def _readable(uri: str, option: str) -> Iterator[None]:
    """Raise RequestError for errors of the storage and of Arrow in the block."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())  # some of Arrow's messages have several lines
        raise RequestError(f"{option}: cannot read manifest {uri}: {reason}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        hint = f"; {HOW_TO_SAVE}" if _is_csv(uri) else ""
        reason = " ".join(str(error).split()).rstrip(".")
        raise RequestError(f"{option}: manifest {uri} is damaged: {reason}{hint}") from error


def _is_csv(uri: str) -> bool:
    return uri.lower().endswith(".csv")


def _absolute(file: str, manifest: str, option: str) -> str:
    """Return ``file`` as an absolute path or URI."""
    if "://" not in file and not file.startswith("/"):
        folder = manifest.rpartition("/")[0]
        if storage.is_s3(manifest):  # S3 takes keys literally, so the .. of a relative path is resolved here
            return s3.SCHEME + posixpath.normpath(s3.bucket_key(storage.join(folder, file)))
        file = storage.join(folder, file)
    return storage.normalise(file, f"{option}: manifest {manifest}")


def _csv_files(uri: str) -> Generator[list[str]]:
    # A column of notes may begin with numbers and go on with other text, so only `file` is converted.
    as_text = pyarrow.csv.ConvertOptions(include_columns=["file"], column_types={"file": pa.string()})
    with storage.open_stream(uri, 1 << 20) as stream:
        csv_format = detect_format(stream)
        with pyarrow.csv.open_csv(stream, csv_format.read_options, csv_format.parse_options) as header:
            _check_columns(uri, header.schema, "--input")
    with storage.open_stream(uri) as stream:
        for batch in pyarrow.csv.open_csv(stream, csv_format.read_options, csv_format.parse_options, as_text):
            yield [file for file in batch["file"].to_pylist() if file]


def _parquet_files(uri: str) -> Generator[list[str]]:
    with storage.open_stream(uri) as stream:
        _check_columns(uri, pq.read_schema(stream), "--input")
        # In a dictionary, a name that is repeated a million times takes its own length once.
        parquet = pq.ParquetFile(stream, read_dictionary=["file"])
        n_bytes = sum(_uncompressed_bytes(parquet.metadata, "file"))
        _refuse_long_names(uri, n_bytes // max(1, parquet.metadata.num_rows))
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=["file"]):
            files = batch["file"]
            if isinstance(files, pa.DictionaryArray):
                longest = pc.max(pc.binary_length(files.dictionary)).as_py() or 0  # type: ignore[attr-defined]
                _refuse_long_names(uri, longest)
            yield [file for file in files.to_pylist() if file]


def _csv_table(stream: BinaryIO, uri: str, option: str) -> pa.Table:
    csv_format = detect_format(stream)
    with pyarrow.csv.open_csv(stream, csv_format.read_options, csv_format.parse_options) as header:
        names = header.schema.names
        _check_columns(uri, header.schema, option)
    stream.seek(0)
    as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
    return pyarrow.csv.read_csv(stream, csv_format.read_options, csv_format.parse_options, as_text)


def _parquet_table(stream: BinaryIO, uri: str, option: str) -> pa.Table:
    """Read all columns. Texts are read as dictionaries first, because a long value may be repeated very often."""
    schema = pq.read_schema(stream)
    _check_columns(uri, schema, option)
    texts = {field.name for field in schema if _is_text(field.type)}
    parquet = pq.ParquetFile(stream, read_dictionary=sorted(texts))
    _refuse_large(uri, sum(_uncompressed_bytes(parquet.metadata)), option)
    table = parquet.read()
    _refuse_large(uri, sum(map(_decoded_bytes, table.columns)), option)
    columns = [
        column.cast(column.type.value_type) if isinstance(column.type, pa.DictionaryType) else column
        for column in table.columns
    ]
    return pa.table(columns, table.column_names)


def _uncompressed_bytes(metadata: pq.FileMetaData, name: str = "") -> Iterator[int]:
    """Yield the uncompressed bytes of every chunk of a column, or of all columns."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if name in ("", column.path_in_schema):
                yield column.total_uncompressed_size


def _decoded_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column of texts after its dictionary is decoded; 0 for other columns."""
    if not isinstance(column.type, pa.DictionaryType):
        return 0
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)  # type: ignore[attr-defined]
    return sum(pc.sum(pc.cast(length, pa.int64())).as_py() or 0 for length in lengths)  # type: ignore[attr-defined]


def _refuse_long_names(uri: str, n_bytes: int) -> None:
    if n_bytes > MOST_NAME_BYTES:
        raise RequestError(
            f"--input: manifest {uri} has names of {n_bytes:,} bytes in its column 'file'; no storage has such files"
        )


def _refuse_large(uri: str, n_bytes: int, option: str) -> None:
    if n_bytes > MOST_BYTES:
        raise RequestError(f"{option}: manifest {uri} unpacks to {n_bytes:,} bytes, more than {MOST_BYTES:,}")


def _nan_to_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace NaN by null: many tools write NaN where a column of numbers has no value."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), None, column)  # type: ignore[attr-defined]


def _check_columns(uri: str, schema: pa.Schema, option: str) -> None:
    if schema.names.count("file") != 1:
        raise RequestError(f"{option}: manifest {uri} needs one column 'file' (it has: {', '.join(schema.names)})")
    kind = schema.field("file").type
    if not (_is_csv(uri) or _is_text(kind)):
        raise RequestError(f"{option}: column 'file' of manifest {uri} holds {kind}, not names")


def _is_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.DictionaryType):  # categories of pandas
        return _is_text(kind.value_type)
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.null())
