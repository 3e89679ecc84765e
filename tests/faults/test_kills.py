"""Whatever dies, the same command again ends with every window once, as an uninterrupted run would have written it."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.clusters import local_cluster
from tests.support.kills import (
    Job,
    Kill,
    assert_same,
    contents,
    kill_driver,
    kill_loading_encoder,
    kill_nodes,
    kill_workers,
    make_archive,
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> pa.Table:
    """The output of an uninterrupted run."""
    job = Job(archive, tmp_path_factory.mktemp("expected") / "out", {"RAY_ADDRESS": ray_address})
    job.finish()
    return contents(job.output)


@pytest.fixture(scope="module")
def kills() -> Iterator[list[Kill]]:
    """Every kill of this module; told at its end, for the record (pytest -s)."""
    every: list[Kill] = []
    yield every
    for kill in every:
        print(f"killed {kill.victim} after {kill.after_s:.1f} s: {kill.lost_s:.1f} s of work lost")  # noqa: T201


Killed = Callable[[Job], list[Kill]]


def test_workers_may_die_at_any_time(archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path) -> None:
    job = Job(archive, tmp_path / "out")
    killed = kill_workers(job, 4, (1.0, 3.0), random.Random(1))
    assert len(killed) >= 2
    assert_same(job.output, expected)
    kills += _with_costs(killed, job, expected)


@pytest.mark.long
def test_an_encoder_may_die_while_it_loads(archive: Path, expected: pa.Table, tmp_path: Path) -> None:
    job = Job(archive, tmp_path / "out")
    assert re.search(r"done again after losses: .*\d encoder", kill_loading_encoder(job))
    assert_same(job.output, expected)


@pytest.mark.long
def test_the_driver_may_die_at_any_time(
    archive: Path, expected: pa.Table, kills: list[Kill], ray_address: str, tmp_path: Path
) -> None:
    job = Job(archive, tmp_path / "out", {"RAY_ADDRESS": ray_address})
    kill = kill_driver(job, random.Random(2))
    assert kill is not None
    job.finish()
    assert_same(job.output, expected)
    kills.append(kill)


@pytest.mark.long
def test_nodes_may_die_at_any_time(archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path) -> None:
    with local_cluster(1, 1, 1) as nodes:
        job = Job(archive, tmp_path / "out", {"RAY_ADDRESS": nodes.address})
        killed = kill_nodes(job, nodes, 1, (5.0, 10.0), random.Random(3))
    assert killed
    assert_same(job.output, expected)
    kills += _with_costs(killed, job, expected)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_many_workers_may_die(seed: int, archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path) -> None:
    job = Job(archive, tmp_path / "out")
    killed = kill_workers(job, 6, (0.5, 4.0), random.Random(100 + seed))
    assert_same(job.output, expected)
    kills += _with_costs(killed, job, expected)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_many_drivers_may_die(seed: int, archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path) -> None:
    job = Job(archive, tmp_path / "out")
    rng = random.Random(200 + seed)
    for _ in range(4):
        if kill := kill_driver(job, rng):
            kills.append(kill)
    job.finish()
    assert_same(job.output, expected)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(9))
def test_many_nodes_may_die(seed: int, archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path) -> None:
    with local_cluster(1, 1, 1) as nodes:
        job = Job(archive, tmp_path / "out", {"RAY_ADDRESS": nodes.address}, shard_rows=64)
        killed = kill_nodes(job, nodes, 7, (3.0, 8.0), random.Random(300 + seed))
    assert_same(job.output, expected)
    kills += _with_costs(killed, job, expected)


def _with_costs(killed: list[Kill], job: Job, expected: pa.Table) -> list[Kill]:
    """The windows that were encoded twice, in seconds of the run, spread over its kills."""
    run = json.loads((job.output / "report.json").read_text())["runs"][-1]
    encoding_s = run["wall_s"] - run["first_window_after_s"]
    again = max(0, run["windows_encoded"] - len(expected))
    print(f"{len(killed)} killed, done again: {run['done_again']}")  # noqa: T201
    for kill in killed:
        kill.lost_s = again / run["windows_encoded"] * encoding_s / len(killed)
    return killed
