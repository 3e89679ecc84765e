"""Files for other programs: their places, and what is in the way of a plain name."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.detecting.detections import DETECTIONS
from embedding.detecting.written_formats import write_detections


def written(tmp_path: Path, files: list[str]) -> list[str]:
    """Write a label track for each recording; return the names of the tracks."""
    rows = [
        {"file": file, "file_id": at, "start_time": 0.0, "end_time": 1.0, "label": "x\ty", "score": 0.5}
        | {"sample_rate": 8000, "mean_score": 0.5, "windows": 1}
        for at, file in enumerate(files)
    ]
    (tmp_path / "detections").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, DETECTIONS), tmp_path / "detections" / "part.parquet")
    assert write_detections(str(tmp_path / "detections"), "audacity", tmp_path / "out", str(tmp_path)) == len(files)
    tracks = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".json"]
    assert {path.read_text() for path in tracks} == {"0.000000\t1.000000\tx y\n"}
    return sorted(path.relative_to(tmp_path / "out").as_posix() for path in tracks)


@pytest.mark.parametrize(
    ("files", "tracks"),
    [
        (["/a/b/one.wav"], ["one.txt"]),
        (["/a/b/one.wav", "/a/c/one.wav", "/a/two.flac"], ["b/one.txt", "c/one.txt", "two.txt"]),
        (["s3://bucket/a/one.wav", "s3://bucket/b/one.wav"], ["a/one.txt", "b/one.txt"]),
        (["s3://bucket/one.wav", "/data/one.wav"], ["data/one.txt", "s3:/bucket/one.txt"]),
        (["/a/one.flac", "/a/one.wav"], ["one.txt", "one.wav.txt"]),
        (["/a/1.wav", "/a/0.wav"], ["0.txt", "1.txt"]),
        (["/a/../../x.wav", "/b/y.wav"], ["a/x.txt", "b/y.txt"]),
        (["/a/no suffix", "/a/.hidden"], [".hidden.txt", "no suffix.txt"]),
    ],
)
def test_tracks_lie_like_their_recordings(tmp_path: Path, files: list[str], tracks: list[str]) -> None:
    assert written(tmp_path, files) == tracks
