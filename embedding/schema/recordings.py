"""Recordings: the columns of a listing, and a recording that is to be decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from embedding.schema.targets import FIELD, TargetColumn, Targets, all_targets

# Columns of a listing.
RECORDINGS = pa.schema([("file", pa.string()), ("size", pa.int64()), ("file_id", pa.int64())])


@dataclass(frozen=True)
class PendingRecording:
    """A recording that at least one target needs.

    Attributes:
        file: Absolute path or URI.
        file_id: Identity of this version of the file.
        size: Bytes, -1 where unknown.
        targets: The targets that need windows of the recording.
        stored: Per target, the indices of windows that the output already holds; empty where no output holds any.
        known_hashes: Per target, the hash of audio that need not be embedded again, or None; empty where no hash is
            known.
    """

    file: str
    file_id: int
    size: int
    targets: Targets
    stored: tuple[frozenset[int], ...] = ()
    known_hashes: tuple[int | None, ...] = ()


# Columns of a table of pending recordings. The lists have an item per target, and are null where nothing is known.
PENDING = pa.schema(
    [*RECORDINGS, FIELD, ("stored", pa.list_(pa.list_(pa.int32()))), ("known_hash", pa.list_(pa.int64()))]
)


def read_pending(table: pa.Table, n_targets: int) -> list[PendingRecording]:
    """Return the rows of a table of recordings.

    Args:
        table: The columns of RECORDINGS, and optionally the further columns of PENDING. Without the column of targets
            all targets need each recording.
        n_targets: Number of models of the run.
    """

    def values(name: str) -> Sequence[list | None]:
        return table[name].to_pylist() if name in table.column_names else [None] * len(table)

    has_targets = FIELD.name in table.column_names
    targets = TargetColumn.of(table).as_list() if has_targets else [all_targets(n_targets)] * len(table)
    rows = zip(
        table["file"].to_pylist(),
        table["file_id"].to_pylist(),
        table["size"].to_pylist(),
        targets,
        [tuple(frozenset(indices or ()) for indices in stored or ()) for stored in values("stored")],
        [tuple(hashes or ()) for hashes in values("known_hash")],
        strict=True,
    )
    return [PendingRecording(*row) for row in rows]
