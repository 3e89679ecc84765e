"""Tables of detections read by other projects' readers, and their annotations read back by ours."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.detecting.detections import DETECTIONS
from embedding.detecting.written_formats import write_detections
from embedding.labelling.label_tables import read_label_table
from tests.support.audio import tone, write_audio
from tests.support.commands import environment

pytestmark = pytest.mark.long  # installs 100 to 500 MB for each tool

ROWS = [
    {"name": "north/a.wav", "start_time": 0.5, "end_time": 2.5, "label": "wren"},
    {"name": "north/a.wav", "start_time": 3.0, "end_time": 4.0, "label": "Grünspecht, adult"},
    {"name": "süd/b c.wav", "start_time": 1.25, "end_time": 2.0, "label": "wren"},
]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder of recordings, and beside it ``detections`` with ROWS."""
    folder = tmp_path / "archive"
    for name in sorted({row["name"] for row in ROWS}):
        write_audio(folder / name, tone(5.0, 16_000), 16_000)
    rows = [
        {
            "file": str(folder / row["name"]),
            "file_id": at,
            "score": 0.75,
            "sample_rate": 16_000,
            "mean_score": 0.7,
            "windows": 1,
        }
        | {name: row[name] for name in ("start_time", "end_time", "label")}
        for at, row in enumerate(ROWS)
    ]
    (tmp_path / "detections").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, DETECTIONS), tmp_path / "detections" / "part.parquet")
    return folder


def run_program(python: Path, program: str, *arguments: object) -> Any:
    """Return the last line of a program, read as JSON."""
    command = [python, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


OPENSOUNDSCAPE = """
import json, sys
from pathlib import Path
from opensoundscape.annotations import BoxedAnnotations

folder, archive = Path(sys.argv[1]), Path(sys.argv[2])
tables = sorted(folder.rglob("*.selections.txt"))
audio = [str(archive / table.relative_to(folder)).replace(".Table.1.selections.txt", ".wav") for table in tables]
boxes = BoxedAnnotations.from_raven_files([str(table) for table in tables], "Annotation", audio_files=audio)
boxes.df.to_csv(sys.argv[3], index=False)
labels = sorted(set(boxes.df["annotation"]))
clips = boxes.clip_labels(clip_duration=1, min_label_overlap=0.25, full_duration=5, class_subset=labels)
clips.reset_index().to_csv(sys.argv[4], index=False)
names = ["audio_file", "start_time", "end_time", "annotation", "high_f"]
print(json.dumps(boxes.df[names].astype(object).values.tolist()))
"""


def test_opensoundscape_reads_the_tables_for_raven_and_we_read_its_own(
    python_with: Callable[[str], Path], archive: Path, tmp_path: Path
) -> None:
    write_detections(str(tmp_path / "detections"), "raven", tmp_path / "raven", str(tmp_path))
    python = python_with("opensoundscape")
    boxes, clips = tmp_path / "boxes.csv", tmp_path / "clips.csv"
    found = run_program(python, OPENSOUNDSCAPE, tmp_path / "raven", archive, boxes, clips)
    expected = [(str(archive / row["name"]), row["start_time"], row["end_time"], row["label"]) for row in ROWS]
    assert sorted(tuple(row[:4]) for row in found) == sorted(expected)
    assert {row[4] for row in found} == {8000}
    files = sorted({row[0] for row in expected})
    read = read_label_table(str(boxes), None, None, lambda: files).table
    rows = [(row["file"], row["start_time"], row["end_time"], *row["label"]) for row in read.to_pylist()]
    assert sorted(rows) == sorted(expected)
    clip_labels = read_label_table(str(clips), None, None, lambda: files)
    assert clip_labels.is_review
    present = {
        (row["file"], row["start_time"], *row["label"])
        for row in clip_labels.table.to_pylist()
        if row["verdict"] == "present"
    }
    assert present == {
        (file, float(second), label)
        for file, start_s, end_s, label in expected
        for second in range(5)
        if min(end_s, second + 1) - max(start_s, second) >= 0.25
    }


CROWSETTA = """
import json, sys
from pathlib import Path
import crowsetta

rows = []
for table in sorted(Path(sys.argv[1]).rglob("*.selections.txt")):
    annotation = crowsetta.formats.bbox.Raven.from_file(table, annot_col="Annotation").to_annot()
    rows += [[table.name.partition(".")[0], box.onset, box.offset, box.label] for box in annotation.bboxes]
print(json.dumps(rows))
"""
READ_BY_CROWSETTA = """
import json, sys
sys.path.insert(0, ".")
from embedding.labelling.label_tables import read_label_table
table = read_label_table(sys.argv[1], None, "aud-seq", lambda: sys.argv[2:]).table
rows = table.to_pylist()
print(json.dumps([[row["file"], row["start_time"], row["end_time"], *row["label"]] for row in rows]))
"""


def test_crowsetta_reads_the_tables_for_raven_and_label_tracks(
    python_with: Callable[[str], Path], archive: Path, tmp_path: Path
) -> None:
    for to in ("raven", "audacity"):
        write_detections(str(tmp_path / "detections"), to, tmp_path / to, str(tmp_path))
    python = python_with("crowsetta")
    expected = [[Path(row["name"]).stem, row["start_time"], row["end_time"], row["label"]] for row in ROWS]
    assert sorted(run_program(python, CROWSETTA, tmp_path / "raven")) == sorted(expected)
    files = sorted({str(archive / row["name"]) for row in ROWS})
    for file in files:
        track = tmp_path / "audacity" / Path(file).relative_to(archive).with_suffix(".txt")
        read = run_program(python, READ_BY_CROWSETTA, track, *files)
        own = [row for row in expected if row[0] == Path(file).stem]
        assert [[Path(row[0]).stem, *row[1:]] for row in read] == own
