"""CPU and GPU shares: every stage can run at once, on one core as on a thousand nodes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.errors import RequestError
from embedding.planning.placement import DECODERS_PER_GPU, ClusterResources, plan_placement

GB = 1 << 30


def own(n_cpus: float, n_gpus: float = 0, memory_gb: float = 1000) -> ClusterResources:
    """A Ray of our own, on one machine."""
    return ClusterResources(n_cpus, n_gpus, memory_gb * GB, n_cpus)


def nodes(*cpus: int, n_gpus: int = 0, memory_gb: float = 10_000) -> ClusterResources:
    """A cluster of nodes with so many CPUs each."""
    return ClusterResources(sum(cpus), n_gpus, memory_gb * GB, min(cpus, default=0), len(cpus), is_own=False)


@given(n_cpus=st.integers(1, 4096), n_gpus=st.integers(0, 1024), memory_gb=st.integers(1, 100_000))
def test_encoding_decoding_and_writing_fit_beside_each_other(n_cpus: int, n_gpus: int, memory_gb: int) -> None:
    placed = plan_placement(own(n_cpus, n_gpus, memory_gb), "auto", "auto")
    needed = placed.n_actors * placed.encoder_cpus + placed.decode_cpus + placed.write_cpus
    assert needed <= n_cpus + 1e-9
    assert placed.n_actors * placed.encoder_gpus <= n_gpus
    assert min(placed.n_actors, placed.n_decoders, placed.n_writers, placed.encoder_threads) >= 1
    assert not placed.may_wait


@given(n_cpus=st.integers(1, 512), data=st.data())
def test_any_number_of_actors_up_to_the_cores_leaves_room_for_the_rest(n_cpus: int, data: st.DataObject) -> None:
    actors = data.draw(st.integers(1, n_cpus))
    placed = plan_placement(own(n_cpus), "cpu", actors)
    assert placed.n_actors == actors
    assert placed.n_actors * placed.encoder_threads <= n_cpus
    assert placed.n_actors * placed.encoder_cpus + placed.decode_cpus + placed.write_cpus <= n_cpus + 1e-9


@given(n_cpus=st.floats(0.2, 0.99), n_gpus=st.integers(0, 2))
def test_less_than_one_cpu_is_shared_too(n_cpus: float, n_gpus: int) -> None:
    placed = plan_placement(own(n_cpus, n_gpus), "auto", "auto")
    assert placed.n_actors * placed.encoder_cpus + placed.decode_cpus + placed.write_cpus <= n_cpus + 1e-9


@given(cpus=st.lists(st.integers(1, 64), min_size=1, max_size=30), data=st.data())
def test_on_nodes_all_encoders_find_a_place_and_a_decode_task_beside_them(cpus: list[int], data: st.DataObject) -> None:
    """Whatever nodes Ray fills first: a task's CPUs are of one node."""
    actors = data.draw(st.one_of(st.just("auto"), st.integers(1, sum(cpus))))
    placed = plan_placement(nodes(*cpus), "cpu", actors)
    assert placed.n_actors == (sum(cpus) if actors == "auto" else actors)
    free = data.draw(st.permutations([float(n) for n in cpus]))
    left = placed.n_actors
    for at, n_cpus in enumerate(free):
        here = min(left, math.floor(n_cpus / placed.encoder_cpus + 1e-9))
        free[at] -= here * placed.encoder_cpus
        left -= here
    assert not left
    assert max(free) >= placed.decode_cpus + placed.write_cpus - 1e-9


def test_every_core_of_a_cpu_machine_encodes() -> None:
    placed = plan_placement(own(8), "auto", "auto")
    assert placed.n_actors * placed.encoder_threads == 8


def test_memory_bounds_the_pool() -> None:
    placed = plan_placement(own(64, memory_gb=16), "auto", "auto")
    assert placed.n_actors == 8
    assert placed.encoder_threads == 8


def test_one_actor_per_gpu() -> None:
    placed = plan_placement(own(32, 4), "auto", "auto")
    assert (placed.device, placed.n_actors, placed.encoder_gpus) == ("cuda", 4, 1.0)
    assert placed.n_decoders >= 32


def test_encoders_on_gpus_wait_for_no_cpu() -> None:
    """Decode tasks take every CPU there is, and may have come first."""
    assert plan_placement(nodes(16, 16, n_gpus=2), "auto", "auto").encoder_cpus == 0


@pytest.mark.parametrize(
    ("n_gpus", "share", "actors"),
    [(2, 0.5, 4), (2, 0.4, 4), (1, 1 / 3, 3), (4, 2, 2), (3, 2, 1), (4, 0.25, 16), (1, 0.1, 10)],
)
def test_a_gpu_may_be_shared_and_several_taken(n_gpus: int, share: float, actors: int) -> None:
    placed = plan_placement(own(32, n_gpus), "cuda", "auto", share)
    assert (placed.n_actors, placed.encoder_gpus) == (actors, share)


def test_a_gpu_that_does_not_exist_is_said_at_once() -> None:
    with pytest.raises(RequestError, match=r"--device: cuda needs a GPU, and Ray sees none .*or add a GPU node"):
        plan_placement(own(8), "cuda", "auto")
    with pytest.raises(RequestError, match=r"Ray sees none .*say how many to wait for, with --actors"):
        plan_placement(nodes(8, 8), "cuda", "auto")


def test_more_gpus_for_an_actor_than_there_are_is_said_at_once() -> None:
    with pytest.raises(RequestError, match="--gpus-per-actor: 2 GPUs an actor, and Ray sees 1"):
        plan_placement(own(8, 1), "cuda", "auto", 2)


def test_more_actors_than_a_machine_carries_are_refused() -> None:
    with pytest.raises(RequestError, match="--actors: 3 actors need 3 GPUs, and Ray sees 2"):
        plan_placement(own(8, 2), "cuda", 3)
    with pytest.raises(RequestError, match="--actors: 9 actors need a CPU core each, and Ray sees 8"):
        plan_placement(own(8), "cpu", 9)


@pytest.mark.parametrize(
    ("cluster", "device"),
    [(nodes(), "cuda"), (nodes(8, 8), "cuda"), (nodes(8, n_gpus=1), "cuda"), (nodes(), "cpu"), (nodes(2), "cpu")],
)
def test_on_a_cluster_more_actors_than_it_carries_wait_for_its_autoscaler(
    cluster: ClusterResources, device: str
) -> None:
    placed = plan_placement(cluster, device, 4)
    assert (placed.device, placed.n_actors, placed.may_wait) == (device, 4, True)
    assert placed.may_grow
    assert placed.n_decoders == {"cuda": 4 * DECODERS_PER_GPU, "cpu": 4}[device]  # those that will come with them


def test_a_cluster_scaled_to_zero_is_told_how_to_begin() -> None:
    with pytest.raises(RequestError, match=r"--actors: this cluster has no worker yet.*--actors 8 --device cuda"):
        plan_placement(nodes(), "auto", "auto")


def test_a_machine_without_cpus_is_refused() -> None:
    with pytest.raises(RequestError, match="Ray offers 0 CPUs"):
        plan_placement(own(0, 1), "auto", "auto")
