"""Columns of a listing: one row per recording."""

import pyarrow as pa

RECORDINGS = pa.schema([("file", pa.string()), ("size", pa.int64()), ("file_id", pa.int64())])
