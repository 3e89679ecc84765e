"""Detections in the formats of other programs, in a folder that appears when it is complete.

| format | files | read by |
| --- | --- | --- |
| ``raven`` | a selection table for each recording | Raven |
| ``raven-combined`` | one selection table for all recordings, opened together | Raven |
| ``audacity`` | a label track for each recording | Audacity |
| ``kaleidoscope`` | one CSV | Kaleidoscope Pro |
| ``csv`` | one CSV with the columns of BirdNET-Analyzer | spreadsheets, R, BirdNET's tools |

Files of a recording lie in folders like those of the recordings.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq

from embedding import storage
from embedding.detecting.detection_files import read_detections
from embedding.exporting.destination import RECORD_NAME, replace_folder
from embedding.output.store import Store

RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"),
    *("Begin Path", "Begin File", "File Offset (s)", "Annotation", "Score"),
)
KALEIDOSCOPE_COLUMNS = (
    *("INDIR", "FOLDER", "IN FILE", "CHANNEL", "OFFSET", "DURATION", "DATE", "TIME", "HOUR"),
    *("AUTO ID", "MATCH RATIO", "MANUAL ID"),
)
BIRDNET_COLUMNS = ("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File")

# Detections of one recording, in the order of their starts.
Rows = list[dict[str, Any]]


def write_detections(folder: str, to: str, destination: Path, root: str) -> int:
    """Write detections in the format of another program.

    Args:
        folder: Folder of the detections.
        to: The format, a key of FORMATS.
        destination: Folder of the files; only an earlier export to the same format is replaced.
        root: Directory or prefix of the output.

    Returns:
        Number of detections.

    Raises:
        OSError: The storage failed.
        RequestError: A file is damaged, or the destination has other content.
        RunError: An earlier export could not be moved back.
    """
    n = 0
    with replace_folder(destination, to) as new:

        def counted() -> Iterator[tuple[str, Rows]]:
            nonlocal n
            for file, rows in _by_recording(folder):
                n += len(rows)
                yield file, rows

        FORMATS[to](counted(), new, root)
        content = {
            "format": to,
            "of": folder,
            "rows": n,
            "names": sorted([RECORD_NAME, *(path.name for path in new.iterdir())]),
        }
        (new / RECORD_NAME).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return n


def _by_recording(folder: str) -> Iterator[tuple[str, Rows]]:
    """Yield each recording with its detections. All of a recording's detections lie in one file."""
    for detections in read_detections(folder):
        order = [("file", "ascending"), ("start_time", "ascending"), ("label", "ascending")]
        table = detections.sort_by(order)  # type: ignore[arg-type]
        start = 0
        for n_rows in table.group_by("file", use_threads=False).aggregate([([], "count_all")])["count_all"].to_pylist():
            rows = table.slice(start, n_rows).to_pylist()
            start += n_rows
            yield rows[0]["file"], rows


def _folders_below_the_shared_one(files: Sequence[str]) -> list[list[str]]:
    """Return for each file the folders in which it lies, without those that all files share."""
    folders = [file.split("/")[:-1] for file in files]
    shared = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return [[part for part in parts[shared:] if part not in ("", ".", "..")] for parts in folders]


def _write_each(
    recordings: Iterator[tuple[str, Rows]], new: Path, suffix: str, write: Callable[[TextIO, str, Rows], None]
) -> None:
    """Write a file for each recording, in folders like those of the recordings."""
    written: list[tuple[str, Path]] = []
    for number, (file, rows) in enumerate(recordings):
        path = new / f".{number}"  # named after the recording once the folder that all share is known
        with path.open("w", encoding="utf-8", newline="") as stream:
            write(stream, file, rows)
        written.append((file, path))
    folders = _folders_below_the_shared_one([file for file, _ in written])
    for (file, path), parts in zip(written, folders, strict=True):
        name = file.rpartition("/")[2]
        target = new.joinpath(*parts, f"{name.rpartition('.')[0] or name}{suffix}")
        if target.exists():  # a.wav beside a.flac
            target = target.with_name(f"{name}{suffix}")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def _raven_row(number: int, row: dict[str, Any], before_s: float) -> list[str]:
    file = row["file"]
    begin_s, end_s = row["start_time"], row["end_time"]
    return [
        *(str(number), "Spectrogram 1", "1", f"{before_s + begin_s:.6f}", f"{before_s + end_s:.6f}"),
        *("0.000", f"{row['sample_rate'] / 2:.3f}", file, file.rpartition("/")[2], f"{begin_s:.6f}"),
        *(row["label"], f"{row['score']:.4f}"),
    ]


