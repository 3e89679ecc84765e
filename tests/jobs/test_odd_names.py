"""Names of every kind from the listing to the report: stored as they are, shown without what a terminal would obey."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.output.store import Store
from embedding.schema.recordings import RECORDINGS
from jobs.embed import main as embed
from jobs.export import main as export
from jobs.probe import main as probe
from jobs.report import main as report
from tests.support.audio import tone, write_audio
from tests.support.decoding import RATE_HZ, SECOND, EventRecord, decode
from tests.support.listings import list_inputs, listed_below
from tests.support.models import EFFICIENTNET
from tests.support.shards import write_output

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
    assert listed_below(archive) == sorted(NAMES)
    found = list_inputs(archive)
    assert found.ignored == {"with a name that is not UTF-8": 1}
    record = EventRecord()
    tables = list(decode(found.recordings.cast(RECORDINGS), [SECOND], 32, record))
    assert [Path(file).name for table in tables for file in table["file"].to_pylist()] == sorted(NAMES)
    assert not record.failures


def test_names_of_every_kind_are_stored_as_they_are_and_told_harmlessly(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        (archive / name).write_bytes(b"no audio")
    record = EventRecord()
    assert not list(decode(list_inputs(archive).recordings, [SECOND], 32, record))
    output = tmp_path / "out"
    write_output(str(output), {"/a/1.wav": np.ones((1, 4), np.float32)}, {"model": "m"}, 1)
    failures = [event for event in record.events if not isinstance(event, str)]
    Store(str(output), "{}").write_failures(failures, "0000000000aa")
    stored = pq.read_table(output / "failures")["file"].to_pylist()
    assert sorted(Path(file).name for file in stored) == sorted(NAMES)
    for arguments in ([], ["--json"]):
        report([str(output), *arguments])
        said = capsys.readouterr()
        assert not set(OBEYED) & set(said.out + said.err), arguments
        if arguments:
            assert sum(kind["recordings"] for kind in json.loads(said.out)["failures"].values()) == len(NAMES)


SECRET = "0123456789abcdefSECRET"


def test_what_is_said_of_odd_files_hides_credentials_in_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = f"?X-Amz-Signature={SECRET}&n="
    manifest = tmp_path / f"m{query}1.parquet"
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(9_000, np.int32)), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"file": long}), manifest)
    (tmp_path / f"npy{query}2").write_bytes(b"")
    weights = tmp_path / f"w{query}3.safetensors"
    weights.write_bytes(b"\xff" * 8)
    write_output(str(tmp_path / "out"), {"/a/1.wav": np.ones((1, 4), np.float32)}, {"model": "m"}, 1)
    out = str(tmp_path / "out")
    model = ["--model", EFFICIENTNET, "--checkpoint"]
    commands: list[tuple[Callable[[list[str]], int], list[str], str]] = [
        (embed, ["--input", str(manifest), "--output", out, *model, "random"], "has names of"),
        (probe, [out, "--labels", str(manifest)], "unpacks to"),
        (export, [out, "--to", "npy", str(tmp_path / f"npy{query}2")], "no earlier export"),
        (embed, ["--input", out, "--output", out, *model, str(weights), "--predict", "1"], "--"),
    ]
    for job, arguments, part in commands:
        assert job(arguments) == 2
        said = capsys.readouterr()
        assert part in said.err
        assert said.err.count("\n") == 1
        assert SECRET not in said.out + said.err
    name = f"x{query}4.wav"
    (tmp_path / name).write_bytes(b"no audio")
    record = EventRecord()
    assert not list(decode(list_inputs(tmp_path / name).recordings, [SECOND], 4, record))
    Store(out, "{}").write_failures([e for e in record.events if not isinstance(e, str)], "0000000000aa")
    report([out])
    assert SECRET not in "".join(capsys.readouterr())
    assert SECRET not in pq.read_table(f"{out}/failures")["message"].to_pylist()[0]
