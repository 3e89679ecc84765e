"""Lines about the result of a run, and commands to read its output."""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding import announce
from embedding.announce import announce_result, announce_slow_precision
from tests.support.balances import BALANCE
from tests.support.terminals import make_counters, terminal_and_text


def test_the_result_shows_work_that_was_done_again() -> None:
    counters = make_counters(windows_encoded=5400, windows_written=5360, shards=3)
    counters.tasks_again, counters.encoders_again = 3, 1
    terminal, text = terminal_and_text()
    announce_result(terminal, BALANCE, counters, 5.0, "/out")
    assert (
        text.getvalue().splitlines()[1]
        == "  done again because workers were lost: 3 decode tasks, 1 encoder, 40 windows"
    )


def test_the_result_counts_failures_by_kind_and_shows_commands_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = make_counters(recordings=894, windows_written=5360, shards=3)
    terminal, text = terminal_and_text()
    failures = {"corrupt": {"recordings": 1, "examples": []}, "empty": {"recordings": 1, "examples": []}}
    monkeypatch.setattr(announce.sys, "executable", "/env/bin/python")
    monkeypatch.setattr(announce.shutil, "which", lambda program: f"/usr/bin/{program}")
    announce_result(terminal, replace(BALANCE, failures=failures), counters, 372.0, "/out")
    assert text.getvalue().splitlines() == [
        "done in 6 min 12 s: 1,202 of 1,204 recordings embedded and saved (310 of them before) · "
        "2 failed: corrupt 1, empty 1 · 5,360 windows in 3 shards",
        """  duckdb -c "select * from '/out/embeddings/*.parquet' limit 5\"""",
        """  /env/bin/python -c "import pandas; print(pandas.read_parquet('/out/embeddings'))\"""",
        "  failures: /out/failures/ · recordings: /out/recordings.parquet · report: /out/report.json",
    ]


def test_the_result_counts_changed_and_unchanged_recordings() -> None:
    terminal, text = terminal_and_text()
    balance = replace(BALANCE, failed=0, changed=12, unchanged=1)
    announce_result(terminal, balance, make_counters(windows_written=1, shards=1), 5.0, "/out")
    assert text.getvalue().splitlines()[0] == (
        "done in 5 s: 1,202 of 1,204 recordings embedded and saved (309 of them before; 12 again, because they had "
        "changed; 1 had a new time or size, but the same audio) · 1 window in 1 shard"
    )
    assert text.getvalue().splitlines()[-1] == "  recordings: /out/recordings.parquet · report: /out/report.json"


def test_commands_use_only_programs_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce.shutil, "which", lambda _: None)
    (command,) = announce.commands_to_read("/out/embeddings")
    assert shlex.split(command)[0] == sys.executable


@pytest.mark.parametrize("name", ["out", "it's $HOME", 'a "b" c\'s', "now `date`", "Grün & Söhne; rm"])
def test_commands_work_in_a_shell_for_any_name_of_an_output(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce.shutil, "which", lambda program: f"/usr/bin/{program}")
    output = tmp_path / name
    (output / "embeddings").mkdir(parents=True)
    pq.write_table(pa.table({"file": ["a.wav"]}), output / "embeddings" / "s.parquet")
    terminal, text = terminal_and_text()
    announce_result(terminal, BALANCE, make_counters(windows_written=1, shards=1), 1.0, str(output))
    _, duckdb_line, python_line, _ = text.getvalue().splitlines()
    program, option, query = shlex.split(duckdb_line)
    assert (program, option) == ("duckdb", "-c")
    assert duckdb.execute(query).fetchall() == [("a.wav",)]
    assert "a.wav" in subprocess.run(["bash", "-c", python_line], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("precision", "has_products", "lines"),
    [
        ("bf16", False, ["--precision bf16: this CPU has no instructions for bf16, and computes in fp32"]),
        (
            "int8",
            False,
            [
                "--precision int8: this CPU has no instructions for products of 8 bits (VNNI); int8 is no faster "
                "than fp32"
            ],
        ),
        ("bf16", True, []),
        ("int8", True, []),
    ],
)
def test_a_precision_that_gains_nothing_on_this_cpu_is_told(
    precision: str, has_products: bool, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding.announce.lacks_products", lambda _: not has_products)
    terminal, text = terminal_and_text()
    announce_slow_precision(terminal, precision)
    assert text.getvalue().splitlines() == lines
