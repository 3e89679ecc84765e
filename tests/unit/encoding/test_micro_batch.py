"""Micro-batch: fixed on CPUs, measured on GPUs, halved when memory runs out, and increased again later."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.encoding.micro_batch import (
    FIRST_ON_GPU,
    MAX_ON_GPU,
    N_SIZES,
    PASSES_UNTIL_GROWTH,
    MicroBatch,
    find_fastest_size,
    size_on_cpu,
)


def find_size(rates: dict[int, float], max_size: int = 4096) -> tuple[int, list[int]]:
    """Find the size on a device with ``rates[size]`` windows/s and too little memory for other sizes.

    Returns:
        The size, and the sizes that were tried.
    """
    tried = []

    def seconds_of(size: int) -> float | None:
        tried.append(size)
        return size / rates[size] if size in rates else None

    return find_fastest_size(seconds_of, max_size), tried


@pytest.mark.parametrize(("architecture", "size"), [("efficientnet", 4), ("beats", 1), ("eat_hf", 4)])
def test_the_size_on_a_cpu_is_fixed(architecture: str, size: int) -> None:
    assert size_on_cpu(architecture) == size


def test_the_size_on_a_gpu_doubles_while_the_rate_grows() -> None:
    assert find_size({16: 1000, 32: 1900, 64: 2400, 128: 2410, 256: 9999}) == (64, [16, 32, 64, 128])


def test_a_slower_size_is_not_used() -> None:
    assert find_size({16: 1000, 32: 400}) == (FIRST_ON_GPU, [16, 32])


def test_the_size_does_not_exceed_the_batch() -> None:
    assert find_size({16: 1000, 32: 2000, 64: 4000}, max_size=48) == (32, [16, 32])
    assert find_size({5: 1000}, max_size=5) == (5, [5])


def test_the_size_has_an_upper_limit() -> None:
    assert find_size({16 << by: 10.0**by for by in range(9)})[0] == MAX_ON_GPU


def test_the_size_is_below_the_size_at_which_memory_runs_out() -> None:
    assert find_size({16: 1000, 32: 2000}) == (32, [16, 32, 64])


def test_a_gpu_too_small_for_the_first_size_uses_half_of_it() -> None:
    assert find_size({}) == (FIRST_ON_GPU // 2, [FIRST_ON_GPU])


@given(size=st.integers(1, 512), n_windows=st.integers(1, 2000))
def test_any_number_of_windows_fits_into_few_sizes(size: int, n_windows: int) -> None:
    micro_batch = MicroBatch(size)
    used, left = set(), n_windows
    while left > 0:
        chosen = micro_batch.size_for(left)
        assert chosen in micro_batch.sizes
        assert chosen >= min(left, size)
        assert chosen // 2 < left or chosen == micro_batch.sizes[-1]  # above the smallest size, mostly windows
        used.add(chosen)
        left -= chosen
    assert len(used) <= N_SIZES


def test_the_size_is_halved_when_memory_runs_out() -> None:
    micro_batch = MicroBatch(16)
    micro_batch.shrink()
    assert (micro_batch.size, micro_batch.sizes) == (8, [8, 4, 2, 1])
    for _ in range(9):
        micro_batch.shrink()
    assert micro_batch.sizes == [1]


def test_the_size_grows_back_later_after_each_shrinking() -> None:
    micro_batch = MicroBatch(16)
    micro_batch.shrink()
    for _ in range(PASSES_UNTIL_GROWTH):
        assert micro_batch.size == 8
        micro_batch.count_pass()
    micro_batch.count_pass()
    assert micro_batch.size == 16  # the largest size
    micro_batch.shrink()
    for _ in range(2 * PASSES_UNTIL_GROWTH):
        assert micro_batch.size == 8
        micro_batch.count_pass()
    assert micro_batch.size == 16
