"""The sample as it is drawn: details and colours of its windows, their positions in the plane, their neighbours."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.listing.manifest_columns import ManifestColumns
from embedding.overview import projections
from embedding.overview.point_colours import ColourScheme, PointDetails, common_folder
from embedding.overview.sample_choice import hash_windows
from embedding.schema.vectors import matrix

# Neighbours of a window that the page lists.
N_LISTED_NEIGHBOURS = 10


@dataclass(frozen=True)
class DrawnSample:
    """The windows of the sample, in arrays of shape ``[windows, …]``.

    Attributes:
        details: Files, times and columns of manifests.
        colour_schemes: Colour schemes that a user can choose, the default first.
        neighbours: Nearest neighbours of each window.
        umap: Points of the UMAP map, ``[windows, 2]``; None where there is nothing to draw.
        pca: Points of the PCA map, ``[windows, 2]``.
        explained: Share of the variance that each principal component explains, ``[2]``.
        all_equal: All vectors are equal.
    """

    details: PointDetails
    colour_schemes: list[ColourScheme]
    neighbours: projections.Neighbours
    umap: NDArray[np.floating] | None
    pca: NDArray[np.floating]
    explained: NDArray[np.floating]
    all_equal: bool


def project_sample(windows: pa.Table, manifest_columns: ManifestColumns) -> DrawnSample:
    """Project a sample to the plane; the same sample has the same projection each time.

    Args:
        windows: The windows of the sample (WINDOW_COLUMNS and ``embedding``), in any order.
        manifest_columns: Columns of manifests.
    """
    windows = _select_distinct(windows)
    vectors = matrix(windows["embedding"])
    neighbours = projections.find_neighbours(vectors, max(N_LISTED_NEIGHBOURS, projections.N_NEIGHBOURS - 1))
    umap = projections.project_umap(vectors, neighbours)
    pca, explained = projections.project_pca(vectors)
    details = PointDetails.of(windows, manifest_columns, common_folder(windows["file"].to_pylist()))
    schemes = details.colour_schemes(None if umap is None else projections.find_clusters(umap))
    return DrawnSample(details, schemes, neighbours, umap, pca, explained, projections.all_equal(vectors))


def _select_distinct(windows: pa.Table) -> pa.Table:
    """Return each window once, without windows that are not finite, in the order of their hashes.

    In this order no folder is drawn over another.
    """
    hashes = hash_windows(*(windows[key].to_numpy() for key in ("file_id", "window_index")))
    order = np.argsort(hashes)
    is_new = np.diff(hashes[order], prepend=~hashes[order][:1]) != 0
    distinct = windows.take(pa.array(order[is_new]))
    return distinct.filter(pa.array(np.isfinite(matrix(distinct["embedding"])).all(axis=1)))
