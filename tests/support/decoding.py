"""The CPU stage on a few recordings, and what it told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.decoding import decode as stage
from embedding.decoding.decode import decode
from embedding.schema.failures import Failure
from embedding.schema.recordings import RECORDINGS
from embedding.schema.windows import WindowSpec
from tests.support.audio import write_audio

RATE_HZ = 16_000
SECOND = WindowSpec(RATE_HZ, RATE_HZ, RATE_HZ, "pad")


@dataclass
class Observer(stage.Observer):
    """Writes down what it is told, in order, among what else happens."""

    events: list[str | Failure] = field(default_factory=list)
    audio_s: float = 0.0
    read: list[str] = field(default_factory=list)

    def reading(self, file: str) -> None:
        self.read.append(file)

    def failed(self, failure: Failure, wanted: int) -> None:
        self.events.append(failure)

    def unchanged(self, file_id: int, wanted: int) -> None:
        self.events.append(f"{file_id} unchanged")

    def decoded(self, audio_s: float, n_bytes: int) -> None:
        self.audio_s += audio_s

    def without_windows(self) -> None:
        self.events.append("without windows")

    @property
    def failures(self) -> dict[str, tuple[str, str]]:
        """Kind and message, by the name of the file."""
        return {Path(e.file).name: (e.kind, e.message) for e in self.events if isinstance(e, Failure)}


def recordings_of(files: Iterable[Path | str], sizes: Iterable[int] | None = None) -> pa.Table:
    names = [str(file) for file in files]
    sizes = sizes or [Path(name).stat().st_size if Path(name).exists() else -1 for name in names]
    return pa.table({"file": names, "size": list(sizes), "file_id": range(100, 100 + len(names))}, RECORDINGS)


def run(files: Iterable[Path | str], spec: WindowSpec = SECOND, batch_size: int = 8) -> tuple[list[pa.Table], Observer]:
    observer = Observer()
    return list(decode(recordings_of(files), [spec], batch_size, observer)), observer


def samples_of(table: pa.Table) -> NDArray[np.float32]:
    """The windows, ``[n, length]``."""
    column = table["window_16000"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)


def of_file(tables: list[pa.Table], path: Path) -> pa.Table:
    table = pa.concat_tables(tables)
    return table.filter(np.array(table["file"].to_pylist()) == str(path))


def write_truncated(path: Path, audio: NDArray[np.float32], keep: float) -> Path:
    write_audio(path, audio, RATE_HZ)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    return path


def hash_of(path: Path) -> int:
    tables, _ = run([path])
    return tables[-1]["audio_hash_16000"][-1].as_py()


def with_known(recordings: pa.Table, known: Sequence[int | None]) -> pa.Table:
    return recordings.append_column("known_hash", pa.array([[each] for each in known], pa.list_(pa.int64())))
