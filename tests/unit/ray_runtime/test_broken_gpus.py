"""GPUs that a run gives up: no encoder gets them, and the run goes on with the others."""

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
PLACEMENT = Placement("cuda", 4, 0.0, 1.0, 1, 0.9, 4, 0.06, 1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a run on 4 GPUs, with its warnings and the GPUs that it can hold: ``can_hold``, or all if None."""
    made = SimpleNamespace(warnings=[], can_hold=None, n_gpus=4.0)

    def hold(broken: Collection[Gpu]) -> dict[Gpu, list[Any]]:
        return {gpu: ["an actor"] for gpu in broken if made.can_hold is None or gpu in made.can_hold}

    monkeypatch.setattr(broken_gpus, "hold_gpus", hold)
    made.broken = BrokenGpus(made.warnings.append, lambda: made.n_gpus)
    return made


def test_a_held_gpu_is_taken_from_the_placement_with_one_warning(run: SimpleNamespace) -> None:
    run.broken.note({ONE: "ECC"})
    assert run.broken.hold(PLACEMENT) == replace(PLACEMENT, n_actors=3)
    assert run.warnings == ["GPU 1 of host a failed 3 times and is no longer used in this run: ECC"]
    run.broken.note({ONE: "ECC"})
    assert not run.broken.waiting
    run.broken.note({ONE: "ECC", TWO: "off the bus"})
    assert run.broken.hold(replace(PLACEMENT, n_actors=3)).n_actors == 2
    assert len(run.warnings) == 2


@pytest.mark.parametrize(
    ("n_gpus", "share", "n_actors", "n_left"), [(2, 1.0, 1, 1), (2, 0.5, 1, 1), (2, 0.5, 3, 2), (4, 0.5, 8, 6)]
)
def test_encoders_use_gpus_that_were_unused_before(
    n_gpus: int, share: float, n_actors: int, n_left: int, run: SimpleNamespace
) -> None:
    run.n_gpus = n_gpus
    run.broken.note({ONE: "ECC"})
    assert run.broken.hold(replace(PLACEMENT, encoder_gpus=share, n_actors=n_actors)).n_actors == n_left


def test_a_run_without_a_gpu_left_ends_with_one_line(run: SimpleNamespace) -> None:
    run.n_gpus = 1
    run.broken.note({ONE: "ECC"})
    with pytest.raises(RunError, match=r"no GPU is left to encode on: GPU 1 of host a failed 3 times: ECC"):
        run.broken.hold(PLACEMENT)


def test_the_number_of_encoders_stays_where_a_run_waits_for_machines(run: SimpleNamespace) -> None:
    run.n_gpus = 1
    run.broken.note({ONE: "ECC"})
    assert run.broken.hold(replace(PLACEMENT, may_wait=True)).n_actors == 4


def test_a_run_ends_when_a_broken_gpu_cannot_be_held_after_several_tries(run: SimpleNamespace) -> None:
    run.can_hold = []
    for _ in range(HOLD_TRIES - 1):
        run.broken.note({ONE: "ECC"})
        assert run.broken.hold(PLACEMENT).n_actors == 4
    run.broken.note({ONE: "ECC"})
    with pytest.raises(RunError, match="GPU 1 of host a fails again and again, and could not be kept from"):
        run.broken.hold(PLACEMENT)
    assert len(run.warnings) == 1


HOLDING_PROGRAM = """
import ray
from embedding.ray_runtime import gpus

ray.init(address="auto", log_to_driver=False)
(node,) = [node for node in ray.nodes() if node["Resources"].get("GPU")]
of = lambda *numbers: gpus.Gpu(node["NodeID"], "host", numbers)
first = gpus.hold_gpus([of("2")])
assert list(first) == [of("2")] and len(first[of("2")]) == 1
lost = gpus.Gpu("0" * 56, "another host", ("1",))
second = gpus.hold_gpus([of("0"), lost])
assert second.keys() == {of("0"), lost} and not second[lost]
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


def test_broken_gpus_of_a_node_are_held_by_their_numbers(three_gpus: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLDING_PROGRAM],
        cwd=ROOT,
        env=environment(RAY_ADDRESS=three_gpus),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["held"], done.stderr
