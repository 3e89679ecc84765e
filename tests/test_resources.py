"""CPU and GPU shares: every stage can run at once, on one core as on a thousand nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.errors import RequestError
from embedding.resources import Cluster, plan

GB = 1 << 30


@given(n_cpus=st.integers(1, 4096), n_gpus=st.integers(0, 1024), memory_gb=st.integers(1, 100_000))
def test_encoding_decoding_and_writing_fit_beside_each_other(n_cpus: int, n_gpus: int, memory_gb: int) -> None:
    placed = plan(Cluster(n_cpus, n_gpus, memory_gb * GB), "auto", "auto")
    needed = placed.n_actors * placed.encoder_cpus + placed.decode_cpus + placed.write_cpus
    assert needed <= n_cpus + 1e-9
    assert placed.n_actors * placed.encoder_gpus <= n_gpus
    assert min(placed.n_actors, placed.n_decoders, placed.n_writers, placed.encoder_threads) >= 1


@given(n_cpus=st.integers(1, 512), data=st.data())
def test_any_number_of_actors_up_to_the_cores_leaves_room_for_the_rest(n_cpus: int, data: st.DataObject) -> None:
    actors = data.draw(st.integers(1, n_cpus))
    placed = plan(Cluster(n_cpus, 0, 1000 * GB), "cpu", actors)
    assert placed.n_actors == actors
    assert placed.n_actors * placed.encoder_threads <= n_cpus
    assert placed.n_actors * placed.encoder_cpus + placed.decode_cpus + placed.write_cpus <= n_cpus + 1e-9


def test_every_core_of_a_cpu_machine_encodes() -> None:
    placed = plan(Cluster(8, 0, 64 * GB), "auto", "auto")
    assert placed.n_actors * placed.encoder_threads == 8


def test_memory_bounds_the_pool() -> None:
    placed = plan(Cluster(64, 0, 16 * GB), "auto", "auto")
    assert placed.n_actors == 8
    assert placed.encoder_threads == 8


def test_one_actor_per_gpu() -> None:
    placed = plan(Cluster(32, 4, 256 * GB), "auto", "auto")
    assert (placed.device, placed.n_actors, placed.encoder_gpus) == ("cuda", 4, 1.0)
    assert placed.n_decoders >= 24


def test_a_gpu_that_does_not_exist_is_said_at_once() -> None:
    with pytest.raises(RequestError, match="--device: cuda needs a GPU, and Ray sees none"):
        plan(Cluster(8, 0, 64 * GB), "cuda", "auto")


def test_more_actors_than_the_cluster_carries_are_refused() -> None:
    with pytest.raises(RequestError, match="--actors: 3 actors need 3 GPUs, and Ray sees 2"):
        plan(Cluster(8, 2, 64 * GB), "cuda", 3)
    with pytest.raises(RequestError, match="--actors: 9 actors need a CPU core each, and Ray sees 8"):
        plan(Cluster(8, 0, 64 * GB), "cpu", 9)


def test_a_cluster_without_cpus_is_refused() -> None:
    with pytest.raises(RequestError, match="Ray offers 0 CPUs"):
        plan(Cluster(0, 1, 64 * GB), "auto", "auto")
