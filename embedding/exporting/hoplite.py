"""perch-hoplite: a database of recordings and windows, laid out as by its own embedding of the recordings' folder."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding import extras
from embedding.errors import RunError
from embedding.exporting.exported_rows import Rows
from embedding.schema.vectors import EMBEDDING, matrix

# Of recordings that have no folder in common.
PROJECT = "avex-batch"
OF_RECORDING = ("file_id", "duration", "sample_rate", "channels")
# All that hoplite takes of a row.
COLUMNS = ["file", "start_time", "end_time", *OF_RECORDING]


def write(rows: Rows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all ``batches`` of ``rows``, as the float16 and with the index that hoplite takes by default.

    The index is in memory until the end: more than half of the vectors' bytes.

    Raises:
        RequestError: perch-hoplite is not installed.
        RunError: a number is too large for float16.
    """
    database = _load("db.db_loader").create_new_usearch_db(str(folder), rows.dim)
    base = common_folder(rows.files())
    _describe(database, rows, base)
    recordings = _Recordings(database, base)
    for batch in batches:
        vectors = matrix(batch[EMBEDDING])
        if np.abs(vectors).max() > np.finfo(np.float16).max:
            raise RunError("hoplite's vectors are float16, and some numbers are above 65,504")
        windows = [
            {"recording_id": recordings.of(row), "offsets": [row["start_time"], row["end_time"]]}
            for row in batch.select(COLUMNS).to_pylist()
        ]
        database.insert_windows_batch(windows, vectors, handle_duplicates="allow")  # there are none
    database.commit()
    database.db.close()  # or files of SQLite's own stay beside


def read(rows: Rows, folder: Path) -> str:
    """Return a line that reads the export."""
    return f"perch_hoplite.db.sqlite_usearch_impl.SQLiteUSearchDB.create({str(folder)!r})"


@dataclass
class _Recordings:
    """The recordings of a database, each inserted when its first window comes."""

    database: Any
    base: str
    ids: dict[str, int] = field(default_factory=dict)
    deployments: dict[str, int] = field(default_factory=dict)

    def of(self, row: dict[str, Any]) -> int:
        """The identity hoplite has for the recording of a row."""
        if row["file"] not in self.ids:
            name = row["file"].removeprefix(self.base).removeprefix("/")
            kept = {column: row[column] for column in OF_RECORDING}
            self.ids[row["file"]] = self.database.insert_recording(name, deployment_id=self._deployment(name), **kept)
        return self.ids[row["file"]]

    def _deployment(self, name: str) -> int:
        """By hoplite's rule: the first folder below the base, or the base itself."""
        top, has_folder, _ = name.partition("/")
        deployment = top if has_folder else project(self.base)
        if deployment not in self.deployments:
            self.deployments[deployment] = self.database.insert_deployment(deployment, project(self.base))
        return self.deployments[deployment]


def common_folder(files: list[str]) -> str:
    """The innermost folder that all are in; empty where there is none, as for several buckets."""
    folders = [file.rpartition("/")[0] + "/" for file in files]
    folder = os.path.commonprefix(folders).rpartition("/")[0]  # noqa: RUF071 — commonpath makes s3:/ of s3://
    return "" if folder in ("s3:", "s3:/") else folder


def project(base: str) -> str:
    """A folder's own name."""
    return base.rpartition("/")[2] or PROJECT


def _describe(database: Any, rows: Rows, base: str) -> None:
    """Store the place of the audio and the model, under the keys of hoplite's tools."""
    sources, embed = _load("agile.source_info"), _load("agile.embed")
    settings = _load_config(rows.settings)
    audio = sources.AudioSourceConfig(
        dataset_name=project(base), base_path=base, file_glob="**/*", min_audio_len_s=0.0, shard_len_s=None
    )
    model = embed.ModelConfig(model_key="avex", embedding_dim=rows.dim, model_config=settings)
    database.insert_metadata("audio_sources", sources.AudioSources((audio,)).to_config_dict())
    database.insert_metadata("model_config", model.to_config_dict())


def _load(module: str) -> Any:
    return extras.load(f"perch_hoplite.{module}", "hoplite")


def _load_config(content: dict[str, Any]) -> Any:
    return extras.load("ml_collections.config_dict", "hoplite").ConfigDict(content)
