"""Kills of workers, drivers and nodes: in the end the output has every window once, as after an uninterrupted run."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.clusters import local_cluster
from tests.support.kills import (
    Job,
    Kill,
    assert_uninterrupted,
    kill_driver,
    kill_loading_encoder,
    kill_nodes,
    kill_workers,
    make_archive,
    read_rows,
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> pa.Table:
    """The output of an uninterrupted run."""
    job = Job(archive, tmp_path_factory.mktemp("expected") / "out", {"RAY_ADDRESS": ray_address})
    job.finish()
    return read_rows(job.output)


@pytest.fixture(scope="module")
def kills() -> Iterator[list[Kill]]:
    """All kills of this module; a report is printed at its end (pytest -s)."""
    all_kills: list[Kill] = []
    yield all_kills
    for kill in all_kills:
        print(f"killed {kill.victim} after {kill.after_s:.1f} s: {kill.lost_s:.1f} s of work lost")  # noqa: T201


def test_a_run_survives_kills_of_workers(archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path) -> None:
    job = Job(archive, tmp_path / "out")
    killed = kill_workers(job, 4, (1.0, 3.0), random.Random(1))
    assert len(killed) >= 2
    assert_uninterrupted(job.output, expected)
    kills += with_costs(killed, job, expected)


@pytest.mark.long
def test_a_run_survives_the_kill_of_a_loading_encoder(archive: Path, expected: pa.Table, tmp_path: Path) -> None:
    job = Job(archive, tmp_path / "out")
    assert re.search(r"done again because workers were lost: .*\d encoder", kill_loading_encoder(job))
    assert_uninterrupted(job.output, expected)


@pytest.mark.long
def test_a_second_run_finishes_after_the_kill_of_the_driver(
    archive: Path, expected: pa.Table, kills: list[Kill], ray_address: str, tmp_path: Path
) -> None:
    job = Job(archive, tmp_path / "out", {"RAY_ADDRESS": ray_address})
    kill = kill_driver(job, random.Random(2))
    assert kill is not None
    job.finish()
    assert_uninterrupted(job.output, expected)
    kills.append(kill)


@pytest.mark.long
def test_a_run_survives_the_loss_of_a_node(
    archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path
) -> None:
    with local_cluster(1, 1, 1) as nodes:
        job = Job(archive, tmp_path / "out", {"RAY_ADDRESS": nodes.address})
        killed = kill_nodes(job, nodes, 1, (5.0, 10.0), random.Random(3))
    assert killed
    assert_uninterrupted(job.output, expected)
    kills += with_costs(killed, job, expected)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_a_run_survives_many_kills_of_workers(
    seed: int, archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path
) -> None:
    job = Job(archive, tmp_path / "out")
    killed = kill_workers(job, 6, (0.5, 4.0), random.Random(100 + seed))
    assert_uninterrupted(job.output, expected)
    kills += with_costs(killed, job, expected)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_the_last_run_finishes_after_many_kills_of_drivers(
    seed: int, archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path
) -> None:
    job = Job(archive, tmp_path / "out")
    rng = random.Random(200 + seed)
    for _ in range(4):
        if kill := kill_driver(job, rng):
            kills.append(kill)
    job.finish()
    assert_uninterrupted(job.output, expected)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(9))
def test_a_run_survives_the_loss_of_many_nodes(
    seed: int, archive: Path, expected: pa.Table, kills: list[Kill], tmp_path: Path
) -> None:
    with local_cluster(1, 1, 1) as nodes:
        job = Job(archive, tmp_path / "out", {"RAY_ADDRESS": nodes.address}, shard_rows=64)
        killed = kill_nodes(job, nodes, 7, (3.0, 8.0), random.Random(300 + seed))
    assert_uninterrupted(job.output, expected)
    kills += with_costs(killed, job, expected)


def with_costs(killed: list[Kill], job: Job, expected: pa.Table) -> list[Kill]:
    """Divide the time for windows that were encoded twice among the kills of a run."""
    run = json.loads((job.output / "report.json").read_text())["runs"][-1]
    encoding_s = run["wall_s"] - run["first_window_after_s"]
    n_repeated = max(0, run["windows_encoded"] - len(expected))
    print(f"{len(killed)} killed, done again: {run['done_again']}")  # noqa: T201
    for kill in killed:
        kill.lost_s = n_repeated / run["windows_encoded"] * encoding_s / len(killed)
    return killed
