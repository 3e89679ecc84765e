"""The windows of the sample: what is known of them, where they lie in the plane, what is near to each."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.overview import projections
from embedding.overview.manifest_columns import Columns
from embedding.overview.point_colours import Colouring, Points, common_folder
from embedding.overview.sample_choice import numbers
from embedding.schema.vectors import matrix

# Of the nearest windows that the page lists.
N_NEAREST = 10


@dataclass(frozen=True)
class Drawn:
    """One row for each window: arrays of shape ``[windows, …]``."""

    points: Points
    colourings: list[Colouring]  # the first is how they are coloured unless another is chosen
    nearest: projections.Nearest
    umap: NDArray[np.floating] | None  # [windows, 2]; None where there is nothing to draw
    pca: NDArray[np.floating]  # [windows, 2]
    explained: NDArray[np.floating]  # share of the variance of each component, [2]
    all_equal: bool


def draw(windows: pa.Table, known: Columns) -> Drawn:
    """Draw a sample from its windows (WINDOW_COLUMNS and ``embedding``, in any order); the same each time."""
    windows = _distinct(windows)
    vectors = matrix(windows["embedding"])
    near = projections.nearest(vectors, max(N_NEAREST, projections.N_NEIGHBOURS - 1))
    plane = projections.umap(vectors, near)
    pca, explained = projections.pca(vectors)
    points = Points.of(windows, known, common_folder(windows["file"].to_pylist()))
    colourings = points.colourings(None if plane is None else projections.clusters(plane))
    return Drawn(points, colourings, near, plane, pca, explained, projections.all_equal(vectors))


def _distinct(windows: pa.Table) -> pa.Table:
    """Return each window once, without windows that are not finite, in the order of their random numbers.

    In this order no folder is drawn over another.
    """
    keys = ["file_id", "window_index"]
    number = numbers(*(windows[key].to_numpy() for key in keys))
    order = np.argsort(number)
    is_new = np.diff(number[order], prepend=~number[order][:1]) != 0
    ordered = windows.take(pa.array(order[is_new]))
    return ordered.filter(pa.array(np.isfinite(matrix(ordered["embedding"])).all(axis=1)))
