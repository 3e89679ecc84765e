"""Windows and failures of an output, stored and read back."""

from typing import Any

from embedding.output.store import Store
from embedding.schema.failures import Failure


def stored_windows(store: Store) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the rows of all shards by (file_id, window_index); each window must be stored once."""
    rows = [row for uri in store.read().shards for row in store.read_shard(uri).to_pylist()]
    keys = [(row["file_id"], row["window_index"]) for row in rows]
    assert len(keys) == len(set(keys)), "a window is stored twice"
    return dict(zip(keys, rows, strict=True))


def store_failures(store: Store, run_id: str, *rows: tuple[int, str, str]) -> None:
    """Store failures, given as (file_id, stage, kind), each in a file of its own."""
    for file_id, stage, kind in rows:
        store.write_failures([Failure(f"/a/{file_id}.wav", file_id, 9, stage, kind, f"as of {run_id}")], run_id)


def stored_failures(store: Store) -> list[tuple[int, str, str, str]]:
    """Return (file_id, stage, kind, message) of all failures, sorted."""
    rows = store.read().failures.to_pylist()
    return sorted((row["file_id"], row["stage"], row["kind"], row["message"]) for row in rows)
