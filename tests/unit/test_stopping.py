"""Stopping by real signals to a separate process: work that finishes, work that is interrupted, restored handlers."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import ROOT

# Prints events, one per line. After "works" the test sends a signal.
PROGRAM = """
import signal, sys, time
from embedding import stopping
from embedding.stopping import Stopped, preserved_handlers, stop_on_signals

stopping.GRACE_S = {grace_s}

def other_handler(number, _):
    report("other handler")

def report(event):
    print(event, flush=True)

signal.signal(signal.SIGTERM, other_handler)
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
try:
    with stop_on_signals(ends_process=True) as stop:
        {block}
    report("ended")
except Stopped as error:
    report(f"Stopped: {{error}}")
except KeyboardInterrupt:
    report("KeyboardInterrupt")
finally:
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    report("handlers are restored")
"""

FINISHES = """
        with stop.gracefully():
            report("works")
            while stop.signal_name is None:
                time.sleep(0.01)
            time.sleep(0.5)
            report("finished")
"""

NEVER_FINISHES = """
        with stop.gracefully():
            report("works")
            try:
                time.sleep(60)
            finally:
                report("interrupted")
"""

NO_WORK_IN_FLIGHT = """
        report("works")
        time.sleep(60)
"""

LIBRARY_REPLACES_HANDLER = """
        with preserved_handlers():
            signal.signal(signal.SIGTERM, other_handler)
        with stop.gracefully():
            report("works")
            while stop.signal_name is None:
                time.sleep(0.01)
"""

FAILS = """
        with stop.gracefully():
            report("works")
            while stop.signal_name is None:
                time.sleep(0.01)
            raise SystemExit("a failure")
"""

WORK_HAS_ENDED = """
        with stop.gracefully():
            pass
        report("works")
        time.sleep(60)
"""


@contextmanager
def running_block(block: str, grace_s: float = 30.0) -> Iterator[subprocess.Popen[str]]:
    """Run a block of the program, and yield its process after it has printed "works"."""
    program = PROGRAM.format(block=block.strip(), grace_s=grace_s)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "works\n"
        try:
            yield process
        finally:
            process.kill()


def remaining_lines(process: subprocess.Popen[str]) -> list[str]:
    # communicate() would omit text that readline has already buffered.
    assert process.stdout is not None
    return process.stdout.read().splitlines()


STOPPED = "Stopped: stopped by {}; what is stored stays valid, run the same command again to go on"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_the_first_signal_lets_work_in_flight_finish(number: signal.Signals, name: str) -> None:
    with running_block(FINISHES) as process:
        process.send_signal(number)
        assert remaining_lines(process) == ["finished", STOPPED.format(name), "handlers are restored"]


def test_work_that_exceeds_the_grace_is_interrupted() -> None:
    with running_block(NEVER_FINISHES, grace_s=0.5) as process:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert remaining_lines(process) == ["interrupted", STOPPED.format("SIGTERM"), "handlers are restored"]
        assert 0.4 < time.monotonic() - began < 10


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_interrupts_at_once(second: signal.Signals) -> None:
    with running_block(NEVER_FINISHES) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(second)
        assert remaining_lines(process) == ["interrupted", "KeyboardInterrupt", "handlers are restored"]


@pytest.mark.parametrize("block", [NO_WORK_IN_FLIGHT, WORK_HAS_ENDED], ids=["before", "after"])
def test_without_work_in_flight_the_first_signal_stops_at_once(block: str) -> None:
    with running_block(block) as process:
        process.send_signal(signal.SIGTERM)
        assert remaining_lines(process) == [STOPPED.format("SIGTERM"), "handlers are restored"]


def test_a_handler_that_a_library_installs_is_replaced_again() -> None:
    with running_block(LIBRARY_REPLACES_HANDLER) as process:
        process.send_signal(signal.SIGTERM)
        assert remaining_lines(process) == [STOPPED.format("SIGTERM"), "handlers are restored"]


def test_a_terminated_job_leaves_no_unfinished_files_and_prints_one_line(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from embedding.cli.exit_codes import run_job
from embedding.exporting.destination import replace_folder

def export():
    with replace_folder(Path(sys.argv[1]), "npy"):
        print("works", flush=True)
        time.sleep(60)

sys.exit(run_job(export))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "npy"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "works\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate()[1] == f"avex-batch: {STOPPED.format('SIGTERM').removeprefix('Stopped: ')}\n"
    assert process.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failure_during_the_grace_is_not_hidden() -> None:
    with running_block(FAILS) as process:
        process.send_signal(signal.SIGTERM)
        assert remaining_lines(process) == ["handlers are restored"]
        assert process.stderr is not None
        assert "a failure" in process.stderr.read()


def test_without_a_signal_the_block_ends_normally() -> None:
    with running_block('report("works")') as process:
        assert remaining_lines(process) == ["ended", "handlers are restored"]
