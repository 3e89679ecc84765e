"""Stopping, with real signals to a process of its own: what lands, what breaks off, what the process is afterwards."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import ROOT

# Says what happens, one word per line. A block "works" for some tenths of a second at a time until it is asked to stop.
PROGRAM = """
import signal, sys, time
from embedding import stopping
from embedding.stopping import Stopped, preserved_handlers, stop_on_signals

stopping.GRACE_S = {grace_s}

def mine(number, _):
    say("mine")

def say(word):
    print(word, flush=True)

signal.signal(signal.SIGTERM, mine)
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
try:
    with stop_on_signals(ends_process=True) as stop:
        {block}
    say("ended")
except Stopped as error:
    say(f"Stopped: {{error}}")
except KeyboardInterrupt:
    say("KeyboardInterrupt")
finally:
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    say("handlers are back")
"""

LANDS = """
        with stop.gracefully():
            say("works")
            while stop.signal_name is None:
                time.sleep(0.01)
            time.sleep(0.5)
            say("landed")
"""

NEVER_LANDS = """
        with stop.gracefully():
            say("works")
            try:
                time.sleep(60)
            finally:
                say("broken off")
"""

NOTHING_IN_FLIGHT = """
        say("works")
        time.sleep(60)
"""

RAY_TAKES_OVER = """
        with preserved_handlers():
            signal.signal(signal.SIGTERM, mine)
        with stop.gracefully():
            say("works")
            while stop.signal_name is None:
                time.sleep(0.01)
"""

FAILS = """
        with stop.gracefully():
            say("works")
            while stop.signal_name is None:
                time.sleep(0.01)
            raise SystemExit("a failure")
"""

SETTLES = """
        with stop.gracefully():
            pass
        say("works")
        time.sleep(60)
"""


@contextmanager
def running(block: str, grace_s: float = 30.0) -> Iterator[subprocess.Popen[str]]:
    """The program at work: it has said so."""
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


def rest_of(process: subprocess.Popen[str]) -> list[str]:
    # Not communicate(), which passes over what readline has taken in behind its line.
    assert process.stdout is not None
    return process.stdout.read().splitlines()


WHAT_IT_SAYS = "Stopped: stopped by {}; what is stored stays valid, run the same command again to go on"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_the_first_signal_asks_and_what_is_in_flight_lands(number: signal.Signals, name: str) -> None:
    with running(LANDS) as process:
        process.send_signal(number)
        assert rest_of(process) == ["landed", WHAT_IT_SAYS.format(name), "handlers are back"]


def test_what_does_not_land_within_the_grace_is_broken_off() -> None:
    with running(NEVER_LANDS, grace_s=0.5) as process:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert rest_of(process) == ["broken off", WHAT_IT_SAYS.format("SIGTERM"), "handlers are back"]
        assert 0.4 < time.monotonic() - began < 10


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_breaks_off_at_once(second: signal.Signals) -> None:
    with running(NEVER_LANDS) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(second)
        assert rest_of(process) == ["broken off", "KeyboardInterrupt", "handlers are back"]


@pytest.mark.parametrize("block", [NOTHING_IN_FLIGHT, SETTLES], ids=["before", "after"])
def test_where_nothing_is_in_flight_the_first_signal_stops(block: str) -> None:
    with running(block) as process:
        process.send_signal(signal.SIGTERM)
        assert rest_of(process) == [WHAT_IT_SAYS.format("SIGTERM"), "handlers are back"]


def test_a_handler_that_a_library_put_in_our_place_does_not_count() -> None:
    with running(RAY_TAKES_OVER) as process:
        process.send_signal(signal.SIGTERM)
        assert rest_of(process) == [WHAT_IT_SAYS.format("SIGTERM"), "handlers are back"]


def test_a_job_that_is_terminated_leaves_nothing_half_written_and_says_so(tmp_path: Path) -> None:
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
        assert process.communicate()[1] == f"avex-batch: {WHAT_IT_SAYS.format('SIGTERM').removeprefix('Stopped: ')}\n"
    assert process.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_down_is_not_hidden() -> None:
    with running(FAILS) as process:
        process.send_signal(signal.SIGTERM)
        assert rest_of(process) == ["handlers are back"]
        assert process.stderr is not None
        assert "a failure" in process.stderr.read()


def test_a_block_that_nobody_stops_ends_as_it_does() -> None:
    with running('say("works")') as process:
        assert rest_of(process) == ["ended", "handlers are back"]
