"""Search for the number of windows per pass: measured while windows are encoded, kept for the next start."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embedding.encoding.micro_batch_search import N_PASSES, SIZES, MicroBatchSearch


def faster_together(size: int) -> float:
    """Return the time per window on a CPU where more windows per pass are faster."""
    return 1 / size


def run(search: MicroBatchSearch, n_windows: int, window_s: Callable[[int], float] = faster_together) -> list[int]:
    """Encode one batch whose passes of a size take ``window_s`` per window; return the sizes of the passes."""
    sizes = []
    while n_windows:
        size = search.size_for(n_windows)
        search.record(size, size * window_s(size))
        sizes.append(size)
        n_windows -= size
    return sizes


@pytest.mark.parametrize(
    ("window_s", "best"),
    [
        (faster_together, 16),
        (lambda size: 1.0 * size, 1),
        (lambda size: 1.0 if size == 4 else 2.0, 4),
        (lambda size: 1.0 - size / 1_000, 1),  # too little to gain
    ],
)
def test_the_fastest_size_is_found_and_used(window_s: Callable[[int], float], best: int, tmp_path: Path) -> None:
    search = MicroBatchSearch(tmp_path / "times", 64)
    sizes = run(search, 64, window_s) + run(search, 64, window_s)
    assert all(sizes.count(size) >= N_PASSES for size in SIZES)
    assert search.measured_next is None
    assert run(search, 64, window_s) == [best] * (64 // best)


def test_the_first_pass_of_each_size_does_not_count(tmp_path: Path) -> None:
    """It compiles the graph."""
    search = MicroBatchSearch(tmp_path / "times", 64)
    seen: set[int] = set()
    while search.measured_next is not None:
        size = search.size_for(64)
        search.record(size, size * (faster_together(size) if size in seen else 100.0))
        seen.add(size)
    assert search.pass_size == 16


def test_a_run_of_few_windows_compiles_one_graph(tmp_path: Path) -> None:
    for _ in range(3):
        assert run(MicroBatchSearch(tmp_path / "times", 16), 9) == [1] * 9
    assert MicroBatchSearch(tmp_path / "times", 16).measured_next == 4


def test_times_are_kept_for_the_next_start(tmp_path: Path) -> None:
    search = MicroBatchSearch(tmp_path / "times", 64)
    run(search, 16)
    assert MicroBatchSearch(tmp_path / "times", 64).measured_next == 4
    run(search, 128)
    again = MicroBatchSearch(tmp_path / "times", 64)
    assert (again.measured_next, again.pass_size) == (None, 16)
    assert MicroBatchSearch(tmp_path / "times-of-another-cpu", 64).measured_next == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"5", b"[16]", b"\xff", b'"16"', b"null", b'{"1": "x"}', b'{"1": null}', b'{"1": -1}', b'{"1": NaN}'],
)
def test_damaged_times_are_measured_again(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "times").write_bytes(content)
    assert MicroBatchSearch(tmp_path / "times", 64).measured_next == 1


def test_times_that_cannot_be_kept_are_used_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    search = MicroBatchSearch(tmp_path / "a-file" / "times", 64)
    run(search, 128)
    assert (search.measured_next, search.pass_size) == (None, 16)


@pytest.mark.parametrize(
    ("batch_size", "n_windows", "sizes"),
    [(64, 40, [16, 16, 8]), (24, 24, [12, 12]), (5, 5, [3, 2]), (3, 3, [1, 1, 1]), (17, 20, [9, 9, 2])],
)
def test_full_batches_have_equal_passes(batch_size: int, n_windows: int, sizes: list[int], tmp_path: Path) -> None:
    run(MicroBatchSearch(tmp_path / "times", 64), 1_000)
    assert run(MicroBatchSearch(tmp_path / "times", batch_size), n_windows) == sizes


def test_a_smaller_batch_measures_no_larger_pass(tmp_path: Path) -> None:
    search = MicroBatchSearch(tmp_path / "times", 8)
    assert max(run(search, 1_000)) == 4
    assert search.measured_next is None
    assert MicroBatchSearch(tmp_path / "times", 64).measured_next == 16
