"""Manifests: a .csv or .parquet with a column ``file``, one recording a row."""

import posixpath
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from embedding import storage
from embedding.errors import RequestError
from embedding.storage import s3

MANIFEST_SUFFIXES = (".csv", ".parquet")
_CHUNK = 8192  # rows of a .parquet that are read at a time


def manifest_files(uri: str) -> Iterator[list[str]]:
    """The recordings a manifest names, as absolute paths or URIs, in lists of some thousand.

    Raises:
        RequestError: it cannot be read, or has no column ``file`` of names.
    """
    read = _csv_files if uri.lower().endswith(".csv") else _parquet_files
    try:
        for files in read(uri):
            yield [_named_in(uri, file) for file in files]
    except OSError as error:
        raise RequestError(f"--input: cannot read manifest {uri}: {error.strerror or error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise RequestError(f"--input: manifest {uri} is damaged: {' '.join(str(error).split())}") from error


def _named_in(manifest: str, file: str) -> str:
    """``file`` as a path or URI; a relative one counts from the manifest's folder."""
    if "://" not in file and not file.startswith("/"):
        folder = manifest.rpartition("/")[0]
        if storage.is_s3(manifest):  # where names are literal, except for the way from here to there
            return s3.SCHEME + posixpath.normpath(s3.bucket_key(storage.join(folder, file)))
        file = storage.join(folder, file)
    return storage.normalise(file, f"--input: manifest {manifest}")


def _csv_files(uri: str) -> Iterator[list[str]]:
    # A manifest's notes may have line ends in them, and numbers that later are none: only `file` is converted.
    quoting = pyarrow.csv.ParseOptions(newlines_in_values=True)
    text = pyarrow.csv.ConvertOptions(include_columns=["file"], column_types={"file": pa.string()})
    with storage.open_stream(uri, 1 << 20) as stream, pyarrow.csv.open_csv(stream, parse_options=quoting) as header:
        _check_columns(uri, header.schema)
    with storage.open_stream(uri) as stream:
        for batch in pyarrow.csv.open_csv(stream, parse_options=quoting, convert_options=text):
            yield [file for file in batch["file"].to_pylist() if file]


def _parquet_files(uri: str) -> Iterator[list[str]]:
    with storage.open_stream(uri) as stream:
        parquet = pq.ParquetFile(stream)
        _check_columns(uri, parquet.schema_arrow)
        holds = parquet.schema_arrow.field("file").type
        if not _is_text(holds):
            raise RequestError(f"--input: column 'file' of manifest {uri} holds {holds}, not names")
        for batch in parquet.iter_batches(_CHUNK, columns=["file"]):
            yield [file for file in batch["file"].to_pylist() if file]


def _check_columns(uri: str, schema: pa.Schema) -> None:
    if schema.names.count("file") != 1:
        raise RequestError(f"--input: manifest {uri} needs one column 'file' (it has: {', '.join(schema.names)})")


def _is_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.DictionaryType):  # pandas' categories
        return _is_text(kind.value_type)
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.null())
