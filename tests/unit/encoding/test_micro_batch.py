"""The micro-batch: known on CPUs, found on GPUs; smaller where memory runs out, and back later."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.encoding.micro_batch import (
    FIRST_ON_GPU,
    MOST_ON_GPU,
    N_SIZES,
    PASSES_UNTIL_GROWTH,
    MicroBatch,
    fastest,
    on_cpu,
)


def found(rate_at: dict[int, float], most: int = 4096) -> tuple[int, list[int]]:
    """The size found on a device that does ``rate_at[size]`` windows/s, out of memory at other sizes; sizes tried."""
    tried = []

    def seconds_of(size: int) -> float | None:
        tried.append(size)
        return size / rate_at[size] if size in rate_at else None

    return fastest(seconds_of, most), tried


@pytest.mark.parametrize(("architecture", "size"), [("efficientnet", 4), ("beats", 1), ("eat_hf", 4)])
def test_on_a_cpu_the_size_is_known(architecture: str, size: int) -> None:
    assert on_cpu(architecture) == size


def test_on_a_gpu_the_size_doubles_while_that_pays() -> None:
    assert found({16: 1000, 32: 1900, 64: 2400, 128: 2410, 256: 9999}) == (64, [16, 32, 64, 128])


def test_a_size_that_is_slower_is_left_again() -> None:
    assert found({16: 1000, 32: 400}) == (FIRST_ON_GPU, [16, 32])


def test_the_size_stays_within_a_batch() -> None:
    assert found({16: 1000, 32: 2000, 64: 4000}, most=48) == (32, [16, 32])
    assert found({5: 1000}, most=5) == (5, [5])


def test_the_size_has_an_upper_end() -> None:
    assert found({16 << by: 10.0**by for by in range(9)})[0] == MOST_ON_GPU


def test_the_size_stays_below_the_one_that_memory_runs_out_at() -> None:
    assert found({16: 1000, 32: 2000}) == (32, [16, 32, 64])


def test_a_gpu_too_small_for_the_first_size_begins_with_half_of_it() -> None:
    assert found({}) == (FIRST_ON_GPU // 2, [FIRST_ON_GPU])


@given(size=st.integers(1, 512), n_windows=st.integers(1, 2000))
def test_few_sizes_hold_any_number_of_windows(size: int, n_windows: int) -> None:
    micro_batch = MicroBatch(size)
    used, left = set(), n_windows
    while left > 0:
        fitting = micro_batch.fitting(left)
        assert fitting in micro_batch.sizes
        assert fitting >= min(left, size)
        assert fitting // 2 < left or fitting == micro_batch.sizes[-1]  # no more silence than windows, but at the least
        used.add(fitting)
        left -= fitting
    assert len(used) <= N_SIZES


def test_memory_that_runs_out_halves_the_size() -> None:
    micro_batch = MicroBatch(16)
    micro_batch.ran_out()
    assert (micro_batch.size, micro_batch.sizes) == (8, [8, 4, 2, 1])
    for _ in range(9):
        micro_batch.ran_out()
    assert micro_batch.sizes == [1]


def test_the_size_grows_back_and_waits_longer_after_each_relapse() -> None:
    micro_batch = MicroBatch(16)
    micro_batch.ran_out()
    for _ in range(PASSES_UNTIL_GROWTH):
        assert micro_batch.size == 8
        micro_batch.passed()
    micro_batch.passed()
    assert micro_batch.size == 16  # and no further
    micro_batch.ran_out()
    for _ in range(2 * PASSES_UNTIL_GROWTH):
        assert micro_batch.size == 8
        micro_batch.passed()
    assert micro_batch.size == 16
