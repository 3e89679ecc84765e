"""Failures of recordings: a row for each, with the stage, the kind and a message."""

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
    """The reason why a recording has no vectors, or fewer than it should have.

    Attributes:
        file: The recording, as listed. file_id: identity of this version of the recording. size: bytes, -1 where
        unknown. stage: Stage of the pipeline in which the recording failed. kind: kind of the failure, for counting; in
        the stage ``decode`` the kinds of ``AudioFault``, and ``io`` where the
            storage failed.
        message: One line for the user.
    """

    file: str
    file_id: int
    size: int
    stage: str
    kind: str
    message: str
