"""Decoding of a few recordings, with a record of its events."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.decoding import decode as stage
from embedding.decoding.events import Decoded, DecodingEvent, Failed, NoMoreWindows, Opened, Unchanged, Windows
from embedding.decoding.isolated import decode_isolated
from embedding.schema.failures import Failure
from embedding.schema.recordings import RECORDINGS, read_pending
from embedding.schema.windows import WindowSpec
from tests.support.audio import write_audio

RATE_HZ = 16_000
SECOND = WindowSpec(RATE_HZ, RATE_HZ, RATE_HZ, "pad")


@dataclass
class EventRecord:
    """The events of decoding beside the tables.

    Attributes:
        events: Failures, recordings that are unchanged, and ends without windows, in order.
        audio_s: Seconds of audio decoded.
        n_decoded: Number of recordings that were decoded to their end.
        opened: Files, in order.
    """

    events: list[str | Failure] = field(default_factory=list)
    audio_s: float = 0.0
    n_decoded: int = 0
    opened: list[str] = field(default_factory=list)

    @property
    def failures(self) -> dict[str, tuple[str, str]]:
        """Kind and message of each failure, by the name of the file."""
        return {
            Path(event.file).name: (event.kind, event.message) for event in self.events if isinstance(event, Failure)
        }

    def tables(self, events: Iterable[DecodingEvent]) -> Iterator[pa.Table]:
        """Yield the tables among ``events``, and record the other events."""
        for event in events:
            match event:
                case Windows(table):
                    yield table
                case Failed(failure):
                    self.events.append(failure)
                case Unchanged(file_id):
                    self.events.append(f"{file_id} unchanged")
                case NoMoreWindows():
                    self.events.append("without windows")
                case Decoded(duration_s):
                    self.audio_s += duration_s
                    self.n_decoded += 1
                case Opened(file):
                    self.opened.append(file)


def decode(
    recordings: pa.Table,
    specs: Sequence[WindowSpec],
    batch_size: int,
    record: EventRecord | None = None,
    *,
    isolated: bool = False,
) -> Iterator[pa.Table]:
    """Yield the tables of windows of a table of recordings; other events go into ``record``."""
    decoding = decode_isolated if isolated else stage.decode
    yield from (record or EventRecord()).tables(decoding(read_pending(recordings, len(specs)), specs, batch_size))


def recordings_of(files: Iterable[Path | str], sizes: Iterable[int] | None = None) -> pa.Table:
    """Return a table of recordings, with ``file_id`` from 100 on; sizes are those of the files unless given."""
    names = [str(file) for file in files]
    sizes = sizes or [Path(name).stat().st_size if Path(name).exists() else -1 for name in names]
    return pa.table({"file": names, "size": list(sizes), "file_id": range(100, 100 + len(names))}, RECORDINGS)


def run(
    files: Iterable[Path | str], spec: WindowSpec = SECOND, batch_size: int = 8
) -> tuple[list[pa.Table], EventRecord]:
    """Decode files; return the tables of windows, and the other events."""
    record = EventRecord()
    return list(decode(recordings_of(files), [spec], batch_size, record)), record


def samples_of(table: pa.Table) -> NDArray[np.float32]:
    """Return the samples of the windows of a table, ``[windows, length]``."""
    column = table["window_16000"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)


def of_file(tables: list[pa.Table], path: Path) -> pa.Table:
    """Return the rows of one file."""
    table = pa.concat_tables(tables)
    return table.filter(np.array(table["file"].to_pylist()) == str(path))


def write_truncated(path: Path, audio: NDArray[np.float32], kept_share: float) -> Path:
    """Write a file of which only the first ``kept_share`` of the bytes is left."""
    write_audio(path, audio, RATE_HZ)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept_share * len(content))])
    return path


def hash_of(path: Path) -> int:
    """Return the hash of the audio of a file."""
    tables, _ = run([path])
    return tables[-1]["audio_hash_16000"][-1].as_py()


def with_known_hashes(recordings: pa.Table, hashes: Sequence[int | None]) -> pa.Table:
    """Add the known hash of each recording, for one target."""
    lists = pa.array([[known_hash] for known_hash in hashes], pa.list_(pa.int64()))
    return recordings.append_column("known_hash", lists)