def _raven_writer(stream: TextIO) -> Any:
    writer = csv.writer(
        stream, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\", quotechar=None
    )
    writer.writerow(RAVEN_COLUMNS)
    return writer


def _write_raven(recordings: Iterator[tuple[str, Rows]], new: Path, root: str) -> None:
    def write(stream: TextIO, _: str, rows: Rows) -> None:
        writer = _raven_writer(stream)
        writer.writerows(_plain(_raven_row(number, row, 0.0)) for number, row in enumerate(rows, start=1))

    _write_each(recordings, new, ".Table.1.selections.txt", write)


def _write_raven_combined(recordings: Iterator[tuple[str, Rows]], new: Path, root: str) -> None:
    """Write one table. Begin Time counts from the start of the first recording, as if all were one sound."""
    before_s = _seconds_before(root)
    with (new / "detections.selections.txt").open("w", encoding="utf-8", newline="") as stream:
        writer = _raven_writer(stream)
        numbers = count(1)
        for file, rows in sorted(recordings):
            writer.writerows(_plain(_raven_row(next(numbers), row, before_s.get(file, 0.0))) for row in rows)


def _seconds_before(root: str) -> dict[str, float]:
    """Return for each stored recording the seconds of all recordings before it, in the order of their names."""
    durations: dict[str, float] = {}
    for uri in Store(root, "").read().shards:
        with storage.open_stream(uri) as stream:
            rows = pq.ParquetFile(stream).read(columns=["file", "duration"], use_threads=False)
        by_file = rows.group_by("file").aggregate([("duration", "max")])
        durations.update(zip(by_file["file"].to_pylist(), by_file["duration_max"].to_pylist(), strict=True))
    before_s, total_s = {}, 0.0
    for file in sorted(durations):
        before_s[file] = total_s
        total_s += durations[file]
    return before_s


def _plain(cells: list[str]) -> list[str]:
    """Return cells without tabs and line breaks, which Raven and Audacity would take as the end of a cell."""
    return [" ".join(cell.split()) if any(c in cell for c in "\t\r\n") else cell for cell in cells]


def _write_audacity(recordings: Iterator[tuple[str, Rows]], new: Path, root: str) -> None:
    def write(stream: TextIO, _: str, rows: Rows) -> None:
        for row in rows:
            cells = [f"{row['start_time']:.6f}", f"{row['end_time']:.6f}", row["label"]]
            stream.write("\t".join(_plain(cells)) + "\n")

    _write_each(recordings, new, ".txt", write)


def _write_kaleidoscope(recordings: Iterator[tuple[str, Rows]], new: Path, root: str) -> None:
    with (new / "detections.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(KALEIDOSCOPE_COLUMNS)
        for file, rows in recordings:
            folder, _, name = file.rpartition("/")
            parent, _, last = folder.rpartition("/")
            began = rows[0]["recorded_at"] if rows else None
            for row in rows:
                date, time, hour = _clock(began)
                length_s = row["end_time"] - row["start_time"]
                writer.writerow(
                    [
                        *(parent, last, name, "0", f"{row['start_time']:.3f}", f"{length_s:.3f}", date, time, hour),
                        *(row["label"], f"{row['score']:.4f}", ""),
                    ]
                )


def _clock(began: datetime | None) -> tuple[str, str, str]:
    """Return date, time and hour of a recording's start, as Kaleidoscope writes them; empty where not known."""
    return ("", "", "") if began is None else (f"{began:%Y-%m-%d}", f"{began:%H:%M:%S}", f"{began:%H}")


def _write_birdnet(recordings: Iterator[tuple[str, Rows]], new: Path, root: str) -> None:
    with (new / "detections.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(BIRDNET_COLUMNS)
        for file, rows in recordings:
            for row in rows:
                label = row["label"]
                times = f"{row['start_time']:.3f}", f"{row['end_time']:.3f}"
                writer.writerow([*times, label, label, f"{row['score']:.4f}", file])


FORMATS: dict[str, Callable[[Iterator[tuple[str, Rows]], Path, str], None]] = {
    "raven": _write_raven,
    "raven-combined": _write_raven_combined,
    "audacity": _write_audacity,
    "kaleidoscope": _write_kaleidoscope,
    "csv": _write_birdnet,
}
