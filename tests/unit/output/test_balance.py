"""The balance of an output: when it balances, and its part of the run report."""

from dataclasses import replace

import pytest

from tests.support.balances import BALANCE


def test_a_balance_that_does_not_add_up_is_not_balanced() -> None:
    assert BALANCE.balanced
    assert not replace(BALANCE, listed=1205).balanced
    assert not replace(BALANCE, windows_stored=5359).balanced
    assert not replace(BALANCE, windows_repeated=1).balanced


def test_the_failure_rate_is_a_share_of_the_listed_recordings() -> None:
    assert replace(BALANCE, listed=1206, failed=3).failure_rate == pytest.approx(3 / 1206)


def test_the_run_report_has_the_counts_of_the_balance() -> None:
    content = replace(BALANCE, changed=5, unchanged=6, failed_before=1).as_json()
    assert content["recordings"] == {
        "listed": 1204,
        "already_done": 310,
        "embedded": 892,
        "failed": 2,
        "failed_before": 1,
        "changed": 5,
        "unchanged": 6,
        "balanced": True,
    }
    assert content["windows"] == {"expected": 5360, "stored": 5360, "repeated": 0}
