"""Odd file names from the listing to the report: stored unchanged, printed without control characters."""

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
CONTROL_CHARACTERS = "\x1b\x07\r\u202e"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for name in NAMES:
        write_audio(folder / "a.wav", tone(1, RATE_HZ), RATE_HZ).rename(folder / name)
    return folder


def test_recordings_with_odd_names_are_listed_and_decoded(archive: Path) -> None:
    Path(os.fsdecode(os.fsencode(archive) + b"/not-utf8-\xff.wav")).write_bytes(b"x")
    assert listed_below(archive) == sorted(NAMES)
    listed = list_inputs(archive)
    assert listed.ignored == {"with a name that is not UTF-8": 1}
    record = EventRecord()
    tables = list(decode(listed.recordings.cast(RECORDINGS), [SECOND], 32, record))
    assert [Path(file).name for table in tables for file in table["file"].to_pylist()] == sorted(NAMES)
    assert not record.failures


def test_odd_names_are_stored_unchanged_and_printed_without_control_characters(
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
        printed = capsys.readouterr()
        assert not set(CONTROL_CHARACTERS) & set(printed.out + printed.err), arguments
        if arguments:
            assert sum(kind["recordings"] for kind in json.loads(printed.out)["failures"].values()) == len(NAMES)


SECRET = "0123456789abcdefSECRET"


def test_messages_hide_credentials_in_file_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = f"?X-Amz-Signature={SECRET}&n="
    manifest = tmp_path / f"m{query}1.parquet"
    too_long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(9_000, np.int32)), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"file": too_long}), manifest)
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
    for job, arguments, message in commands:
        assert job(arguments) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert SECRET not in printed.out + printed.err
    name = f"x{query}4.wav"
    (tmp_path / name).write_bytes(b"no audio")
    record = EventRecord()
    assert not list(decode(list_inputs(tmp_path / name).recordings, [SECOND], 4, record))
    Store(out, "{}").write_failures([event for event in record.events if not isinstance(event, str)], "0000000000aa")
    report([out])
    assert SECRET not in "".join(capsys.readouterr())
    assert SECRET not in pq.read_table(f"{out}/failures")["message"].to_pylist()[0]
