"""Search for the number of windows per pass: measured while windows are encoded, kept for the next start."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embedding.encoding.micro_batch_search import N_PASSES, SIZES, MicroBatchSearch


def run(search: MicroBatchSearch, n_windows: int, window_s: Callable[[int], float]) -> list[int]:
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
        (lambda size: 1 / size, 16),
        (lambda size: 1.0 * size, 1),
        (lambda size: 1.0 if size == 4 else 2.0, 4),
        (lambda size: 1.0 - size / 1_000, 1),  # too little to gain
    ],
)
def test_the_fastest_size_is_found_and_used(window_s: Callable[[int], float], best: int, tmp_path: Path) -> None:
    search = MicroBatchSearch(tmp_path / "best", 64)
    sizes = run(search, 64, window_s)
    assert {size: sizes[: N_PASSES * len(SIZES)].count(size) for size in SIZES} == dict.fromkeys(SIZES, N_PASSES)
    assert search.best == best
    assert run(search, 64, window_s) == [best] * (64 // best)


def test_the_first_pass_of_each_size_does_not_count(tmp_path: Path) -> None:
    """It compiles the graph."""
    search = MicroBatchSearch(tmp_path / "best", 64)
    passes: dict[int, int] = dict.fromkeys(SIZES, 0)
    while search.best is None:
        size = search.size_for(64)
        passes[size] += 1
        search.record(size, size * (100.0 if passes[size] == 1 and size == 16 else 1 / size))
    assert search.best == 16


def test_the_result_is_kept_for_the_next_start(tmp_path: Path) -> None:
    run(MicroBatchSearch(tmp_path / "best", 64), 64, lambda size: 1 / size)
    assert MicroBatchSearch(tmp_path / "best", 64).best == 16
    assert MicroBatchSearch(tmp_path / "other-cpu", 64).best is None


@pytest.mark.parametrize("content", [b"", b"5", b"[16]", b"\xff", b'"16"', b"null"])
def test_a_damaged_result_is_measured_again(content: bytes, tmp_path: Path) -> None:
    run(MicroBatchSearch(tmp_path / "best", 64), 64, lambda size: 1 / size)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    search = MicroBatchSearch(tmp_path / "best", 64)
    assert search.best is None
    run(search, 64, lambda size: 1.0 * size)
    assert MicroBatchSearch(tmp_path / "best", 64).best == 1


def test_a_result_that_cannot_be_kept_is_used_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    search = MicroBatchSearch(tmp_path / "a-file" / "best", 64)
    run(search, 64, lambda size: 1 / size)
    assert search.best == 16


@pytest.mark.parametrize(("batch_size", "n_windows", "sizes"), [(64, 40, [16, 16, 8]), (24, 24, [12, 12]), (8, 8, [8])])
def test_passes_of_one_size_divide_a_full_batch(
    batch_size: int, n_windows: int, sizes: list[int], tmp_path: Path
) -> None:
    search = MicroBatchSearch(tmp_path / "best", batch_size)
    run(search, 1_000, lambda size: 1 / size)
    assert run(search, n_windows, lambda size: 1 / size) == sizes


def test_small_batches_are_encoded_whole_before_all_sizes_are_measured(tmp_path: Path) -> None:
    search = MicroBatchSearch(tmp_path / "best", 64)
    for n_windows in (1, 2, 3):
        assert sum(run(search, n_windows, lambda size: 1 / size)) == n_windows
    assert search.best is None


def test_other_threads_or_batches_do_not_share_a_result(tmp_path: Path) -> None:
    run(MicroBatchSearch(tmp_path / "best", 64), 64, lambda size: 1 / size)
    assert MicroBatchSearch(tmp_path / "best", 8).best is None
