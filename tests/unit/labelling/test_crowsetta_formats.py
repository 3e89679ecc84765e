"""Formats that crowsetta reads. crowsetta is an extra; a stand-in shows what is passed to it and taken from it."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedding.errors import RequestError
from embedding.labelling.label_tables import read_label_table


def annotation(path: str | None, **parts: Any) -> SimpleNamespace:
    return SimpleNamespace(notated_path=path, **parts)


def install(monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    transcriber = lambda name: SimpleNamespace(from_file=lambda uri: SimpleNamespace(to_annot=lambda: read(name, uri)))  # noqa: E731
    fake = SimpleNamespace(formats=SimpleNamespace(as_list=lambda: ["textgrid", "aud-bbox"]), Transcriber=transcriber)
    monkeypatch.setitem(sys.modules, "crowsetta", fake)


def test_sequences_and_boxes_become_annotations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    segment = SimpleNamespace(onset_s=1.0, offset_s=2.0, label="syllable")
    box = SimpleNamespace(onset=3.0, offset=4.0, label=5)
    tier = SimpleNamespace(segments=[segment])
    results = [
        annotation(None, seq=[tier, SimpleNamespace(segments=[])]),  # of a TextGrid with two tiers
        annotation("/x/one.wav", bboxes=[box]),
        annotation("/x/one.wav", bboxes=[]),
    ]
    install(monkeypatch, lambda name, uri: results)
    path = tmp_path / "two.TextGrid"
    path.touch()
    found = read_label_table(str(path), None, "textgrid", lambda: ["/a/one.wav", "/a/two.wav"])
    assert [tuple(row.values()) for row in found.table.to_pylist()] == [
        ("/a/two.wav", 1.0, 2.0, ["syllable"]),
        ("/a/one.wav", 3.0, 4.0, ["5"]),
    ]
    with pytest.raises(RequestError, match="did you mean 'textgrid'"):
        read_label_table(str(path), None, "textgrit", list)


def test_what_crowsetta_cannot_read_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(name: str, uri: str) -> None:
        raise ValueError("no such\ntier")

    install(monkeypatch, fail)
    (tmp_path / "a.TextGrid").touch()
    with pytest.raises(RequestError, match=r"a\.TextGrid cannot be read as textgrid: no such tier"):
        read_label_table(str(tmp_path), None, "textgrid", list)


def test_without_crowsetta_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "crowsetta", None)
    (tmp_path / "a.TextGrid").touch()
    with pytest.raises(RequestError, match=r"crowsetta is not installed: .*crowsetta"):
        read_label_table(str(tmp_path), None, "textgrid", list)


def test_times_in_samples_alone_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    segment = SimpleNamespace(onset_s=None, offset_s=None, label="x")
    install(monkeypatch, lambda name, uri: annotation("one.wav", seq=SimpleNamespace(segments=[segment])))
    (tmp_path / "a.TextGrid").touch()
    with pytest.raises(RequestError, match="times in samples"):
        read_label_table(str(tmp_path), None, "textgrid", list)
