"""Vectors to pictures in the plane, to neighbours and to clusters: arrays in, arrays out, the same each time."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding.overview.sample_choice import SEED

Vectors = NDArray[np.float32]

# UMAP's own defaults; cosine, as in jobs.search.
N_NEIGHBOURS = 15
MIN_DIST = 0.1
# With fewer windows there is no neighbourhood to draw.
LEAST_WINDOWS = 10
# Distances that are in memory at a time.
CHUNK_MB = 64
# Windows that make a cluster: a hundredth of the sample, and at least so many.
LEAST_CLUSTER = 5


@dataclass(frozen=True)
class Nearest:
    """For each of n vectors the k nearest others of them, nearest first: arrays of shape ``[n, k]``."""

    index: NDArray[np.intp]
    cosine: NDArray[np.float64]


def nearest(vectors: Vectors, k: int) -> Nearest:
    """Return the nearest vectors of each vector by cosine, exactly; a vector of zeros has cosine 0 to all others.

    Args:
        vectors: ``[n, dim]``.
        k: number of nearest vectors; fewer where there are fewer than ``k + 1`` vectors.
    """
    from sklearn import config_context  # a second
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(vectors) - 1)
    if k < 1:
        return Nearest(np.empty((len(vectors), 0), np.intp), np.empty((len(vectors), 0)))
    with config_context(working_memory=CHUNK_MB):
        search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(_unit(vectors))
        distance, index = search.kneighbors()
    return Nearest(index, 1 - distance)


def _unit(vectors: Vectors) -> NDArray[np.float64]:
    """``vectors`` of length 1, but those of zeros.

    scikit-learn by itself takes a length below 1e-6 for 0, which seeded weights have. And in float32 the distances of
    nearly parallel vectors, 1 - cosine, are what rounding leaves of them.
    """
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1)


def all_equal(vectors: Vectors) -> bool:
    """Return whether all vectors are the same."""
    return bool((vectors == vectors[:1]).all())


def pca(vectors: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first two principal components, ``[n, 2]``, and the share of the variance that each explains, ``[2]``.

    Without any variance all points are 0, and so are the shares.
    """
    from sklearn.decomposition import PCA

    wide = vectors.astype(np.float64)
    if min(wide.shape) < 2 or all_equal(vectors):
        return np.zeros((len(wide), 2)), np.zeros(2)
    fitted = PCA(2, svd_solver="covariance_eigh").fit(wide)
    return fitted.transform(wide), fitted.explained_variance_ratio_


def umap(vectors: Vectors, near: Nearest) -> NDArray[np.float32] | None:
    """UMAP (McInnes, Healy, Melville 2018), ``[n, 2]``; None of fewer than LEAST_WINDOWS, or of equal ones.

    Args:
        vectors: ``[n, dim]``.
        near: the exact N_NEIGHBOURS - 1 nearest vectors or more; UMAP's own search is approximate and random.
    """
    if len(vectors) < LEAST_WINDOWS or all_equal(vectors):
        return None
    k = min(N_NEIGHBOURS, len(vectors) - 1) - 1
    itself = np.arange(len(vectors))[:, None]
    index = np.concatenate([itself, near.index[:, :k]], axis=1)
    distance = np.concatenate([np.zeros((len(vectors), 1)), 1 - near.cosine[:, :k]], axis=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)  # for a UMAP of another kind
        # Where most vectors are equal; it then begins at random, with the same seed.
        warnings.filterwarnings("ignore", "Spectral initialisation failed", UserWarning)
        # New windows will not be asked for.
        warnings.filterwarnings("ignore", r"precomputed_knn\[2\].*transforming new data", UserWarning)
        from umap import UMAP  # and with it numba: 2 s, and 4 s to compile

        return UMAP(
            n_neighbors=k + 1,
            min_dist=MIN_DIST,
            metric="cosine",
            random_state=SEED,
            n_jobs=1,  # more of them have no order, so no seed
            precomputed_knn=(index, distance.astype(np.float32), None),
        ).fit_transform(_unit(vectors))


def clusters(points: NDArray[np.floating]) -> NDArray[np.intp]:
    """Which cluster each of ``points`` ``[n, 2]`` belongs to: 0 is the largest, -1 is none (HDBSCAN)."""
    from sklearn.cluster import HDBSCAN

    least = max(LEAST_CLUSTER, len(points) // 100)
    found = HDBSCAN(min_cluster_size=least, copy=True).fit_predict(points)  # type: ignore[arg-type] — a bool: the docs
    sizes = np.bincount(found[found >= 0])
    rank = np.empty(len(sizes) + 1, np.intp)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    rank[-1] = -1  # where -1 looks
    return rank[found]
