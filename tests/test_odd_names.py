"""Names of every kind from the listing to the report: stored as they are, shown without what a terminal would obey."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding.decoding.decode import decode
from embedding.listing.sources import RECORDINGS
from embedding.output.store import Store
from jobs.report import main as report
from tests.conftest import tone, write_audio
from tests.decoding import RATE_HZ, SECOND, Observer
from tests.listings import below, listing
from tests.shards import write_output

NAMES = [
    "line\nend.wav",
    "carriage\rreturn.wav",
    "esc\x1b]0;title\x07.wav",
    "quotes'\"`.wav",
    "<script>alert(1)</script>.wav".replace("/", "\u2215"),
    "\u202egnp.wav",
    "[bold red]markup[/bold red].wav".replace("/", "\u2215"),
    "\ufeffmark.wav",
    "{braces} %s $HOME.wav",
    "a" * 251 + ".wav",
]
OBEYED = "\x1b\x07\r\u202e"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for name in NAMES:
        write_audio(folder / "a.wav", tone(1, RATE_HZ), RATE_HZ).rename(folder / name)
    return folder


def test_names_of_every_kind_are_listed_and_decoded(archive: Path) -> None:
    Path(os.fsdecode(os.fsencode(archive) + b"/not-utf8-\xff.wav")).write_bytes(b"x")
    assert below(archive) == sorted(NAMES)
    found = listing(archive)
    assert found.left_out == {"with a name that is not UTF-8": 1}
    observer = Observer()
    tables = list(decode(found.recordings.cast(RECORDINGS), [SECOND], 32, observer))
    assert [Path(file).name for table in tables for file in table["file"].to_pylist()] == sorted(NAMES)
    assert not observer.failures


def test_names_of_every_kind_are_stored_as_they_are_and_told_harmlessly(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        (archive / name).write_bytes(b"no audio")
    observer = Observer()
    assert not list(decode(listing(archive).recordings, [SECOND], 32, observer))
    output = tmp_path / "out"
    write_output(str(output), {"/a/1.wav": np.ones((1, 4), np.float32)}, {"model": "m"}, 1)
    failures = [event for event in observer.events if not isinstance(event, str)]
    Store(str(output), "{}").write_failures(failures, "0000000000aa")
    stored = pq.read_table(output / "failures")["file"].to_pylist()
    assert sorted(Path(file).name for file in stored) == sorted(NAMES)
    for arguments in ([], ["--json"]):
        report([str(output), *arguments])
        said = capsys.readouterr()
        assert not set(OBEYED) & set(said.out + said.err), arguments
        if arguments:
            assert sum(kind["recordings"] for kind in json.loads(said.out)["failures"].values()) == len(NAMES)
