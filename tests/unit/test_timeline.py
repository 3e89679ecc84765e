"""Times of a run's steps, counted from the start of the command."""

import itertools
import subprocess
import sys
import time

import pytest

from embedding import timeline as module
from embedding.timeline import Timeline


def test_steps_of_driver_and_workers_are_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic_s, now_s = 100.0, 1e9
    monkeypatch.setattr(module.time, "monotonic", lambda: monotonic_s)
    monkeypatch.setattr(module.time, "time", lambda: now_s)
    timeline = Timeline(before_s=1.5)
    timeline.reached("listed")
    monotonic_s, now_s = monotonic_s + 10, now_s + 10
    timeline.reached("embedded")
    steps = timeline.seconds({"first_window": 1e9 + 4, "before": 1e9 - 2, "after": 1e9 + 11})
    assert list(steps.items()) == [("listed", 1.5), ("first_window", 5.5), ("embedded", 11.5)]


def test_steps_that_were_reached_at_once_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline, ticks = Timeline(before_s=10.0), itertools.count(time.time(), 0.01)
    monkeypatch.setattr(module.time, "time", lambda: next(ticks))
    at_s = next(ticks) - 5.0
    assert list(timeline.seconds({"first_window": at_s, "last_window": at_s})) == ["first_window", "last_window"]


def test_a_process_counts_from_its_start() -> None:
    program = (
        "import time; time.sleep(0.5)\nfrom embedding.timeline import Timeline\ntimeline = Timeline.of_process()\n"
        "timeline.reached('now'); print(timeline.seconds({})['now'])"
    )
    began_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) <= time.monotonic() - began_s + 0.02  # the kernel counts in steps of 10 ms
