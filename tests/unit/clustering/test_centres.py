"""Centres of clusters: found where there are groups, the same each time."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from embedding.clustering.centres import NOISE, Centres, find_by_hdbscan, find_by_kmeans

N, DIM = 600, 16


@pytest.fixture
def groups() -> tuple[np.ndarray, np.ndarray]:
    """Vectors of three groups of different lengths and sizes, and the group of each."""
    rng = np.random.default_rng(0)
    group = rng.choice(3, N, p=[0.6, 0.3, 0.1])
    directions = np.eye(DIM)[:3] * 5
    return ((directions[group] + rng.normal(0, 0.4, (N, DIM))) * rng.uniform(0.5, 2, (N, 1))).astype(np.float32), group


@pytest.mark.usefixtures("one_thread")
def test_kmeans_finds_the_groups_whatever_the_batches(groups: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, group = groups
    batches = [vectors[first : first + 70] for first in range(0, N, 70)]
    found = find_by_kmeans(lambda: iter(batches), vectors[:200], 3, seed=1)
    cluster, distance = found.assign(vectors)
    assert adjusted_rand_score(group, cluster) > 0.98
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(distance, np.linalg.norm(units - found.vectors[cluster], axis=1), atol=1e-3)
    again = find_by_kmeans(lambda: iter(batches), vectors[:200], 3, seed=1)
    assert (again.vectors == found.vectors).all()


@pytest.mark.usefixtures("one_thread")
def test_hdbscan_finds_dense_regions_and_leaves_the_rest_out(groups: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, group = groups
    noise = np.random.default_rng(1).standard_normal((60, DIM)).astype(np.float32)
    found = find_by_hdbscan(np.concatenate([vectors, noise]), least=20, seed=0)
    assert len(found.vectors) == 3
    cluster, _ = found.assign(vectors)
    assert (cluster == NOISE).mean() < 0.1
    assert adjusted_rand_score(group[cluster != NOISE], cluster[cluster != NOISE]) > 0.98
    assert (found.assign(noise)[0] == NOISE).mean() > 0.9
    sizes = [(cluster == number).sum() for number in range(3)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(find_by_hdbscan(noise, least=30, seed=0).vectors) == 0


def test_a_vector_of_zeros_has_a_distance() -> None:
    centres = Centres(np.eye(2, dtype=np.float32), np.full(2, np.inf, np.float32))
    cluster, distance = centres.assign(np.zeros((1, 2), np.float32))
    assert cluster.tolist() == [0]
    assert distance[0] == pytest.approx(np.sqrt(2))


@pytest.mark.usefixtures("one_thread")
def test_the_first_batch_may_have_fewer_windows_than_there_are_clusters() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    assert len(find_by_kmeans(lambda: iter([vectors[:5], vectors[5:]]), vectors, 30, seed=0).vectors) == 30
