"""Details and colours of the windows in the sample, for pictures, hover texts and tables."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.listing.manifest_columns import ManifestColumns
from embedding.text import clock

# Eight hues and two greys that people with any kind of colour vision can distinguish, on white and on black
# (Petroff 2021, arXiv:2107.02270).
HUES = ("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#92dadd")
OTHERS_COLOUR, UNKNOWN_COLOUR = "#94a4a2", "#717581"
OTHERS, UNKNOWN, NO_CLUSTER = "others", "not known", "no cluster"
# Colour schemes of every output; a column of a manifest with such a name is renamed.
OWN_SCHEMES = ("folder", "recording", "cluster")
# A column with more distinct values has no colour scheme.
MOST_CATEGORIES = 50
# Columns of a manifest in hover texts, and characters of each value.
MOST_COLUMNS = 8
VALUE_CHARACTERS = 80

Values = Sequence[str | None]


@dataclass(frozen=True)
class ColourScheme:
    """Colours of the points of a map, by the values of a column.

    Attributes:
        name: The name of the column.
        groups: Name, colour and number of points of each group, the largest group first.
        group: Group of each point, ``[points]``.
        values: Value of each point, ``[points]``; in the group of others the values differ.
    """

    name: str
    groups: list[tuple[str, str, int]]
    group: NDArray[np.intp]
    values: Values

    @classmethod
    def of(cls, name: str, values: Values, unknown: str = UNKNOWN) -> "ColourScheme":
        """Give hues to the most frequent values; all other values are one group.

        Args:
            name: The name of the column.
            values: Value of each point; None: not known.
            unknown: Name of the group of points without a value.
        """
        counts = Counter(value for value in values if value is not None)
        ordered = sorted(counts, key=lambda value: (-counts[value], value))
        n_hues = min(len(HUES), len(ordered))
        group_by_value = {value: min(rank, n_hues) for rank, value in enumerate(ordered)}
        group = np.array([n_hues + 1 if value is None else group_by_value[value] for value in values], np.intp)
        sizes = np.bincount(group, minlength=n_hues + 2)
        n_others = len(ordered) - n_hues
        names = [*ordered[:n_hues], f"{n_others} {OTHERS}", unknown]
        colours = [*HUES[:n_hues], OTHERS_COLOUR, UNKNOWN_COLOUR]
        not_empty = np.flatnonzero(sizes)
        groups = [(names[number], colours[number], int(sizes[number])) for number in not_empty]
        return cls(name, groups, np.searchsorted(not_empty, group), values)

    @property
    def colours(self) -> list[str]:
        """The colour of each point."""
        return [self.groups[number][1] for number in self.group]


@dataclass(frozen=True)
class PointDetails:
    """Details of the windows in a sample, in lists of length n.

    Attributes:
        root: The folder of all files, with a slash at its end; "" where there is no common folder.
        file: The recording of each window, without ``root``.
        time: Start and end of each window within its recording: ``0:07.5–0:08.5``.
        recorded_at: Time when each window began, ISO 8601 without a zone.
        columns: Columns of manifests, for hover texts.
    """

    root: str
    file: list[str]
    time: list[str]
    recorded_at: list[str | None]
    columns: dict[str, Values]

    @classmethod
    def of(cls, windows: pa.Table, manifest_columns: ManifestColumns, root: str) -> "PointDetails":
        """Return the details of windows (WINDOW_COLUMNS) whose files are below ``root``."""
        files = windows["file"].to_pylist()
        start_s, end_s = windows["start_time"].to_pylist(), windows["end_time"].to_pylist()
        began = {file: manifest_columns.recorded_at(file) for file in set(files)}
        return cls(
            root,
            [file.removeprefix(root) for file in files],
            [f"{clock(start)}–{clock(end)}" for start, end in zip(start_s, end_s, strict=True)],
            [format_start(began[file], start) for file, start in zip(files, start_s, strict=True)],
            {
                f"{name} (manifest)" if name in OWN_SCHEMES else name: [value and _shorten(value) for value in values]
                for name, values in manifest_columns.values(files).items()
            },
        )

    def colour_schemes(self, clusters: NDArray[np.intp] | None) -> list[ColourScheme]:
        """Return the colour schemes that distinguish points: by folder, columns of manifests, recording and cluster.

        Args:
            clusters: Cluster of each window, -1 for no cluster; None: there are no clusters.
        """
        folders = [file.partition("/")[0] if "/" in file else "." for file in self.file]
        columns: dict[str, Values] = {"folder": folders, **self.columns, "recording": self.file}
        schemes = [ColourScheme.of(name, values) for name, values in columns.items() if _is_categorical(values)]
        if clusters is not None and (clusters >= 0).any():
            names = [None if number < 0 else f"cluster {number + 1}" for number in clusters]
            schemes.append(ColourScheme.of("cluster", names, NO_CLUSTER))
        return schemes or [ColourScheme.of("nothing", ["window"] * len(self.file))]


def common_folder(files: Sequence[str]) -> str:
    """Return the folder or prefix of all ``files``, with a slash at its end; "" where there is no common folder."""
    folders = [file.split("/")[:-1] for file in files]
    # Parts that the first and the last folder in sorted order share are shared by all.
    pairs = zip(min(folders, default=[]), max(folders, default=[]), strict=False)
    return "".join(f"{part}/" for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_categorical(values: Values) -> bool:
    return len(set(values)) > 1 and len(set(values) - {None}) <= MOST_CATEGORIES


def format_start(began: datetime | None, start_s: float) -> str | None:
    """Return the time when a window began.

    Args:
        began: Time when the recording began; None: not known.
        start_s: Start of the window within the recording.
    """
    return None if began is None else (began + timedelta(seconds=start_s)).isoformat(" ", "seconds")


def _shorten(text: str) -> str:
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"
