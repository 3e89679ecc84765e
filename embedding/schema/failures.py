"""Failures of recordings: a row each, with the stage, the kind and a message."""

from dataclasses import dataclass

import pyarrow as pa

# Columns of failures/*.parquet.
FAILURES = pa.schema(
    [
        ("file", pa.string()),
        ("file_id", pa.int64()),
        ("size", pa.int64()),
        ("stage", pa.string()),
        ("kind", pa.string()),
        ("message", pa.string()),
    ]
)


@dataclass(frozen=True)
class Failure:
    """Why a recording has no vectors, or fewer than it should. ``stage`` is where, ``kind`` what, for counting.

    Kinds of the stage ``decode``: those of ``AudioFault``, and ``io``, the storage did not deliver it.
    """

    file: str
    file_id: int
    size: int
    stage: str
    kind: str
    message: str
