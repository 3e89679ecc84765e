"""Centres of clusters, and the windows nearest to them. Arrays only.

Vectors are scaled to length 1, so that distances are those of cosines: ``distance² = 2 - 2 cosine``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN, MiniBatchKMeans
from sklearn.decomposition import PCA

from embedding.search.nearest_windows import unit_vectors

Vectors = NDArray[np.float32]

# Number of a window that is near to no cluster.
NOISE = -1
# Dimensions in which HDBSCAN looks for dense regions: in hundreds, all distances are alike.
HDBSCAN_DIMENSIONS = 20
# Share of the windows of a cluster's core that lie within its radius.
RADIUS_SHARE = 0.95
# Passes of mini-batch k-means over the windows.
N_PASSES = 2


@dataclass(frozen=True)
class Centres:
    """Centres of clusters.

    Attributes:
        vectors: ``[clusters, dim]``, of length 1.
        radius: ``[clusters]``, the distance beyond which a window is NOISE; infinite where every window belongs to a
            cluster.
    """

    vectors: Vectors
    radius: Vectors

    def assign(self, vectors: Vectors) -> tuple[NDArray[np.int32], Vectors]:
        """Return the cluster of each window, NOISE for none, and its distance from the nearest centre.

        Args:
            vectors: ``[windows, dim]``, as stored.
        """
        cosines = scale(vectors) @ self.vectors.T
        nearest = cosines.argmax(axis=1)
        distance = np.sqrt(np.maximum(2 - 2 * cosines[np.arange(len(cosines)), nearest], 0)).astype(np.float32)
        return np.where(distance <= self.radius[nearest], nearest, NOISE).astype(np.int32), distance


def scale(vectors: Vectors) -> Vectors:
    """Return vectors scaled to length 1; vectors of zeros stay as they are."""
    return np.nan_to_num(unit_vectors(vectors)).astype(np.float32)


def find_by_kmeans(batches: Callable[[], Iterator[Vectors]], sample: Vectors, k: int, seed: int) -> Centres:
    """Find ``k`` centres by mini-batch k-means (Sculley 2010), from all windows.

    Args:
        batches: Returns all vectors in batches, in the same order each time.
        sample: ``[windows, dim]``, a random sample, from which the first centres are chosen.
        k: Number of clusters.
        seed: Seed of the random numbers.
    """
    start = MiniBatchKMeans(k, random_state=seed, n_init=3).fit(scale(sample)).cluster_centers_  # type: ignore[arg-type]
    model = MiniBatchKMeans(k, random_state=seed, init=start, n_init=1, reassignment_ratio=0)  # type: ignore[arg-type]
    model.partial_fit(scale(sample))  # the first batch has to have as many windows as there are clusters
    for _ in range(N_PASSES):
        for vectors in batches():
            if len(vectors):
                model.partial_fit(scale(vectors))
    centres = scale(np.asarray(model.cluster_centers_, np.float32))
    order = np.lexsort(centres.T[::-1])  # the order of scikit-learn's centres depends on chance alone
    return Centres(centres[order], np.full(k, np.inf, np.float32))


def find_by_hdbscan(sample: Vectors, least: int, seed: int) -> Centres:
    """Find the centres of dense regions (Campello, Moulavi, Sander 2013) in a sample of the windows.

    Args:
        sample: ``[windows, dim]``.
        least: Least number of windows of the sample in a cluster.
        seed: Seed of the random numbers.

    Returns:
        The centres, the largest cluster first; none where there is no dense region.
    """
    units = scale(sample)
    n_dimensions = min(HDBSCAN_DIMENSIONS, *units.shape)
    reduced = PCA(n_dimensions, random_state=seed).fit_transform(units)
    label = HDBSCAN(min_cluster_size=least, copy=True).fit_predict(reduced)  # type: ignore[arg-type] — documented
    centres, radius, sizes = [], [], []
    for number in range(label.max(initial=-1) + 1):
        core = units[label == number]
        centre = scale(core.mean(axis=0, keepdims=True))[0]
        distance = np.sqrt(np.maximum(2 - 2 * core @ centre, 0))
        centres.append(centre)
        radius.append(np.quantile(distance, RADIUS_SHARE))
        sizes.append(len(core))
    order = np.argsort(-np.array(sizes, int), kind="stable")
    vectors = np.array(centres, np.float32).reshape(-1, sample.shape[1])[order]
    return Centres(vectors, np.array(radius, np.float32)[order])
