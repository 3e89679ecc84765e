"""What a person sees, in a terminal and in a log."""

import io
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from embedding import announce
from embedding.announce import announce_result
from embedding.cli import progress_display
from embedding.cli.progress_display import ProgressDisplay, describe
from embedding.cli.terminal import Terminal
from embedding.counters import Counters
from embedding.errors import RequestError, print_error
from embedding.planning.placement import ClusterResources, plan_placement
from embedding.text import audio_length, duration, size, terminal_json
from tests.unit.output.test_counters import BALANCE


def console(*, is_terminal: bool) -> tuple[Terminal, io.StringIO]:
    text = io.StringIO()
    return Terminal(Console(file=text, force_terminal=is_terminal, width=120, highlight=False, soft_wrap=True)), text


def counters(**counts: float) -> Counters:
    made = Counters()
    made.add("encode", 1.0, {}, **counts)
    return made


def look() -> ClusterResources:
    return ClusterResources(n_cpus=16, n_gpus=2, memory_bytes=0, node_cpus=4, n_nodes=4, is_own=False)


def test_a_log_gets_one_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: now_s)
    shown, text = console(is_terminal=False)
    with ProgressDisplay(shown, 40, 4000.0) as watch:
        for second in range(35):
            now_s = 100.0 + second
            watch(counters(recordings=second, windows_encoded=second + 1, audio_encoded_s=10.0 * (second + 1)), look)
    lines = text.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["10/40 recordings", "20/40 recordings", "30/40 recordings"]
    assert "31 windows · 310 s of audio · " in lines[-1]
    assert lines[-1].endswith(" left")


def test_a_run_that_waits_says_for_what_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: now_s)
    shown, text = console(is_terminal=False)
    counted = Counters()
    with ProgressDisplay(shown, 40, 4000.0) as watch:
        watch.starting(plan_placement(look(), "cuda", 8))
        for second in range(400):
            now_s = 100.0 + second
            if second == 130:
                counted.encoders = 2
            if second == 200:
                counted.add("encode", 1.0, windows_encoded=1)
            watch(counted, look)
    lines = [line for line in text.getvalue().splitlines() if "recordings ·" not in line]
    assert lines == [
        "loading the model into 8 GPU workers (about 15 s)",
        "not all workers fit yet: starting with those that do, others wait for the autoscaler",
        "no window for 1 min 0 s: 0 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 2 min 0 s: 0 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 3 min 0 s: 2 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 1 min 0 s: 2 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 2 min 0 s: 2 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 3 min 0 s: 2 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
    ]


def test_a_terminal_gets_a_bar_that_moves() -> None:
    shown, text = console(is_terminal=True)
    with ProgressDisplay(shown, 40, 4000.0) as watch:
        watch(counters(recordings=10, windows_encoded=20, audio_encoded_s=100.0), look)
    drawn = text.getvalue()
    assert "10/40" in drawn
    assert "━" in drawn
    assert "20 windows" in drawn


def test_progress_says_speed_failures_and_time_left() -> None:
    counted = counters(recordings=5, windows_encoded=2060, audio_encoded_s=20_600.0)
    counted.failed = 2
    assert describe(counted, audio_s=41_200.0, elapsed_s=112.0) == (
        "2,060 windows · 5.7 h of audio · 184 × real time · 2 failed · 1 min 52 s left"
    )


def test_the_summary_says_what_losses_cost() -> None:
    counted = counters(windows_encoded=5400, windows_written=5360, shards=3)
    counted.tasks_again, counted.encoders_again = 3, 1
    shown, text = console(is_terminal=False)
    announce_result(shown, BALANCE, counted, 5.0, "/out")
    assert (
        text.getvalue().splitlines()[1]
        == "  done again because workers were lost: 3 decode tasks, 1 encoder, 40 windows"
    )


def test_the_result_counts_failures_by_kind_and_shows_commands_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = counters(recordings=894, windows_written=5360, shards=3)
    shown, text = console(is_terminal=False)
    failures = {"corrupt": {"recordings": 1, "examples": []}, "empty": {"recordings": 1, "examples": []}}
    monkeypatch.setattr(announce.sys, "executable", "/env/bin/python")
    monkeypatch.setattr(announce.shutil, "which", lambda program: f"/usr/bin/{program}")
    announce_result(shown, replace(BALANCE, failures=failures), counted, 372.0, "/out")
    assert text.getvalue().splitlines() == [
        "done in 6 min 12 s: 1,202 of 1,204 recordings embedded and saved (310 of them before) · "
        "2 failed: corrupt 1, empty 1 · 5,360 windows in 3 shards",
        """  duckdb -c "select * from '/out/embeddings/*.parquet' limit 5\"""",
        """  /env/bin/python -c "import pandas; print(pandas.read_parquet('/out/embeddings'))\"""",
        "  failures: /out/failures/ · report: /out/report.json",
    ]


