"""Damaged or forged outputs: each command ends with one line that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.cli.terminal import Terminal
from embedding.config import make_config
from embedding.driver import embed as run_embed
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.output.shard_facts import FACTS_KEY
from embedding.output.shard_reading import open_shard
from embedding.output.shard_schema import AUDIO_HASHES_KEY, SETTINGS_KEY
from embedding.schema.failures import FAILURES
from embedding.schema.vectors import matrix
from jobs.embed import main as embed
from jobs.export import main as export
from jobs.report import main as report
from tests.support.models import EFFICIENTNET
from tests.support.shards import write_output

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_output(str(tmp_path / "out"), {"/a/1.wav": np.ones((3, 4), np.float32)}, {"model": "m"}, 1)
    return tmp_path / "out"


def assert_one_line(capsys: pytest.CaptureFixture[str], *parts: object) -> None:
    """Check that stderr is one line which contains all ``parts``."""
    error = capsys.readouterr().err
    assert error.startswith("avex-batch: ")
    assert error.count("\n") == 1, error
    for part in parts:
        assert str(part) in error, error


def replace_column(name: str, values: Any) -> Change:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, values)

    return change


def replace_metadata(key: str, value: bytes) -> Change:
    def change(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata({**(table.schema.metadata or {}), key.encode(): value})

    return change


def vectors(*rows: list[float | None] | None) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32(), 4))


DAMAGED: dict[str, Change] = {
    "settings no JSON": replace_metadata(SETTINGS_KEY, b"{"),
    "settings no UTF-8": replace_metadata(SETTINGS_KEY, b'{"model": "\xff"}'),
    "settings a list": replace_metadata(SETTINGS_KEY, b"[1]"),
    "settings nested": replace_metadata(SETTINGS_KEY, b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "window_s a text": replace_metadata(SETTINGS_KEY, b'{"window_s": "long"}'),
    "hashes no base64": replace_metadata(AUDIO_HASHES_KEY, b"?" * 16),
    "hashes cut short": replace_metadata(AUDIO_HASHES_KEY, b"AAAA"),
    "facts no base64": replace_metadata(FACTS_KEY, b"?" * 16),
    "facts no zlib": replace_metadata(FACTS_KEY, b"AAAA"),
    "index negative": replace_column("window_index", pa.array([-1, 0, 1], pa.int32())),
    "no windows": replace_column("n_windows", pa.array([0, 0, 0], pa.int32())),
    "duration NaN": replace_column("duration", pa.array([1, float("nan"), 1], pa.float64())),
    "duration negative": replace_column("duration", pa.array([1, -1, 1], pa.float64())),
    "file_id null": replace_column("file_id", pa.array([1, None, 1], pa.int64())),
    "file null": replace_column("file", pa.array(["/a", None, "/a"])),
    "embedding null": replace_column("embedding", vectors([1, 2, 3, 4], None, [1, 2, 3, 4])),
}
FOREIGN: dict[str, Change] = {
    "file an integer": replace_column("file", pa.array([1, 2, 3])),
    "file a list": replace_column("file", pa.array([["/a"], ["/a"], ["/a"]])),
    "file_id a text": replace_column("file_id", pa.array(["1", "2", "3"])),
    "index a number": replace_column("window_index", pa.array([0.0, 1.0, 2.0])),
    "embedding ragged": replace_column("embedding", pa.array([[1.0], [1.0, 2.0], []], pa.list_(pa.float32()))),
    "embedding strings": replace_column("embedding", pa.array(["a", "b", "c"])),
    "embedding doubles": replace_column("embedding", pa.array([[1.0], [2.0], [3.0]], pa.list_(pa.float64(), 1))),
    "a column twice": lambda table: table.append_column("file", table["file"]),
    "a column less": lambda table: table.drop_columns("sample_rate"),
}


@pytest.mark.parametrize("statistics", [True, False], ids=["", "without statistics"])
@pytest.mark.parametrize(
    ("name", "reason"), [*((name, "damaged") for name in DAMAGED), *((name, "no shard") for name in FOREIGN)]
)
def test_a_damaged_or_foreign_shard_is_named(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str, *, statistics: bool
) -> None:
    shard = output / "embeddings" / "s0.parquet"
    pq.write_table((DAMAGED | FOREIGN)[name](pq.read_table(shard)), shard, write_statistics=statistics)
    assert report([str(output)]) == 2
    assert_one_line(capsys, shard, f"is {reason}")
    code = export([str(output), "--to", "npy", str(tmp_path / "npy")])
    assert code in ((0, 2) if name.startswith(("hashes", "facts")) else (2,))
    if code:
        assert_one_line(capsys, shard)
    assert (tmp_path / "npy").exists() == (code == 0)
    capsys.readouterr()


def test_a_shard_with_an_incomplete_vector_is_named_by_every_reader(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = output / "embeddings" / "s0.parquet"
    change = replace_column("embedding", vectors([1, 2, 3, 4], [1, None, 3, 4], [1, 2, 3, 4]))
    pq.write_table(change(pq.read_table(shard)), shard)
    assert export([str(output), "--to", "npy", str(tmp_path / "npy")]) == 2
    assert_one_line(capsys, shard, "is damaged (values of 'embedding' are missing)")
    with pytest.raises(RequestError, match="values of a vector are missing"), open_shard(str(shard)) as opened:
        matrix(opened.read(columns=["embedding"])["embedding"])


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"file": [1]}),
        pa.table({"file": [["/a"]]}),
        pa.table({"file_id": ["x"]}),
        pa.table({name: pa.nulls(1, kind) for name, kind in zip(FAILURES.names, FAILURES.types, strict=True)}),
        pa.table({"something": ["else"]}),
    ],
    ids=["integer", "list", "text", "nulls", "else"],
)
def test_a_damaged_file_of_failures_is_named(output: Path, capsys: pytest.CaptureFixture[str], table: pa.Table) -> None:
    (output / "failures").mkdir()
    pq.write_table(table, output / "failures" / "x.parquet")
    assert report([str(output)]) == 2
    assert_one_line(capsys, output / "failures" / "x.parquet", "is damaged")


DAMAGED_JSON = {
    "run.json": [
        b"{}",
        b'{"settings":[1]}',
        b'{"settings":{"window_s":"x"}}',
        b'{"settings":{},"options":{"input":[1]}}',
    ],
    "report.json": [
        b'{"runs":5}',
        b'{"runs":[5]}',
        b'{"runs":[{"run_id":"../../x","host":"h","started":"2025-01-01"}]}',
        b'{"runs":[{"run_id":"0000000000aa","host":"h","started":"yesterday"}]}',
        b'{"runs":[{"run_id":"0000000000aa","host":"h","started":"0001-01-01T00:00:00+23:59"}]}',
        b'{"runs":[{"run_id":"0000000000aa","host":"h","started":"2025-01-01","wall_s":NaN}]}',
        b'{"output":5}',
        b'{"state":[]}',
        b'{"recordings":{"balanced":true}}',
    ],
}
DAMAGED_ANY_JSON = [
    b"",
    b"[]",
    b"5",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b"{" * 100_000,
    b'{"a":' * 100_000,
    b'{"settings":{"a":"\\ud800"}}',
]


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name in DAMAGED_JSON for content in DAMAGED_JSON[name] + DAMAGED_ANY_JSON]
)
def test_a_damaged_json_file_is_named(
    output: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (output / name).write_bytes(content)
    assert report([str(output)]) == 2
    assert_one_line(capsys, f"cannot read {output / name}: ")


@pytest.mark.parametrize("content", [b"{}", b'{"settings":[1]}', b"\xff"])
def test_jobs_embed_names_a_damaged_run_json(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (output / "run.json").write_bytes(content)
    (tmp_path / "a.wav").write_bytes(b"x")
    arguments = ["--input", tmp_path / "a.wav", "--output", output, "--model", EFFICIENTNET, "--checkpoint", "random"]
    assert embed([*map(str, arguments), "--dry-run"]) == 2
    assert_one_line(capsys, f"cannot read {output}/run.json: ")


def test_unknown_keys_of_later_versions_are_kept(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"run_id": "0000000000aa", "host": "h", "started": "2025-01-01T00:00:00+00:00", "more": {"of": ["it"]}}
    content = {"state": "complete", "runs": [run], "more": 1}
    (output / "report.json").write_text(json.dumps(content))
    (output / "run.json").write_text(json.dumps({"settings": {"model": "m", "more": None}, "more": 1}))
    report([str(output), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"][0]["more"] == run["more"]


@pytest.mark.parametrize("option", ["--window-s", "--hop-s"])
@pytest.mark.parametrize("value", ["1e308", "1e300", "inf", "1e-300"])
def test_an_impossible_window_length_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    arguments = ["--input", tmp_path / "a.wav", "--output", tmp_path / "out", "--model", EFFICIENTNET]
    assert embed([*map(str, arguments), "--checkpoint", "random", "--dry-run", option, value]) == 2
    assert_one_line(capsys, f"{option}: ")


@pytest.mark.parametrize("name", ["hashes no base64", "file null"])
def test_jobs_embed_names_a_damaged_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    arguments = {"input": [str(tmp_path / "a.wav")], "output": str(tmp_path / "out"), "model": [EFFICIENTNET]}
    config = make_config({**arguments, "checkpoint": ["random"], "dry_run": True})
    settings = Settings.of(config).guarded()
    # The same recording with another time of change, so jobs.embed reads the hashes of the shard.
    write_output(str(tmp_path / "out"), {str(tmp_path / "a.wav"): np.ones((3, 4), np.float32)}, settings, 1)
    assert run_embed(config, Terminal.on_stdout()) is None
    shard = tmp_path / "out" / "embeddings" / "s0.parquet"
    pq.write_table(DAMAGED[name](pq.read_table(shard)), shard)
    options = [f"--{key}={value[0] if isinstance(value, list) else value}" for key, value in arguments.items()]
    assert embed([*options, "--checkpoint=random", "--dry-run"]) == 2
    assert_one_line(capsys, shard, "is damaged")


def test_a_shard_with_too_many_rows_is_named_before_it_is_read(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding.output.shard_schema.MOST_ROWS", 2)
    assert report([str(output)]) == 2
    assert_one_line(capsys, output / "embeddings" / "s0.parquet", "is no shard", "it claims 3 rows")
