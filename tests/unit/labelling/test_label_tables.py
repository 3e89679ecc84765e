"""Labels from the files of other programs, as those programs write them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.errors import RequestError
from embedding.labelling.annotations import RecordingNames
from embedding.labelling.label_tables import LabelTable, read_label_table
from embedding.labelling.text_tables import parse_seconds
from tests.support.annotation_files import RAVEN_HEAD, audacity_track, raven_table

STORED = ["/archive/a/one.wav", "/archive/b/one.wav", "/archive/b/two.flac", "s3://bucket/Grün.WAV"]


def read(source: object, column: str | None = None, stored: list[str] = STORED) -> LabelTable:
    return read_label_table(str(source), column, None, lambda: stored)


def rows(found: LabelTable) -> list[tuple[Any, ...]]:
    names = ("file", "start_time", "end_time", found.column)
    rows = [tuple(row[name] for name in names) for row in found.table.to_pylist()]
    return [(*row[:3], row[3] and row[3][0]) for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_raven_tables_of_single_recordings_are_found_by_their_names(tmp_path: Path, encoding: str) -> None:
    raven_table(tmp_path / "two.Table.1.selections.txt", (1, 2.5, "Grünspecht"), (3, 3, "Kuckuck"), encoding=encoding)
    raven_table(tmp_path / "deep" / "GRÜN.selections.txt", (0, 99, "Kuckuck"), encoding=encoding)
    found = read(tmp_path)
    assert sorted(rows(found)) == [
        ("/archive/b/two.flac", 1, 2.5, "Grünspecht"),
        ("/archive/b/two.flac", 3, 3, "Kuckuck"),
        ("s3://bucket/Grün.WAV", 0, 99, "Kuckuck"),
    ]
    assert not found.unmatched.files
    assert not found.is_review
    assert sorted(rows(read(tmp_path / "*.txt"))) == sorted(rows(found))[:2]


def test_a_raven_table_of_many_recordings_has_times_in_each_recording(tmp_path: Path) -> None:
    lines = [
        f"{RAVEN_HEAD}\tBegin Path\tFile Offset (s)\tAnnotation",
        "1\tSpectrogram 1\t1\t100.5\t102.0\t0\t9\tC:\\data\\archive\\b\\one.wav\t0.5\twren",
        "2\tSpectrogram 1\t1\t100.5\t102.0\t0\t9\tC:\\data\\archive\\a\\one.wav\t0.5\twren",
        "3\tSpectrogram 1\t1\t7.5\t8\t0\t9\tthree.wav\t7.5\twren",
    ]
    path = tmp_path / "all.txt"
    path.write_text("\n".join(lines))
    found = read(path)
    assert rows(found) == [("/archive/b/one.wav", 0.5, 2.0, "wren"), ("/archive/a/one.wav", 0.5, 2.0, "wren")]
    assert (found.unmatched.n_annotations, found.unmatched.files) == (1, ["three.wav"])
    assert "1 annotation of 1 file match no recording of the output: three.wav" in str(found.unmatched)


def test_a_selection_without_a_name_is_unsure_and_an_empty_table_says_that_nothing_was_found(tmp_path: Path) -> None:
    raven_table(tmp_path / "two.selections.txt", (1, 2, "wren"), (5, 6, ""))
    raven_table(tmp_path / "Grün.selections.txt")
    found = read(tmp_path)
    assert found.table.to_pylist() == [
        {"file": "s3://bucket/Grün.WAV", "start_time": None, "end_time": None, "label": None, "verdict": "present"},
        {"file": "/archive/b/two.flac", "start_time": 1, "end_time": 2, "label": ["wren"], "verdict": "present"},
        {"file": "/archive/b/two.flac", "start_time": 5, "end_time": 6, "label": None, "verdict": "unsure"},
    ]


def test_the_column_of_labels_is_found_or_asked_for(tmp_path: Path) -> None:
    for column in ("Annotation", "species", "Call Type", "mein Vogel"):
        assert rows(read(raven_table(tmp_path / "two.txt", (1, 2, "x"), column=column)))[0][3] == "x"
    path = raven_table(tmp_path / "two.txt", (1, 2, "x\ty"), column="sex\tage")
    with pytest.raises(RequestError, match="which of sex, age has the labels"):
        read(path)
    assert rows(read(path, "age"))[0][3] == "y"
    with pytest.raises(RequestError, match="has no column 'agee'"):
        read(path, "agee")


def test_decimal_commas_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text(f"{RAVEN_HEAD}\tSpecies\n1\tSpectrogram 1\t1\t0,25\t1,75\t0\t9\twren\n")
    assert rows(read(path)) == [("/archive/b/two.flac", 0.25, 1.75, "wren")]
    assert [parse_seconds(text) for text in ("1,5", "1.5", "x", "", "nan", "inf", "1,2,3")] == [
        *(1.5, 1.5, None, None, None, None, None)
    ]


def test_audacity_tracks(tmp_path: Path) -> None:
    path = audacity_track(tmp_path / "two.txt", (0.5, 2, "wren"), (3, 3, "tick"), (4, 5, ""))
    found = read(path)
    assert rows(found)[:2] == [("/archive/b/two.flac", 0.5, 2, "wren"), ("/archive/b/two.flac", 3, 3, "tick")]
    assert found.table["verdict"].to_pylist() == ["present", "present", "unsure"]
    path.write_text("0.5\t2\twren\n2\t1\tbackwards\n")
    with pytest.raises(RequestError, match="line 2"):
        read(path)


def test_opensoundscape_clips_and_boxes(tmp_path: Path) -> None:
    clips = tmp_path / "clips.csv"
    clips.write_text("file,start_time,end_time,wren,rain\none.wav,0,5,1.0,0\n/x/b/two.flac,5,10,,0.0\n")
    with pytest.raises(RequestError, match=r"'one.wav' in .*clips.csv may be /archive/a/one.wav or /archive/b/one.wav"):
        read(clips)
    found = read(clips, stored=STORED[1:])
    assert found.is_review
    assert list(zip(rows(found), found.table["verdict"].to_pylist(), strict=True)) == [
        (("/archive/b/one.wav", 0, 5, "wren"), "present"),
        (("/archive/b/one.wav", 0, 5, "rain"), "absent"),
        (("/archive/b/two.flac", 5, 10, "wren"), "unsure"),
        (("/archive/b/two.flac", 5, 10, "rain"), "absent"),
    ]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(
        "audio_file,annotation_file,annotation,start_time,end_time,low_f,high_f\n"
        "a/one.wav,a.txt,wren,1,2,10,20\nb/one.wav,b.txt,,3,4,10,20\n"
    )
    found = read(boxes)
    assert rows(found) == [("/archive/a/one.wav", 1, 2, "wren"), ("/archive/b/one.wav", 3, 4, None)]
    assert not found.is_review


def test_manifests_stay_manifests(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label,wren\none.wav,rain,1\n")
    assert rows_of(read(path)) == [{"file": f"{tmp_path}/one.wav", "label": "rain", "wren": "1"}]
    path.write_text("file,start_time,end_time,species\nx.wav,0,1,wren\n")
    assert read(path, "species").column == "species"
    pq.write_table(pa.table({"file": ["/a.wav"], "label": ["x"], "verdict": ["absent"]}), tmp_path / "labels.parquet")
    assert read(tmp_path / "labels.parquet").is_review


def rows_of(found: LabelTable) -> list[dict[str, Any]]:
    return found.table.to_pylist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\nworld\n", "is no manifest"),
        (b"\x00\x01\x02" * 400, "is no text"),
        (f"{RAVEN_HEAD}\tSpecies\n1\tS\t1\tx\t2\t0\t0\tw\n".encode(), "line 2"),
        (f"{RAVEN_HEAD}\tSpecies\n1\tS\t1\t3\t2\t0\t0\tw\n".encode(), "ends before it begins"),
        (f"{RAVEN_HEAD}\tSpecies\tSpecies\n".encode(), "two columns 'Species'"),
        (f"{RAVEN_HEAD}\n1\tS\t1\t1\t2\t0\t0\n".encode(), "name the column"),
        (b"\xff\xfeabc", "is no text in UTF-16"),
    ],
)
def test_what_is_no_annotation_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "two.txt"
    path.write_bytes(content)
    with pytest.raises(RequestError) as error:
        read(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_source_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("empty", "empty/*.txt"):
        with pytest.raises(RequestError, match=r"there is no \.txt, \.csv, \.tsv file in"):
            read(tmp_path / source)
    with pytest.raises(RequestError, match="cannot read"):
        read(tmp_path / "missing.txt")


@settings(max_examples=300)
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: f"{RAVEN_HEAD}\tSpecies\n{text}".encode()))
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "two.txt"
    path.write_bytes(content)
    message = ""
    files: list[str] = []
    try:
        files = read(path).table["file"].to_pylist()
    except RequestError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1
    assert set(files) <= set(STORED)


def test_a_name_means_the_recording_whose_folders_agree_best() -> None:
    names = RecordingNames(STORED)
    for name, expected in {
        "/archive/a/one.wav": STORED[0],
        "a\\one.wav": STORED[0],
        "//server/share/B/ONE.WAV": STORED[1],
        "two": STORED[2],
        "elsewhere/two.flac": STORED[2],
        "grün.wav": STORED[3],
        "three.wav": None,
        "": None,
        "/": None,
    }.items():
        assert names.find(name, "x.txt") == expected


def test_labels_and_quotation_marks_are_taken_as_they_are(tmp_path: Path) -> None:
    path = raven_table(tmp_path / "two.txt", (1, 2, '"song'), (3, 4, "song; faint"), (5, 6, "it's"))
    assert [row[3] for row in rows(read(path))] == ['"song', "song; faint", "it's"]
    path = audacity_track(tmp_path / "two.txt", (1, 2, "a; b"), (3, 4, "rain\x85wind"))
    assert [row[3] for row in rows(read(path))] == ["a; b", "rain\x85wind"]
    path.write_bytes(b"\r1\t2\tx\r3\t4\ty\r")
    assert [row[3] for row in rows(read(path))] == ["x", "y"]


def test_tables_of_several_sites_belong_to_their_own_site(tmp_path: Path) -> None:
    for site in ("a", "b"):
        audacity_track((tmp_path / site / "one.txt"), (1, 2, f"at {site}"))
    raven_table(tmp_path / "b" / "two.selections.txt", (3, 4, "x"))
    assert sorted(rows(read(tmp_path))) == [
        ("/archive/a/one.wav", 1, 2, "at a"),
        ("/archive/b/one.wav", 1, 2, "at b"),
        ("/archive/b/two.flac", 3, 4, "x"),
    ]
    # The output holds the recordings of one site alone.
    found = read(tmp_path, stored=[STORED[0]])
    assert rows(found) == [("/archive/a/one.wav", 1, 2, "at a")]
    assert len(found.unmatched.files) == 2


def test_the_first_column_with_a_name_says_which_recording_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "all.txt"
    head = f"{RAVEN_HEAD}\tBegin Path\tBegin File\tSpecies\n"
    path.write_text(f"{head}1\tS\t1\t1\t2\t0\t9\t\ttwo.flac\twren\n")
    assert rows(read(path)) == [("/archive/b/two.flac", 1, 2, "wren")]


def test_a_manifest_may_have_what_is_no_label(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"file,label,note,note\none.wav,rain,{'x' * 200_000},y\n")
    assert read(path).table["label"].to_pylist() == ["rain"]
    path.write_text("file,label\none.wav,rain\n")
    (tmp_path / "more.csv").write_text("file,label\ntwo.wav,wind\n")
    with pytest.raises(RequestError, match="is a manifest beside other files: name one manifest"):
        read(tmp_path)
