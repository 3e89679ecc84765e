"""Counters of a run, added up over the processes that counted."""

import time

import pytest

from embedding.counters import Counters


def test_counters_of_two_processes_add_up() -> None:
    one, two = Counters(), Counters()
    one.add("encode", 2.0, windows_encoded=3, audio_encoded_s=15.0, recordings=1)
    one.add("write", 0.5, windows_written=3, shards=1)
    two.add("encode", 1.0, windows_encoded=2, audio_encoded_s=10.0)
    two.add("decode", 4.0, audio_s=7.0)
    one.failed, two.failed = 2, 1
    total = one.plus(two)
    assert total.origin == two.origin
    assert (total.windows_encoded, total.audio_encoded_s, total.windows_written, total.shards) == (5, 25.0, 3, 1)
    assert (total.recordings, total.audio_s) == (1, 7.0)
    assert total.busy_s == {"encode": 3.0, "write": 0.5, "decode": 4.0}
    assert total.failed == 3
    assert total.reached_at_s["first_window"] == one.reached_at_s["first_window"]
    assert total.reached_at_s["last_window"] == two.reached_at_s["last_window"]
    pairs = {f"{which}_{step}" for which in ("first", "last") for step in ("audio", "window", "shard")}
    assert total.reached_at_s.keys() == pairs | {"first_batch"}
    assert (one.windows_encoded, two.windows_encoded) == (3, 2), "neither operand changes"


def test_the_time_of_the_first_window_is_kept() -> None:
    before, after = Counters(), Counters()
    after.add("encode", 2.0, windows_encoded=1)
    assert after.reached_at_s["first_window"] == pytest.approx(time.time(), abs=1)
    assert after.reached_at_s["first_batch"] == pytest.approx(time.time() - 2, abs=1)
    for total in (before.plus(after), after.plus(before)):
        assert total.reached_at_s == after.reached_at_s
    first = {step: after.reached_at_s[step] for step in ("first_batch", "first_window")}
    after.add("encode", 50.0, windows_encoded=1)
    assert {step: after.reached_at_s[step] for step in first} == first
    assert after.reached_at_s["last_window"] > first["first_window"]


def test_work_that_counts_nothing_reaches_no_step() -> None:
    counters = Counters()
    counters.add("decode", 1.0, audio_s=0.0, recordings=1)
    assert counters.reached_at_s == {}


def test_empty_counters_add_nothing() -> None:
    counters = Counters()
    counters.add("encode", 2.0, windows_encoded=1, recordings=1)
    assert Counters().plus(counters) == counters
    assert counters.plus(Counters(origin=counters.origin)) == counters
