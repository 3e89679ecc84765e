"""Runs on clusters whose nodes are small, late or too few, or do not see files of the driver.

There is no GPU: nodes claim to have GPUs, the placement requests them, and the encoder then computes on CPUs.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.audio import tone, write_audio
from tests.support.cluster_jobs import ON_GPUS, assert_complete, read_until, run_on_cluster, write_archive
from tests.support.clusters import LocalCluster, local_cluster
from tests.support.models import EFFICIENTNET


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive"))


@pytest.mark.long  # keeps `make test` within ten minutes
def test_a_run_waits_for_late_gpus_and_uses_fewer_than_requested(archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with local_cluster(1) as cluster, run_on_cluster(cluster, archive, output, *ON_GPUS, "--actors", 2) as process:
        read_until(process, "not all workers fit yet")
        read_until(process, "no window for", "0 of 2 encoders have loaded; Ray has 1 CPUs and 0 GPUs on 1 node")
        cluster.add(num_cpus=1, num_gpus=1)
        assert_complete(process, output)


@pytest.mark.long
def test_several_encoders_share_a_gpu(archive: Path, tmp_path: Path) -> None:
    with local_cluster() as cluster:
        cluster.add(num_cpus=1, num_gpus=1)
        with run_on_cluster(cluster, archive, tmp_path / "out", *ON_GPUS, "--gpus-per-actor", 0.5) as process:
            read_until(process, "loading the model into 2 ")
            assert_complete(process, tmp_path / "out")


@pytest.mark.long  # tests/unit/planning tests the check; here are real nodes
def test_a_cluster_without_workers_is_refused_with_a_hint(archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with local_cluster() as cluster, run_on_cluster(cluster, archive, output, "--checkpoint", "random") as process:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "avex-batch: --actors: this cluster has no worker yet" in printed


@pytest.fixture(scope="module")
def node_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of the nodes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def separate_cluster(node_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster for whose nodes /proc/self/cwd is another folder than for the driver."""
    env = {"XDG_CACHE_HOME": str(node_cache)}
    with local_cluster(1, cwd=tmp_path_factory.mktemp("nodes"), env=env) as cluster:
        yield cluster


@pytest.mark.long  # tests/unit/planning tests the check; here are real nodes
def test_recordings_that_only_the_driver_sees_are_refused_before_work_starts(
    separate_cluster: LocalCluster, tmp_path: Path
) -> None:
    write_audio(tmp_path / "a.wav", tone(5.0, 16_000), 16_000)
    with run_on_cluster(
        separate_cluster, "/proc/self/cwd/a.wav", tmp_path / "out", "--checkpoint", "random"
    ) as process:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 2, printed
        assert "has no such recording as /proc/self/cwd/a.wav" in printed
        assert "every node has mounted" in printed


@pytest.mark.long  # tests/unit/encoding/test_checkpoints.py tests the cache of checkpoints quickly
def test_weights_that_only_the_driver_has_are_sent_to_the_nodes(
    separate_cluster: LocalCluster, node_cache: Path, archive: Path, tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    (tmp_path / "w.safetensors").symlink_to(checkpoints[EFFICIENTNET])
    output = tmp_path / "out"
    checkpoint = "/proc/self/cwd/w.safetensors"
    with run_on_cluster(separate_cluster, str(archive), output, "--checkpoint", checkpoint) as process:
        assert_complete(process, output)
    (cached,) = node_cache.glob("avex-batch/*.safetensors")
    assert cached.read_bytes() == checkpoints[EFFICIENTNET].read_bytes()
