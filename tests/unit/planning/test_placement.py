"""The placement: all stages can run at once, on one core as on a thousand nodes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.errors import RequestError
from embedding.planning.placement import DECODERS_PER_GPU, ClusterResources, UsefulWorkers, plan_placement

GB = 1 << 30


def own(n_cpus: float, n_gpus: float = 0, memory_gb: float = 1000) -> ClusterResources:
    """Return the resources of a Ray of our own, on one machine."""
    return ClusterResources(n_cpus, n_gpus, memory_gb * GB, n_cpus)


def nodes(*cpus: int, n_gpus: int = 0, memory_gb: float = 10_000) -> ClusterResources:
    """Return the resources of a cluster of nodes with these CPUs."""
    return ClusterResources(sum(cpus), n_gpus, memory_gb * GB, min(cpus, default=0), len(cpus), is_own=False)


@given(n_cpus=st.integers(1, 4096), n_gpus=st.integers(0, 1024), memory_gb=st.integers(1, 100_000))
def test_encoders_a_decode_task_and_a_write_task_fit_at_once(n_cpus: int, n_gpus: int, memory_gb: int) -> None:
    placement = plan_placement(own(n_cpus, n_gpus, memory_gb), "auto", "auto")
    needed = placement.n_actors * placement.encoder_cpus + placement.decode_cpus + placement.write_cpus
    assert needed <= n_cpus + 1e-9
    assert placement.n_actors * placement.encoder_gpus <= n_gpus
    assert min(placement.n_actors, placement.n_decoders, placement.n_writers, placement.encoder_threads) >= 1
    assert not placement.may_wait


@given(n_cpus=st.integers(1, 512), data=st.data())
def test_any_number_of_actors_up_to_the_cores_leaves_cpus_for_decoding_and_writing(
    n_cpus: int, data: st.DataObject
) -> None:
    actors = data.draw(st.integers(1, n_cpus))
    placement = plan_placement(own(n_cpus), "cpu", actors)
    assert placement.n_actors == actors
    assert placement.n_actors * placement.encoder_threads <= n_cpus
    assert placement.n_actors * placement.encoder_cpus + placement.decode_cpus + placement.write_cpus <= n_cpus + 1e-9


@given(n_cpus=st.floats(0.2, 0.99), n_gpus=st.integers(0, 2))
def test_less_than_one_cpu_is_divided_between_the_stages(n_cpus: float, n_gpus: int) -> None:
    placement = plan_placement(own(n_cpus, n_gpus), "auto", "auto")
    assert placement.n_actors * placement.encoder_cpus + placement.decode_cpus + placement.write_cpus <= n_cpus + 1e-9


@given(cpus=st.lists(st.integers(1, 64), min_size=1, max_size=30), data=st.data())
def test_all_encoders_fit_on_the_nodes_of_a_cluster_with_a_decode_task(cpus: list[int], data: st.DataObject) -> None:
    """Ray may fill the nodes in any order; the CPUs of a task are on one node."""
    actors = data.draw(st.one_of(st.just("auto"), st.integers(1, sum(cpus))))
    placement = plan_placement(nodes(*cpus), "cpu", actors)
    assert placement.n_actors == (sum(cpus) if actors == "auto" else actors)
    free = data.draw(st.permutations([float(n) for n in cpus]))
    n_left = placement.n_actors
    for node, n_cpus in enumerate(free):
        n_encoders = min(n_left, math.floor(n_cpus / placement.encoder_cpus + 1e-9))
        free[node] -= n_encoders * placement.encoder_cpus
        n_left -= n_encoders
    assert not n_left
    assert max(free) >= placement.decode_cpus + placement.write_cpus - 1e-9


def test_every_core_of_a_machine_without_gpus_encodes() -> None:
    placement = plan_placement(own(8), "auto", "auto")
    assert placement.n_actors * placement.encoder_threads == 8


def test_a_short_run_starts_no_more_workers_than_have_work() -> None:
    placement = plan_placement(own(8), "cpu", "auto", useful=UsefulWorkers(2, 1))
    assert (placement.n_actors, placement.encoder_threads, placement.n_decoders) == (2, 4, 1)
    assert plan_placement(own(8), "cpu", 3, useful=UsefulWorkers(2, 1)).n_actors == 3, "a request is kept"
    assert plan_placement(own(8), "cpu", "auto", useful=UsefulWorkers(99, 99)).n_actors == 8


def test_only_a_long_run_on_a_cluster_decodes_on_nodes_that_come_later() -> None:
    assert plan_placement(nodes(8, 8), "cpu", "auto").may_grow
    placement = plan_placement(nodes(8, 8), "cpu", "auto", useful=UsefulWorkers(1, 1))
    assert (placement.may_grow, placement.n_decoders) == (False, 1)


def test_memory_limits_the_number_of_encoders() -> None:
    placement = plan_placement(own(64, memory_gb=16), "auto", "auto")
    assert placement.n_actors == 8
    assert placement.encoder_threads == 8


def test_each_gpu_gets_one_encoder() -> None:
    placement = plan_placement(own(32, 4), "auto", "auto")
    assert (placement.device, placement.n_actors, placement.encoder_gpus) == ("cuda", 4, 1.0)
    assert placement.n_decoders >= 32


def test_encoders_on_gpus_reserve_no_cpu() -> None:
    """Decode tasks take all CPUs, and may start first."""
    assert plan_placement(nodes(16, 16, n_gpus=2), "auto", "auto").encoder_cpus == 0


@pytest.mark.parametrize(
    ("n_gpus", "share", "actors"),
    [(2, 0.5, 4), (2, 0.4, 4), (1, 1 / 3, 3), (4, 2, 2), (3, 2, 1), (4, 0.25, 16), (1, 0.1, 10)],
)
def test_an_encoder_may_take_a_share_of_a_gpu_or_several_gpus(n_gpus: int, share: float, actors: int) -> None:
    placement = plan_placement(own(32, n_gpus), "cuda", "auto", share)
    assert (placement.n_actors, placement.encoder_gpus) == (actors, share)


def test_a_gpu_is_refused_where_there_is_none() -> None:
    with pytest.raises(RequestError, match=r"--device: cuda needs a GPU, and Ray sees none .*or add a GPU node"):
        plan_placement(own(8), "cuda", "auto")
    with pytest.raises(RequestError, match=r"Ray sees none .*say how many to wait for, with --actors"):
        plan_placement(nodes(8, 8), "cuda", "auto")


def test_more_gpus_per_actor_than_there_are_is_refused() -> None:
    with pytest.raises(RequestError, match="--gpus-per-actor: 2 GPUs an actor, and Ray sees 1"):
        plan_placement(own(8, 1), "cuda", "auto", 2)


def test_more_actors_than_fit_on_a_machine_are_refused() -> None:
    with pytest.raises(RequestError, match="--actors: 3 actors need 3 GPUs, and Ray sees 2"):
        plan_placement(own(8, 2), "cuda", 3)
    with pytest.raises(RequestError, match="--actors: 9 actors need a CPU core each, and Ray sees 8"):
        plan_placement(own(8), "cpu", 9)


@pytest.mark.parametrize(
    ("cluster", "device"),
    [(nodes(), "cuda"), (nodes(8, 8), "cuda"), (nodes(8, n_gpus=1), "cuda"), (nodes(), "cpu"), (nodes(2), "cpu")],
)
def test_more_actors_than_fit_on_a_cluster_wait_for_its_autoscaler(cluster: ClusterResources, device: str) -> None:
    placement = plan_placement(cluster, device, 4)
    assert (placement.device, placement.n_actors, placement.may_wait) == (device, 4, True)
    assert placement.may_grow
    assert (
        placement.n_decoders == {"cuda": 4 * DECODERS_PER_GPU, "cpu": 4}[device]
    )  # of the nodes that are still to come


def test_auto_is_refused_on_a_cluster_without_workers() -> None:
    with pytest.raises(RequestError, match=r"--actors: this cluster has no worker yet.*--actors 8 --device cuda"):
        plan_placement(nodes(), "auto", "auto")


def test_a_machine_without_cpus_is_refused() -> None:
    with pytest.raises(RequestError, match="Ray has 0 CPUs"):
        plan_placement(own(0, 1), "auto", "auto")
