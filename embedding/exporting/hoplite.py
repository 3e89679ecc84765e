"""perch-hoplite: a database of recordings and windows, as hoplite's own embedding of the recordings would make it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding import extras
from embedding.errors import RunError
from embedding.exporting.exported_rows import ExportedRows
from embedding.schema.vectors import EMBEDDING, matrix

# Name of the project of recordings that have no folder in common.
PROJECT = "avex-batch"
RECORDING_FIELDS = ("file_id", "duration", "sample_rate", "channels")
# All columns that hoplite has a place for.
COLUMNS = ["file", "start_time", "end_time", *RECORDING_FIELDS]


def write(rows: ExportedRows, batches: Iterable[pa.Table], folder: Path) -> None:
    """Write all rows, in hoplite's default precision (float16) and with its default index.

    The index is in memory until the end; it takes more than half of the vectors' bytes.

    Args:
        rows: The rows.
        batches: Their batches.
        folder: The folder to write into.

    Raises:
        RequestError: perch-hoplite is not installed.
        RunError: A number is too large for float16.
    """
    database = _load("db.db_loader").create_new_usearch_db(str(folder), rows.dim)
    base = common_folder(rows.files())
    _write_metadata(database, rows, base)
    recordings = _RecordingIds(database, base)
    for batch in batches:
        vectors = matrix(batch[EMBEDDING])
        if np.abs(vectors).max() > np.finfo(np.float16).max:
            raise RunError("hoplite's vectors are float16, and some numbers are above 65,504")
        windows = [
            {"recording_id": recordings.insert(row), "offsets": [row["start_time"], row["end_time"]]}
            for row in batch.select(COLUMNS).to_pylist()
        ]
        database.insert_windows_batch(windows, vectors, handle_duplicates="allow")  # without a check: there are none
    database.commit()
    database.db.close()  # otherwise temporary files of SQLite stay


def reading_line(rows: ExportedRows, folder: Path) -> str:
    """Return a line of Python that reads the export."""
    return f"perch_hoplite.db.sqlite_usearch_impl.SQLiteUSearchDB.create({str(folder)!r})"


@dataclass
class _RecordingIds:
    """Identifiers of recordings and deployments in a database; each is inserted with its first window.

    Attributes:
        database: The hoplite database.
        base: The folder of all recordings.
        recordings: Identifiers by file.
        deployments: Identifiers by name.
    """

    database: Any
    base: str
    recordings: dict[str, int] = field(default_factory=dict)
    deployments: dict[str, int] = field(default_factory=dict)

    def insert(self, row: dict[str, Any]) -> int:
        """Return the identifier of a row's recording, which is inserted if it is new."""
        file = row["file"]
        if file not in self.recordings:
            name = file.removeprefix(self.base).removeprefix("/")
            columns = {column: row[column] for column in RECORDING_FIELDS}
            deployment_id = self._insert_deployment(name)
            self.recordings[file] = self.database.insert_recording(name, deployment_id=deployment_id, **columns)
        return self.recordings[file]

    def _insert_deployment(self, name: str) -> int:
        """Return the identifier of a recording's deployment: by hoplite's rule, its first folder below the base."""
        top, has_folder, _ = name.partition("/")
        deployment = top if has_folder else project_name(self.base)
        if deployment not in self.deployments:
            self.deployments[deployment] = self.database.insert_deployment(deployment, project_name(self.base))
        return self.deployments[deployment]


def common_folder(files: list[str]) -> str:
    """Return the innermost folder that has all files below it; empty if there is none, for example for two buckets."""
    folders = [file.rpartition("/")[0] + "/" for file in files]
    folder = os.path.commonprefix(folders).rpartition("/")[0]  # noqa: RUF071 — commonpath makes s3:/ of s3://
    return "" if folder in ("s3:", "s3:/") else folder


def project_name(base: str) -> str:
    """Return the name of the project: the last part of the folder of all recordings."""
    return base.rpartition("/")[2] or PROJECT


def _write_metadata(database: Any, rows: ExportedRows, base: str) -> None:
    """Store the folder of the audio and the model, under the keys of hoplite's tools."""
    sources, embed = _load("agile.source_info"), _load("agile.embed")
    settings = extras.load("ml_collections.config_dict", "hoplite").ConfigDict(rows.settings)
    audio = sources.AudioSourceConfig(
        dataset_name=project_name(base), base_path=base, file_glob="**/*", min_audio_len_s=0.0, shard_len_s=None
    )
    model = embed.ModelConfig(model_key="avex", embedding_dim=rows.dim, model_config=settings)
    database.insert_metadata("audio_sources", sources.AudioSources((audio,)).to_config_dict())
    database.insert_metadata("model_config", model.to_config_dict())


def _load(module: str) -> Any:
    return extras.load(f"perch_hoplite.{module}", "hoplite")
