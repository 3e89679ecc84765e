"""Projections of vectors to the plane, nearest neighbours and clusters: arrays in, arrays out, the same each time."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding.overview.sample_choice import SEED

Vectors = NDArray[np.float32]

# UMAP's own defaults; cosine, as in jobs.search.
N_NEIGHBOURS = 15
MIN_DIST = 0.1
# With fewer windows UMAP has no neighbourhoods to draw.
LEAST_WINDOWS = 10
# Memory for distances, at a time.
CHUNK_MB = 64
# Least size of a cluster, in windows; in large samples the least size is a hundredth of the sample.
LEAST_CLUSTER = 5


@dataclass(frozen=True)
class Neighbours:
    """The k nearest neighbours of each of n vectors, nearest first.

    Attributes:
        index: Positions of the neighbours, ``[n, k]``.
        cosine: Similarities to the neighbours, ``[n, k]``.
    """

    index: NDArray[np.intp]
    cosine: NDArray[np.float64]


def find_neighbours(vectors: Vectors, k: int) -> Neighbours:
    """Return the exact nearest neighbours of each vector by cosine; a vector of zeros has cosine 0 to all others.

    Args:
        vectors: ``[n, dim]``.
        k: Number of neighbours; fewer where there are fewer than ``k + 1`` vectors.
    """
    from sklearn import config_context  # takes a second
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(vectors) - 1)
    if k < 1:
        return Neighbours(np.empty((len(vectors), 0), np.intp), np.empty((len(vectors), 0)))
    with config_context(working_memory=CHUNK_MB):
        search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(_unit(vectors))
        distance, index = search.kneighbors()
    return Neighbours(index, 1 - distance)


def _unit(vectors: Vectors) -> NDArray[np.float64]:
    """Return vectors scaled to length 1; vectors of zeros stay as they are.

    scikit-learn's own scaling takes lengths below 1e-6 for 0; vectors of seeded weights are so short. The result is
    float64, since in float32 the distances of nearly parallel vectors, 1 - cosine, are lost to rounding.
    """
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1)


def all_equal(vectors: Vectors) -> bool:
    """Return whether all vectors are the same."""
    return bool((vectors == vectors[:1]).all())


def project_pca(vectors: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project vectors to their first two principal components.

    Args:
        vectors: ``[n, dim]``.

    Returns:
        The points, ``[n, 2]``, and the share of the variance that each component explains, ``[2]``. Without variance
        both are zero.
    """
    from sklearn.decomposition import PCA

    wide = vectors.astype(np.float64)
    if min(wide.shape) < 2 or all_equal(vectors):
        return np.zeros((len(wide), 2)), np.zeros(2)
    fitted = PCA(2, svd_solver="covariance_eigh").fit(wide)
    return fitted.transform(wide), fitted.explained_variance_ratio_


def project_umap(vectors: Vectors, neighbours: Neighbours) -> NDArray[np.float32] | None:
    """Project vectors to the plane with UMAP (McInnes, Healy, Melville 2018).

    Args:
        vectors: ``[n, dim]``.
        neighbours: The N_NEIGHBOURS - 1 exact neighbours or more; UMAP's own search is approximate and random.

    Returns:
        The points, ``[n, 2]``; None where there are fewer than LEAST_WINDOWS vectors, or all vectors are equal.
    """
    if len(vectors) < LEAST_WINDOWS or all_equal(vectors):
        return None
    k = min(N_NEIGHBOURS, len(vectors) - 1) - 1
    own_index = np.arange(len(vectors))[:, None]
    index = np.concatenate([own_index, neighbours.index[:, :k]], axis=1)
    distance = np.concatenate([np.zeros((len(vectors), 1)), 1 - neighbours.cosine[:, :k]], axis=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)  # for parametric UMAP
        # Where most vectors are equal. UMAP then starts from random points, with the same seed.
        warnings.filterwarnings("ignore", "Spectral initialisation failed", UserWarning)
        # New windows are never added to the projection.
        warnings.filterwarnings("ignore", r"precomputed_knn\[2\].*transforming new data", UserWarning)
        from umap import UMAP  # imports numba: 2 s, and 4 s to compile

        return UMAP(
            n_neighbors=k + 1,
            min_dist=MIN_DIST,
            metric="cosine",
            # The default, spectral, restarts SciPy's eigsh from a random vector without a seed where most vectors are
            # equal: every call gave other points (SciPy 1.17).
            init="pca",
            random_state=SEED,
            n_jobs=1,  # several threads have no order, so a seed would have no effect
            precomputed_knn=(index, distance.astype(np.float32), None),
        ).fit_transform(_unit(vectors))


def find_clusters(points: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the cluster of each point (HDBSCAN): 0 is the largest cluster, -1 means no cluster.

    Args:
        points: ``[n, 2]``.
    """
    from sklearn.cluster import HDBSCAN

    least_size = max(LEAST_CLUSTER, len(points) // 100)
    clustering = HDBSCAN(min_cluster_size=least_size, copy=True)  # type: ignore[arg-type] — the documentation says bool
    label = clustering.fit_predict(points)
    sizes = np.bincount(label[label >= 0])
    rank = np.empty(len(sizes) + 1, np.intp)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    rank[-1] = -1  # -1 is the index of the last element
    return rank[label]
