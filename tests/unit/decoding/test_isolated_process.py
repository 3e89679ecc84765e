"""The process of isolated decoding: its bugs, its limits, and its end with the process that reads from it."""

import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Generator
from io import BytesIO
from pathlib import Path
from typing import cast

import psutil
import pyarrow as pa
import pytest

from embedding.decoding import isolated
from embedding.decoding.events import Opened, Windows
from tests.support.commands import ROOT
from tests.support.decoding import SECOND, decode, recordings_of
from tests.support.isolated_decoding import FAIL_BY_NAME, run_isolated, use_program, window_keys, write_recordings


@pytest.fixture
def failing_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(tmp_path / "first-on-path", FAIL_BY_NAME, monkeypatch)


# --- bugs and limits --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("failing_by_name")
def test_a_bug_is_raised_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="isolated decoding failed") as caught:
        run_isolated(write_recordings(tmp_path, ["a", "zerodivision"]))
    assert "ZeroDivisionError: a bug" in str(caught.value)
    assert "Traceback" in str(caught.value)
    assert "in raise_bug" in str(caught.value)


def test_a_process_that_cannot_start_is_an_error_and_no_failure_of_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_program(tmp_path / "first-on-path", "import os\nos._exit(5)", monkeypatch)
    table = pa.concat_tables([recordings_of(write_recordings(tmp_path, ["a"]))] * 20_000)  # more than a pipe can hold
    with pytest.raises(RuntimeError, match="ended with exit code 5 before it opened a recording"):
        run_isolated([], table=table)


def test_a_lower_limit_of_memory_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example the ``ulimit -v`` of a batch system."""
    limit = 3 << 30
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))"
    use_program(tmp_path / "first-on-path", program, monkeypatch)
    assert resource.getrlimit(resource.RLIMIT_AS)[1] != limit
    tables, _ = run_isolated(write_recordings(tmp_path, ["a"]))
    assert len(window_keys(tables)) == 3


def test_an_incomplete_message_ends_the_messages(tmp_path: Path) -> None:
    (table,), _ = run_isolated(write_recordings(tmp_path, ["a"]))
    events = [Opened("a"), Windows(table.drop_columns("window_16000"))]
    stream = b"".join(map(pickle.dumps, events))
    n_first = len(pickle.dumps(events[0]))
    for n_bytes in range(len(stream)):
        assert list(isolated._messages(BytesIO(stream[:n_bytes]))) == (events[:1] if n_bytes >= n_first else [])


# --- the end of the reader --------------------------------------------------------------------------------------------


def children() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children()
        if "embedding.decoding.isolated" in " ".join(process.cmdline())
    ]


def test_the_process_ends_when_its_reader_is_closed(tmp_path: Path) -> None:
    tables = decode(recordings_of(write_recordings(tmp_path, "ab", 30.0)), [SECOND], 1, isolated=True)
    next(tables)
    (child,) = children()
    cast(Generator[pa.Table, None, None], tables).close()
    assert not child.is_running()
    assert children() == []


def test_the_process_ends_when_its_reader_is_killed(tmp_path: Path) -> None:
    files = write_recordings(tmp_path, "abc", 60.0)
    program = (
        "import sys, psutil\n"
        "from tests.support.decoding import SECOND, decode, recordings_of\n"
        "tables = decode(recordings_of(sys.argv[1:]), [SECOND], 1, isolated=True)\n"
        "next(tables)\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, files)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        pid = reader.stdout.readline()
        assert pid, "the reader ended before it had received a table"
        child = psutil.Process(int(pid))
        reader.kill()
    until_s = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until_s, "the process goes on without a reader"
        time.sleep(0.05)
