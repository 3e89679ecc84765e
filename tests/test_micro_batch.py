"""The micro-batch: fixed on CPUs; on GPUs it grows while that pays, and shrinks where memory runs out."""

import pytest

from embedding.encoding.micro_batch import FIRST_ON_GPU, TRIES, MicroBatch


def feed(micro_batch: MicroBatch, rate_at: dict[int, float], batch: int = 4096) -> list[int]:
    """Pass after pass on a device that does ``rate_at[size]`` windows per second, until the size is found."""
    sizes = []
    while micro_batch.growing:
        n = min(micro_batch.size, batch)
        sizes.append(n)
        first_pass_is_slow = 0.1 if sizes.count(n) == 1 else 1.0
        micro_batch.passed(n, n / (rate_at[n] * first_pass_is_slow))
    return sizes


def test_on_a_cpu_the_size_is_known() -> None:
    for architecture, size in (("efficientnet", 4), ("beats", 1), ("eat_hf", 4)):
        micro_batch = MicroBatch.on("cpu", architecture)
        assert (micro_batch.size, micro_batch.growing) == (size, False)


def test_on_a_gpu_the_size_doubles_while_that_pays() -> None:
    micro_batch = MicroBatch.on("cuda", "beats")
    sizes = feed(micro_batch, {16: 1000, 32: 1900, 64: 2400, 128: 2410, 256: 9999})
    assert micro_batch.size == 64
    assert sizes == [16] * TRIES + [32] * TRIES + [64] * TRIES + [128] * TRIES


def test_a_size_that_is_slower_is_left_again() -> None:
    micro_batch = MicroBatch.on("cuda", "beats")
    feed(micro_batch, {16: 1000, 32: 400})
    assert micro_batch.size == FIRST_ON_GPU


def test_the_batches_that_come_bound_the_size() -> None:
    micro_batch = MicroBatch.on("cuda", "beats")
    feed(micro_batch, {16: 1000, 32: 2000, 48: 2500}, batch=48)
    assert micro_batch.size == 64  # of which every batch of 48 is one pass
    assert not micro_batch.growing


def test_memory_that_runs_out_halves_the_size_and_ends_the_growing() -> None:
    micro_batch = MicroBatch.on("cuda", "beats")
    micro_batch.ran_out(MemoryError())
    assert (micro_batch.size, micro_batch.growing) == (FIRST_ON_GPU // 2, False)


def test_memory_too_small_for_one_window_is_the_error_itself() -> None:
    with pytest.raises(MemoryError, match="no more"):
        MicroBatch(1, growing=False).ran_out(MemoryError("no more"))
