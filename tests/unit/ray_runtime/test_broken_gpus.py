"""GPUs that a run gives up: held where no encoder gets them, while it goes on with the others."""

import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from embedding.errors import RunError
from embedding.planning.placement import Placement
from embedding.ray_runtime import broken_gpus
from embedding.ray_runtime.broken_gpus import HOLD_TRIES, BrokenGpus
from embedding.ray_runtime.gpus import Gpu
from local_ray import ray_of
from tests.support.commands import ROOT, environment

ONE, TWO = Gpu("node a", "host a", ("1",)), Gpu("node b", "host b", ("0",))
PLAN = Placement("cuda", 4, 0.0, 1.0, 1, 0.9, 4, 0.06, 1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A run on 4 GPUs; what it says; and which GPUs it can hold: all, or those in ``can_hold``."""
    found = SimpleNamespace(said=[], can_hold=None, n_gpus=4.0)

    def hold(broken: Collection[Gpu]) -> dict[Gpu, list[Any]]:
        return {gpu: ["an actor"] for gpu in broken if found.can_hold is None or gpu in found.can_hold}

    monkeypatch.setattr(broken_gpus, "hold_gpus", hold)
    found.broken = BrokenGpus(found.said.append, lambda: found.n_gpus)
    return found


def test_a_gpu_that_is_held_is_missing_from_the_plan_and_told_once(run: SimpleNamespace) -> None:
    run.broken.note({ONE: "ECC"})
    assert run.broken.hold(PLAN) == replace(PLAN, n_actors=3)
    assert run.said == ["GPU 1 of host a failed 3 times and is no longer used in this run: ECC"]
    run.broken.note({ONE: "ECC"})
    assert not run.broken.waiting
    run.broken.note({ONE: "ECC", TWO: "off the bus"})
    assert run.broken.hold(replace(PLAN, n_actors=3)).n_actors == 2
    assert len(run.said) == 2


@pytest.mark.parametrize(
    ("n_gpus", "share", "n_actors", "left"), [(2, 1.0, 1, 1), (2, 0.5, 1, 1), (2, 0.5, 3, 2), (4, 0.5, 8, 6)]
)
def test_encoders_move_to_gpus_that_were_spare(
    n_gpus: int, share: float, n_actors: int, left: int, run: SimpleNamespace
) -> None:
    run.n_gpus = n_gpus
    run.broken.note({ONE: "ECC"})
    assert run.broken.hold(replace(PLAN, encoder_gpus=share, n_actors=n_actors)).n_actors == left


def test_the_last_gpu_ends_the_run_in_one_line(run: SimpleNamespace) -> None:
    run.n_gpus = 1
    run.broken.note({ONE: "ECC"})
    with pytest.raises(RunError, match=r"no GPU is left to encode on: GPU 1 of host a failed 3 times: ECC"):
        run.broken.hold(PLAN)


def test_a_cluster_that_waits_for_machines_goes_on_waiting(run: SimpleNamespace) -> None:
    run.n_gpus = 1
    run.broken.note({ONE: "ECC"})
    assert run.broken.hold(replace(PLAN, may_wait=True)).n_actors == 4


def test_a_gpu_that_could_not_be_held_is_tried_again_and_at_last_named(run: SimpleNamespace) -> None:
    run.can_hold = []
    for _ in range(HOLD_TRIES - 1):
        run.broken.note({ONE: "ECC"})
        assert run.broken.hold(PLAN).n_actors == 4
    run.broken.note({ONE: "ECC"})
    with pytest.raises(RunError, match="GPU 1 of host a fails again and again, and could not be kept from"):
        run.broken.hold(PLAN)
    assert len(run.said) == 1


HOLDING = """
import ray
from embedding.ray_runtime import gpus

ray.init(address="auto", log_to_driver=False)
(node,) = [node for node in ray.nodes() if node["Resources"].get("GPU")]
of = lambda *numbers: gpus.Gpu(node["NodeID"], "host", numbers)
first = gpus.hold_gpus([of("2")])
assert list(first) == [of("2")] and len(first[of("2")]) == 1
gone = gpus.Gpu("0" * 56, "another host", ("1",))
second = gpus.hold_gpus([of("0"), gone])
assert second.keys() == {of("0"), gone} and not second[gone]
gpus.HOLD_S = 5.0
others = [ray.remote(num_gpus=1, num_cpus=0)(gpus._Occupant).remote() for _ in range(1)]
(number,) = ray.get(others[0].numbers.remote())
assert number == "1", number
assert gpus.hold_gpus([of("1")]) == {}
print("held")
"""


@pytest.fixture(scope="module")
def three_gpus() -> Iterator[str]:
    with ray_of(1, n_gpus=3) as address:
        yield address


def test_of_a_nodes_gpus_the_broken_ones_are_held_by_their_numbers(three_gpus: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLDING],
        cwd=ROOT,
        env=environment(RAY_ADDRESS=three_gpus),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["held"], done.stderr
