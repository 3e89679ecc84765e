"""Neighbours, projections, clusters and names of files, for the pictures of a page."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.overview import projections
from embedding.overview.plotly_figures import scatter
from embedding.overview.png_files import stems
from embedding.overview.point_colours import Colouring


def test_nearest_and_pca_are_numpys() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    near = projections.nearest(vectors, 5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T).astype(np.float64)
    np.fill_diagonal(cosines, -2)
    assert np.array_equal(near.index, np.argsort(-cosines, axis=1)[:, :5])
    assert np.allclose(near.cosine, -np.sort(-cosines, axis=1)[:, :5], atol=1e-6)
    points, explained = projections.pca(vectors)
    centred = vectors - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(points), np.abs(u[:, :2] * s[:2]), atol=1e-5)
    assert np.allclose(explained, (s**2 / (s**2).sum())[:2], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-18, 1e-13, 1e15])
def test_only_directions_count(scale: float) -> None:
    """Vectors of seeded weights are 1e-13 long."""
    vectors = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    near, scaled = projections.nearest(vectors, 14), projections.nearest(np.float32(scale) * vectors, 14)
    assert np.array_equal(near.index, scaled.index)
    assert np.allclose(near.cosine, scaled.cosine, atol=1e-6)
    explained = projections.pca(vectors)[1]
    assert np.allclose(explained, projections.pca(np.float32(scale) * vectors)[1], rtol=1e-4)


def test_nearly_parallel_vectors_are_told_apart() -> None:
    """As those of a model are whose vectors have much in common: cosines that differ in the ninth digit."""
    angles = 1e-5 * np.arange(20)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    near = projections.nearest(vectors.astype(np.float32), 2)
    for at in range(1, 19):
        assert set(near.index[at]) == {at - 1, at + 1}


@pytest.mark.usefixtures("one_thread")  # sums of several threads differ in their last digit, on a busy machine
@pytest.mark.parametrize("n", [10, 15, 16, 40])
@pytest.mark.parametrize("kind", ["random", "pairs", "mostly equal"])
def test_umap_draws_whatever_there_is_and_the_same_again(n: int, kind: str) -> None:
    vectors = np.random.default_rng(n).standard_normal((n, 5)).astype(np.float32)
    if kind == "pairs":
        vectors[1::2] = vectors[: len(vectors[1::2])]
    if kind == "mostly equal":
        vectors[2:] = vectors[2]
    near = projections.nearest(vectors, 14)
    drawn, again = (projections.umap(vectors, near) for _ in range(2))
    assert drawn is not None
    assert again is not None
    assert drawn.shape == (n, 2)
    assert np.isfinite(drawn).all()
    assert np.array_equal(drawn, again)
    assert len(projections.clusters(drawn)) == n


def test_clusters_are_numbered_by_size() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(centre, 0.05, (n, 2)) for centre, n in ((0, 20), (5, 60), (9, 40))])
    found = projections.clusters(points)
    assert [np.bincount(found[part] + 1).argmax() - 1 for part in (slice(20), slice(20, 80), slice(80, None))] == [
        2,
        0,
        1,
    ]


@given(exponent=st.integers(-30, 30), values=st.lists(st.integers(0, 9999), min_size=2, max_size=50, unique=True))
def test_points_keep_their_places_whatever_their_size(exponent: int, values: list[int]) -> None:
    xy = np.array([values, values[::-1]], np.float64).T * 10.0**exponent
    drawn = scatter(xy, ("x", "y"), Colouring.of("nothing", ["a"] * len(xy)), ticks=True).data[0]
    for shown, expected in ((drawn.x, xy[:, 0]), (drawn.y, xy[:, 1])):  # type: ignore[attr-defined]
        assert np.abs(np.array(shown) - expected).max() <= np.ptp(expected) / 10_000


def test_every_colouring_has_a_file_name_of_its_own() -> None:
    names = ["a b", "a-b", "a/b", "../x", "ü" * 300]
    found = stems([Colouring.of(name, ["a"]) for name in names])
    assert len(set(found)) == len(names)
    assert not any("/" in stem or len(stem.encode()) > 200 for stem in found)
