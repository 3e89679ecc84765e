"""Groups of alike windows, as a user finds them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cluster import main
from tests.support.commands import Outcome, run_job_here
from tests.support.probing import SETTINGS
from tests.support.shards import write_output

Cluster = Callable[..., Outcome]


@pytest.fixture
def cluster(connection: None, one_thread: None) -> Cluster:
    return partial(run_job_here, main)


def recordings(n: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """Return recordings of one of three kinds each, two of an hour of the day."""
    rng = np.random.default_rng(seed)
    return {
        f"/a/2025050{1 + at % 9}_{at % 3:02}0000.wav": (np.eye(3)[at % 3] + rng.normal(0, 0.05, (9, 3))).astype("f")
        for at in range(n)
    }


def members(output: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(output / "clusters" / name).sort_by("file").to_pylist()


def summary(output: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((output / "clusters" / name / "_clusters.json").read_text())["clusters"]


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_every_window_has_the_group_of_its_kind(cluster: Cluster, tmp_path: Path, method: str) -> None:
    files = recordings()
    write_output(str(tmp_path), files, SETTINGS)
    done = cluster(tmp_path, "--method", method, "--clusters", 3, "--least", 8)
    assert (done.code, done.stderr) == (0, "")
    rows = members(tmp_path, method)
    assert len(rows) == sum(map(len, files.values()))
    group_of_kind = {}
    for row in rows:
        kind = list(files).index(row["file"]) % 3
        if row["cluster"] >= 0:
            assert group_of_kind.setdefault(kind, row["cluster"]) == row["cluster"]
    assert sorted(group_of_kind.values()) == [0, 1, 2]
    found = summary(tmp_path, method)
    assert sum(row["windows"] for row in found) == len(rows)
    for kind, number in group_of_kind.items():
        (row,) = (row for row in found if row["cluster"] == number)
        assert np.flatnonzero(row["by_hour"]).tolist() == [kind]
        assert len(row["examples"]) == 10
        assert [each["distance"] for each in row["examples"]] == sorted(each["distance"] for each in row["examples"])


def test_new_recordings_join_the_groups_that_there_are(cluster: Cluster, tmp_path: Path) -> None:
    write_output(str(tmp_path), recordings(), SETTINGS)
    assert cluster(tmp_path, "--clusters", 3).code == 0
    before = {(row["file"], row["window_index"]): row["cluster"] for row in members(tmp_path, "kmeans")}
    other = tmp_path / "other"
    write_output(str(other), {"/new.wav": np.tile(np.eye(3, dtype="f")[1], (4, 1))}, SETTINGS, 1)
    table = pq.read_table(other / "embeddings" / "s0.parquet")
    ids = pa.array(np.full(len(table), 5))
    pq.write_table(table.set_column(1, "file_id", ids), tmp_path / "embeddings" / "new.parquet")
    done = cluster(tmp_path, "--clusters", 3)
    assert "9 assigned before, 1 to do" in done.stdout
    after = {(row["file"], row["window_index"]): row["cluster"] for row in members(tmp_path, "kmeans")}
    assert {key: after[key] for key in before} == before
    second = next(number for (file, _), number in before.items() if file == list(recordings())[1])
    assert {number for (file, _), number in after.items() if file == "/new.wav"} == {second}


def test_other_settings_need_replace_or_another_name(cluster: Cluster, tmp_path: Path) -> None:
    write_output(str(tmp_path), recordings(), SETTINGS)
    assert cluster(tmp_path, "--clusters", 3).code == 0
    refused = cluster(tmp_path, "--clusters", 4)
    assert refused.code == 2
    assert "another clusters" in refused.stderr
    assert cluster(tmp_path, "--clusters", 4, "--name", "four").code == 0
    assert cluster(tmp_path, "--clusters", 4, "--replace").code == 0
    assert {row["cluster"] for row in members(tmp_path, "kmeans")} == {0, 1, 2, 3}
    assert members(tmp_path, "four") == members(tmp_path, "kmeans"), "the same seed"
    (tmp_path / "clusters" / "kmeans" / "_centres.npz").write_bytes(b"x")
    assert "_centres.npz is damaged" in cluster(tmp_path, "--clusters", 4).stderr


def test_requests_that_make_no_sense_are_one_line(cluster: Cluster, tmp_path: Path) -> None:
    write_output(str(tmp_path), recordings(2), SETTINGS)
    for arguments, message in {
        ("--method", "kmean"): "did you mean 'kmeans'",
        ("--clusters", 1): "--clusters",
        ("--clusters", 99): "99 clusters need as many windows, and there are 18",
        ("--method", "hdbscan", "--least", 50): "50 windows make a cluster, and there are 18",
        ("--name", "../x"): "cannot be the name of a folder",
    }.items():
        done = cluster(tmp_path, *arguments)
        assert done.code == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
