"""Hits of a label that overlap or are neighbours become one detection, as a plain loop would merge them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.detecting.merging import merge_hits

HIT = st.tuples(st.integers(-2, 2), st.integers(0, 2), st.integers(0, 40), st.integers(1, 8), st.floats(0, 1, width=32))


def merge_one_by_one(
    hits: list[tuple[int, int, float, float, float]], gap_s: float
) -> list[tuple[int, int, float, float, float, float, int]]:
    """Return (recording, label, start, end, highest, mean, n) by definition, in order."""
    found: list[tuple[int, int, list[tuple[float, float, float]]]] = []
    for recording, label, start_s, end_s, score in sorted(hits):
        last = found[-1] if found else None
        touches = last is not None and last[:2] == (recording, label) and gap_s >= 0
        if touches and last is not None and start_s <= max(end for _, end, _ in last[2]) + gap_s + 1e-9:
            last[2].append((start_s, end_s, score))
        else:
            found.append((recording, label, [(start_s, end_s, score)]))
    return [
        (
            recording,
            label,
            min(start for start, _, _ in parts),
            max(end for _, end, _ in parts),
            max(score for _, _, score in parts),
            float(np.mean([score for _, _, score in parts])),
            len(parts),
        )
        for recording, label, parts in found
    ]


@given(st.lists(HIT, max_size=30, unique_by=lambda hit: hit[:4]), st.sampled_from([-1.0, 0.0, 0.5, 2.0, 7.25]))
def test_hits_merge_as_a_plain_loop_merges_them(hits: list[tuple[int, int, int, int, float]], gap_s: float) -> None:
    rows = [
        (recording, label, start / 3, (start + length) / 3, score) for recording, label, start, length, score in hits
    ]
    columns = [np.array(column) for column in zip(*rows, strict=True)] or [np.empty(0)] * 5
    recording, label = columns[0].astype(np.int64), columns[1].astype(np.int64)
    start_s, end_s, score = (column.astype(float) for column in columns[2:])
    merged = merge_hits(recording, label, start_s, end_s, score, gap_s)
    found = zip(
        recording[merged.first],
        label[merged.first],
        *(merged.start_s, merged.end_s, merged.highest, merged.mean, merged.n_hits),
        strict=True,
    )
    expected = merge_one_by_one(rows, gap_s)
    assert len(merged.first) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 44_100, 250_000])
def test_neighbours_merge_although_their_times_differ_in_the_last_bit(rate_hz: int) -> None:
    hop = round(0.9601 * rate_hz)
    start_s = np.arange(100_000) * hop / rate_hz
    zeros = np.zeros(len(start_s), np.int64)
    merged = merge_hits(zeros, zeros, start_s, start_s + hop / rate_hz, np.full(len(start_s), 0.5), 0.0)
    assert len(merged.first) == 1


def test_times_of_many_long_recordings_stay_exact() -> None:
    n = 100_000
    recording = np.arange(n) * 7919 - 2**40
    start_s, end_s = np.full(n, 86_399.0), np.full(n, 86_400.0)
    merged = merge_hits(recording, np.zeros(n, np.int64), start_s, end_s, np.full(n, 0.5), 3600.0)
    assert len(merged.first) == n
    assert (merged.start_s == 86_399).all()
