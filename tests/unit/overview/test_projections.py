"""Neighbours, projections, clusters and names of files, for the pictures of a page."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.overview import projections
from embedding.overview.plotly_figures import map_figure
from embedding.overview.png_files import file_stems
from embedding.overview.point_colours import ColourScheme


def test_neighbours_and_pca_match_numpy() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    neighbours = projections.find_neighbours(vectors, 5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T).astype(np.float64)
    np.fill_diagonal(cosines, -2)
    assert np.array_equal(neighbours.index, np.argsort(-cosines, axis=1)[:, :5])
    assert np.allclose(neighbours.cosine, -np.sort(-cosines, axis=1)[:, :5], atol=1e-6)
    points, explained = projections.project_pca(vectors)
    centred = vectors - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(points), np.abs(u[:, :2] * s[:2]), atol=1e-5)
    assert np.allclose(explained, (s**2 / (s**2).sum())[:2], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-18, 1e-13, 1e15])
def test_the_scale_of_vectors_does_not_matter(scale: float) -> None:
    """Vectors of seeded weights have norms of about 1e-13."""
    vectors = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    neighbours, scaled = (
        projections.find_neighbours(vectors, 14),
        projections.find_neighbours(np.float32(scale) * vectors, 14),
    )
    assert np.array_equal(neighbours.index, scaled.index)
    assert np.allclose(neighbours.cosine, scaled.cosine, atol=1e-6)
    explained = projections.project_pca(vectors)[1]
    assert np.allclose(explained, projections.project_pca(np.float32(scale) * vectors)[1], rtol=1e-4)


def test_neighbours_of_nearly_parallel_vectors_are_found() -> None:
    """Some models have such vectors: their cosines differ only in the ninth digit."""
    angles = 1e-5 * np.arange(20)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    neighbours = projections.find_neighbours(vectors.astype(np.float32), 2)
    for number in range(1, 19):
        assert set(neighbours.index[number]) == {number - 1, number + 1}


@pytest.mark.usefixtures("one_thread")  # with several threads, sums differ in their last digit on a busy machine
@pytest.mark.parametrize("n", [10, 15, 16, 40])
@pytest.mark.parametrize("kind", ["random", "pairs", "mostly equal"])
def test_umap_gives_finite_points_and_repeats_them(n: int, kind: str) -> None:
    vectors = np.random.default_rng(n).standard_normal((n, 5)).astype(np.float32)
    if kind == "pairs":
        vectors[1::2] = vectors[: len(vectors[1::2])]
    if kind == "mostly equal":
        vectors[2:] = vectors[2]
    neighbours = projections.find_neighbours(vectors, 14)
    points, again = (projections.project_umap(vectors, neighbours) for _ in range(2))
    assert points is not None
    assert again is not None
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()
    assert np.array_equal(points, again)
    assert len(projections.find_clusters(points)) == n


def test_clusters_are_numbered_by_size() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(centre, 0.05, (n, 2)) for centre, n in ((0, 20), (5, 60), (9, 40))])
    clusters = projections.find_clusters(points)
    parts = (slice(20), slice(20, 80), slice(80, None))
    assert [np.bincount(clusters[part] + 1).argmax() - 1 for part in parts] == [2, 0, 1]


@given(exponent=st.integers(-30, 30), values=st.lists(st.integers(0, 9999), min_size=2, max_size=50, unique=True))
def test_rounded_points_stay_where_they_are_at_any_scale(exponent: int, values: list[int]) -> None:
    xy = np.array([values, values[::-1]], np.float64).T * 10.0**exponent
    trace = map_figure(xy, ("x", "y"), ColourScheme.of("nothing", ["a"] * len(xy)), ticks=True).data[0]
    for rounded, expected in ((trace.x, xy[:, 0]), (trace.y, xy[:, 1])):  # type: ignore[attr-defined]
        assert np.abs(np.array(rounded) - expected).max() <= np.ptp(expected) / 10_000


def test_every_colour_scheme_has_its_own_file_name() -> None:
    names = ["a b", "a-b", "a/b", "../x", "ü" * 300]
    stems = file_stems([ColourScheme.of(name, ["a"]) for name in names])
    assert len(set(stems)) == len(names)
    assert not any("/" in stem or len(stem.encode()) > 200 for stem in stems)
