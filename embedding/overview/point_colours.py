"""Properties and colours of the windows in the sample, for pictures, hover texts and tables."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.overview.manifest_columns import Columns
from embedding.text import clock

# Eight hues of a sequence made to be told apart with any kind of colour vision, on white and on black, and its two
# greys (Petroff 2021, arXiv:2107.02270).
HUES = ("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#92dadd")
OTHERS_COLOUR, UNKNOWN_COLOUR = "#94a4a2", "#717581"
OTHERS, UNKNOWN, NO_CLUSTER = "others", "not known", "no cluster"
# Ways to colour that every output has; a manifest's column of such a name is told apart.
OWN_CHOICES = ("folder", "recording", "cluster")
# A column with more different values is none to colour by.
MOST_CATEGORIES = 50
# Columns of a manifest that hover shows, and how much of each value.
MOST_COLUMNS = 8
VALUE_CHARACTERS = 80

Values = Sequence[str | None]


@dataclass(frozen=True)
class Colouring:
    """Groups of points, the largest first, and of each point the group it is in."""

    name: str
    groups: list[tuple[str, str, int]]  # name, colour, points
    group: NDArray[np.intp]  # [points]
    values: Values  # [points]; of ``others`` each its own

    @classmethod
    def of(cls, name: str, values: Values, unknown: str = UNKNOWN) -> "Colouring":
        """The most frequent values have hues, the rest are ``others``; None is ``unknown``."""
        counts = Counter(value for value in values if value is not None)
        ordered = sorted(counts, key=lambda value: (-counts[value], value))
        n_hues = min(len(HUES), len(ordered))
        of_value = {value: min(at, n_hues) for at, value in enumerate(ordered)}
        group = np.array([n_hues + 1 if value is None else of_value[value] for value in values], np.intp)
        sizes = np.bincount(group, minlength=n_hues + 2)
        n_others = len(ordered) - n_hues
        names = [*ordered[:n_hues], f"{n_others} {OTHERS}", unknown]
        colours = [*HUES[:n_hues], OTHERS_COLOUR, UNKNOWN_COLOUR]
        kept = np.flatnonzero(sizes)
        groups = [(names[at], colours[at], int(sizes[at])) for at in kept]
        return cls(name, groups, np.searchsorted(kept, group), values)

    @property
    def colours(self) -> list[str]:
        """Return the colour of each point."""
        return [self.groups[at][1] for at in self.group]


@dataclass(frozen=True)
class Points:
    """The windows of a sample, one each: lists of length n."""

    root: str  # the folder that all files are below; "" if there is none
    file: list[str]  # without ``root``
    time: list[str]  # within the recording: 0:07.5–0:08.5
    recorded_at: list[str | None]  # when the window began, ISO 8601 without a zone
    columns: dict[str, Values]  # of the manifests, for hover

    @classmethod
    def of(cls, windows: pa.Table, known: Columns, root: str) -> "Points":
        """Return the points of windows (WINDOW_COLUMNS) whose names are shortened by ``root``."""
        files = windows["file"].to_pylist()
        start_s, end_s = windows["start_time"].to_pylist(), windows["end_time"].to_pylist()
        began = {file: known.recorded_at(file) for file in set(files)}
        return cls(
            root,
            [below(root, file) for file in files],
            [f"{clock(start)}–{clock(end)}" for start, end in zip(start_s, end_s, strict=True)],
            [at_time(began[file], start) for file, start in zip(files, start_s, strict=True)],
            {
                f"{name} (manifest)" if name in OWN_CHOICES else name: [value and _short(value) for value in values]
                for name, values in known.values(files).items()
            },
        )

    def colourings(self, clusters: NDArray[np.intp] | None) -> list[Colouring]:
        """Those that tell points apart: folder, columns of the manifest, recording, cluster."""
        folders = [file.partition("/")[0] if "/" in file else "." for file in self.file]
        choices: dict[str, Values] = {"folder": folders, **self.columns, "recording": self.file}
        found = [Colouring.of(name, values) for name, values in choices.items() if _is_categorical(values)]
        if clusters is not None and (clusters >= 0).any():
            of_cluster = [None if at < 0 else f"cluster {at + 1}" for at in clusters]
            found.append(Colouring.of("cluster", of_cluster, NO_CLUSTER))
        return found or [Colouring.of("nothing", ["window"] * len(self.file))]


def common_folder(files: Sequence[str]) -> str:
    """The folder or prefix that all ``files`` lie below, with a slash at its end; "" where there is none."""
    folders = [file.split("/")[:-1] for file in files]
    ends = zip(min(folders, default=[]), max(folders, default=[]), strict=False)  # what these share all share
    return "".join(f"{part}/" for part, _ in takewhile(lambda both: both[0] == both[1], ends))


def below(root: str, file: str) -> str:
    """The name of a file that lies there, and any other's as it is."""
    return file.removeprefix(root)


def _is_categorical(values: Values) -> bool:
    return len(set(values)) > 1 and len(set(values) - {None}) <= MOST_CATEGORIES


def at_time(began: datetime | None, start_s: float) -> str | None:
    """When a window began of a recording that began so."""
    return None if began is None else (began + timedelta(seconds=start_s)).isoformat(" ", "seconds")


def _short(text: str) -> str:
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"
