"""Counting: what one process counted and what the next one did; and when the books balance."""

import time
from dataclasses import replace

import pytest

from embedding.counters import Counters
from embedding.output.balance import Balance

BALANCE = Balance(
    listed=1204,
    already_done=310,
    embedded=892,
    failed=2,
    failed_before=0,
    changed=0,
    unchanged=0,
    windows_expected=5360,
    windows_stored=5360,
    windows_repeated=0,
    failures={},
    output={},
)


def test_books_balance_and_say_when_they_do_not() -> None:
    assert BALANCE.balanced
    assert not replace(BALANCE, listed=1205).balanced
    assert not replace(BALANCE, windows_stored=5359).balanced
    assert not replace(BALANCE, windows_repeated=1).balanced
    assert replace(BALANCE, listed=1206, failed=3).failure_rate == pytest.approx(3 / 1206)


def test_the_report_says_what_the_books_say() -> None:
    told = replace(BALANCE, changed=5, unchanged=6, failed_before=1).as_json()
    assert told["recordings"] == {
        "listed": 1204,
        "already_done": 310,
        "embedded": 892,
        "failed": 2,
        "failed_before": 1,
        "changed": 5,
        "unchanged": 6,
        "balanced": True,
    }
    assert told["windows"] == {"expected": 5360, "stored": 5360, "repeated": 0}


def test_counts_of_two_processes_add_up() -> None:
    one, two = Counters(), Counters()
    one.add("encode", 2.0, windows_encoded=3, audio_encoded_s=15.0, recordings=1)
    one.add("write", 0.5, windows_written=3, shards=1)
    two.add("encode", 1.0, windows_encoded=2, audio_encoded_s=10.0)
    two.add("decode", 4.0, audio_s=7.0)
    one.failed, two.failed = 2, 1
    both = one.plus(two)
    assert both.origin == two.origin
    assert (both.windows_encoded, both.audio_encoded_s, both.windows_written, both.shards) == (5, 25.0, 3, 1)
    assert (both.recordings, both.audio_s) == (1, 7.0)
    assert both.busy_s == {"encode": 3.0, "write": 0.5, "decode": 4.0}
    assert both.failed == 3
    assert both.first_window_at_s == one.first_window_at_s
    assert (one.windows_encoded, two.windows_encoded) == (3, 2), "neither is changed"


def test_the_first_window_is_the_first_of_all() -> None:
    before, after = Counters(), Counters()
    after.add("encode", 2.0, windows_encoded=1)
    assert after.first_window_at_s == pytest.approx(time.time(), abs=1)
    assert after.encoding_since_s == pytest.approx(time.time() - 2, abs=1)
    for both in (before.plus(after), after.plus(before)):
        assert (both.first_window_at_s, both.encoding_since_s) == (after.first_window_at_s, after.encoding_since_s)
    first = after.first_window_at_s
    after.add("encode", 50.0, windows_encoded=1)
    assert after.first_window_at_s == first


def test_nothing_and_something_are_something() -> None:
    something = Counters()
    something.add("encode", 2.0, windows_encoded=1, recordings=1)
    assert Counters().plus(something) == something
    assert something.plus(Counters(origin=something.origin)) == something
