"""The output: its schema, its atomic shards, what is already done, and the settings it belongs to.

    OUTPUT/embeddings/*.parquet   one row per window
    OUTPUT/failures/*.parquet     one row per recording that has no vectors, or fewer than it should
    OUTPUT/run.json               every setting, and the versions of what computed it
    OUTPUT/report.json            the accounting

A shard is complete or absent, so the shards are their own log: what is done is read from their key columns.
"""

import hashlib
import json
from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding import storage
from embedding.decode import WINDOW_COLUMNS, Failure
from embedding.errors import RequestError
from embedding.redact import redact, redact_all
from embedding.stored import Stored

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

SETTINGS_KEY = "avex_batch.settings"


def embeddings_schema(dim: int) -> pa.Schema:
    """Columns of a shard; ``dim`` is the length of a vector."""
    return pa.schema([*WINDOW_COLUMNS, ("embedding", pa.list_(pa.float32(), dim))])


@dataclass(frozen=True)
class Store:
    """An output directory or prefix. Small and picklable: it travels to every task that writes."""

    root: str  # absolute path or s3:// URI
    settings: str  # JSON, into the metadata of every shard

    def write_shard(self, table: pa.Table, name: str) -> str:
        """Write one shard of windows, complete or not at all; the same name again replaces it. Returns its URI."""
        uri = storage.join(self.root, "embeddings", f"{name}.parquet")
        dim = table.schema.field("embedding").type.list_size
        storage.write_bytes(uri, self._parquet(table.cast(embeddings_schema(dim))))
        return uri

    def write_failures(self, failures: Iterable[Failure]) -> None:
        """Record failures, under a name that a second try of the same task overwrites."""
        rows = [asdict(failure) | {"message": redact(failure.message)} for failure in failures]
        if not rows:
            return
        table = pa.Table.from_pylist(rows, FAILURES)
        key = hashlib.blake2b(
            repr([(row["file_id"], row["stage"]) for row in rows]).encode(), digest_size=10
        ).hexdigest()
        storage.write_bytes(storage.join(self.root, "failures", f"{key}.parquet"), self._parquet(table))

    def forget_failures(self, ids: Set[int]) -> None:
        """Drop the failure rows of recordings that have succeeded since."""
        if not ids:
            return
        gone = np.fromiter(ids, np.int64, len(ids))
        for uri in storage.list_names(storage.join(self.root, "failures"), ".parquet"):
            with storage.open_stream(uri) as stream:
                rows = pq.read_table(stream)
            kept = rows.filter(pa.array(~np.isin(rows["file_id"].to_numpy(), gone)))
            if not len(kept):
                storage.delete(uri)
            elif len(kept) < len(rows):
                storage.write_bytes(uri, self._parquet(kept))

    def _parquet(self, table: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        metadata = {**(table.schema.metadata or {}), SETTINGS_KEY: self.settings}
        # Vectors do not compress (random mantissas) and have no repeated values: a dictionary only costs time.
        plain = [name for name in table.column_names if name != "embedding"]
        pq.write_table(
            table.replace_schema_metadata(metadata),
            sink,
            compression="zstd",
            use_dictionary=plain,  # type: ignore[arg-type] — a list of columns is documented; the stubs know bool only
            write_page_index=True,
        )
        return sink.getvalue().to_pybytes()

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(redact_all(content), indent=2, ensure_ascii=False) + "\n"
        storage.write_bytes(storage.join(self.root, name), text.encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """``run.json`` or ``report.json``, or None where there is none yet.

        Raises:
            RequestError: the file is there and cannot be read.
        """
        uri = storage.join(self.root, name)
        try:
            return json.loads(storage.read_bytes(uri))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RequestError(f"--output: cannot read {uri}: {error}") from error

    def refuse_other_settings(self, guarded: dict[str, Any]) -> None:
        """Raises RequestError when the output holds vectors of other settings, naming each difference."""
        run = self.read_json("run.json")
        if run is None:
            return
        was = run["settings"]
        changed = [
            f"{name} was {was.get(name)}, is {value}" for name, value in guarded.items() if was.get(name) != value
        ]
        if changed:
            raise RequestError(
                f"--output: {self.root} holds vectors of other settings: {'; '.join(changed)}; choose another --output"
            )

    def read(self) -> Stored:
        """What the shards and failure rows hold.

        Raises:
            RequestError: the output cannot be read: no such bucket, no permission, a damaged shard.
        """
        try:
            return self._read()
        except (OSError, pa.ArrowInvalid) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"--output: cannot read what {self.root} holds: {reason}") from error

    def _read(self) -> Stored:
        failed: dict[int, str] = {}
        for uri in storage.list_names(storage.join(self.root, "failures"), ".parquet"):
            with storage.open_stream(uri) as stream:
                rows = pq.read_table(stream, columns=["file_id", "kind"])
            failed.update(zip(rows["file_id"].to_pylist(), rows["kind"].to_pylist(), strict=True))
        return Stored.read(list(storage.list_names(storage.join(self.root, "embeddings"), ".parquet")), failed)
