"""Pipes, sockets, devices and broken links in place of files: an error of one line, and no job hangs."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedding.errors import RequestError
from embedding.output.claim import check_holder, hold_claim
from jobs.embed import main as embed
from jobs.export import main as export
from jobs.probe import main as probe
from jobs.report import main as report
from tests.support.commands import ROOT
from tests.support.shards import write_output


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    working_directory = Path.cwd()
    os.chdir(path.parent)  # the address of a socket may have only about a hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(working_directory)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def broken_link(path: Path) -> None:
    path.symlink_to("nothing")


NO_FILES = [pipe, unix_socket, device, broken_link]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_output(str(tmp_path / "out"), {"/a/1.wav": np.ones((2, 4), np.float32)}, {"model": "m"}, 1)
    (tmp_path / "out" / "failures").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize(
    "name", ["embeddings/x.parquet", "failures/x.parquet", "run.json", "report.json", "claim.json"]
)
def test_a_report_names_an_entry_that_is_no_file(
    output: Path, name: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    make(output / name)
    assert report([str(output)]) == 2
    error = capsys.readouterr().err
    assert str(output / name) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("make", NO_FILES)
def test_a_claim_that_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "claim.json")
    with (
        pytest.raises(RequestError, match=rf"cannot write to {tmp_path}: .* \({tmp_path}/claim\.json\)"),
        hold_claim(str(tmp_path), "0000000000aa", lambda _: None),
    ):
        pass
    with pytest.raises(OSError, match=r"a pipe, a socket or a device|a link that leads nowhere"):
        check_holder(str(tmp_path), "0000000000aa")


@pytest.mark.parametrize("make", [pipe, device])
def test_options_labels_and_exports_that_are_no_files_are_named(
    output: Path, tmp_path: Path, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("job.yaml", "labels.csv", "labels.parquet"):
        make(tmp_path / name)
    (tmp_path / "there").mkdir()
    make(tmp_path / "there" / "export.json")
    assert embed(["--config", str(tmp_path / "job.yaml")]) == 2
    assert f"cannot read {tmp_path}/job.yaml: a pipe" in capsys.readouterr().err
    for name in ("labels.csv", "labels.parquet"):
        assert probe([str(output), "--labels", str(tmp_path / name)]) == 2
        message = capsys.readouterr().err
        assert f"{tmp_path}/{name}: a pipe" in message
        assert "cannot read" in message
    assert export([str(output), "--to", "npy", str(tmp_path / "there")]) == 2
    assert "exists and is no earlier export to npy" in capsys.readouterr().err


PROGRAM = """
import threading, sys
from embedding import stopping
from embedding.cli.exit_codes import run_job
from embedding.output.inventory import map_in_threads

stopping.GRACE_S, stopping.EXIT_S = 1.0, 1.0

def hang():
    print("hangs", flush=True)
    threading.Event().wait()

def job():
    {job}

stopping.end_process(run_job(job))
"""
HANG_IN_THREAD = "list(map_in_threads(hang, [()]))"
HANG_IN_POOL = """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(1) as pool:
        pool.submit(hang).result()
"""
HANG_IN_GRACE_PERIOD = """
    with stopping.stop_on_signals(ends_process=True) as stop, stop.gracefully():
        try:
            hang()
        finally:
            threading.Event().wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("job", [HANG_IN_THREAD, HANG_IN_POOL, HANG_IN_GRACE_PERIOD])
def test_a_hanging_job_ends_within_the_grace_period(job: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(job=job)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        signalled_s = time.monotonic()
        process.send_signal(number)
        try:
            _, error = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 1
    assert time.monotonic() - signalled_s < 10
    assert error.count("\n") == 1
    assert error.startswith("avex-batch: stopped by ")
    assert "what is stored stays valid" in error