def test_a_program_that_is_not_installed_is_not_in_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce.shutil, "which", lambda _: None)
    (command,) = announce.commands_to_read("/out/embeddings")
    assert shlex.split(command)[0] == sys.executable


@pytest.mark.parametrize("name", ["out", "it's $HOME", 'a "b" c\'s', "now `date`", "Grün & Söhne; rm"])
def test_commands_to_read_an_output_can_be_pasted_whatever_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce.shutil, "which", lambda program: f"/usr/bin/{program}")
    output = tmp_path / name
    (output / "embeddings").mkdir(parents=True)
    pq.write_table(pa.table({"file": ["a.wav"]}), output / "embeddings" / "s.parquet")
    shown, text = console(is_terminal=False)
    announce_result(shown, BALANCE, counters(windows_written=1, shards=1), 1.0, str(output))
    _, duckdb_line, python_line, _ = text.getvalue().splitlines()
    program, option, query = shlex.split(duckdb_line)
    assert (program, option) == ("duckdb", "-c")
    assert duckdb.execute(query).fetchall() == [("a.wav",)]
    assert "a.wav" in subprocess.run(["bash", "-c", python_line], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(44.6), "45 s"),
        (duration(372), "6 min 12 s"),
        (duration(11_100), "3 h 5 min"),
        (duration(-1), "0 s"),
        (audio_length(42), "42 s"),
        (audio_length(20_520), "5.7 h"),
        (size(732), "732 B"),
        (size(86.4e9), "86.4 GB"),
        (size(5e15), "5,000.0 TB"),
    ],
)
def test_quantities_come_in_the_unit_people_use(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_summary_says_what_has_changed_since_and_what_was_only_touched() -> None:
    shown, text = console(is_terminal=False)
    announce_result(
        shown, replace(BALANCE, failed=0, changed=12, unchanged=1), counters(windows_written=1, shards=1), 5.0, "/out"
    )
    assert text.getvalue().splitlines()[0] == (
        "done in 5 s: 1,202 of 1,204 recordings embedded and saved (309 of them before; 12 again, because they had "
        "changed; 1 had a new time or size, but the same audio) · 1 window in 1 shard"
    )
    assert text.getvalue().splitlines()[-1] == "  report: /out/report.json"


def test_names_cannot_tell_a_terminal_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\nb\t\x1b[31m\x9b1m\u202e [bold]c[/bold] é 🦉.wav"
    shown = r"a\nb\t\x1b[31m\x9b1m\u202e [bold]c[/bold] é 🦉.wav"
    Terminal.on_stdout().say(name)
    Terminal.on_stdout().warn(name)
    print_error(RequestError(f"'{name}' is damaged"))
    said = capsys.readouterr()
    assert said.out == f"{shown}\n" * 2
    assert said.err == f"avex-batch: '{shown}' is damaged\n".replace(r"\n", " ").replace(r"\t", " ")


@pytest.mark.parametrize(("has_widgets", "shown"), [(True, True), (False, False)])
def test_a_notebook_shows_bars_where_it_has_widgets(
    monkeypatch: pytest.MonkeyPatch, *, has_widgets: bool, shown: bool
) -> None:
    monkeypatch.setattr("embedding.cli.terminal.find_spec", lambda _: object() if has_widgets else None)
    notebook = Terminal(Console(file=io.StringIO(), force_jupyter=True))
    assert notebook.shows_bars is shown
    assert not Terminal(Console(file=io.StringIO())).shows_bars


def test_json_for_a_terminal_is_the_same_value_without_characters_that_a_terminal_obeys() -> None:
    value = {"a\u202eb": ["é 🦉", "\x1b[31m", "\x9b1m", "\u2066"], "n": 1.5}
    for indent in (None, 2):
        shown = terminal_json(value, indent)
        assert json.loads(shown) == value
        assert "é 🦉" in shown
        assert not set(shown) & set("\x1b\x9b\u202e\u2066")
