"""Judgements of people: which windows they have judged for a class, and what they found."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.errors import RequestError
from embedding.labelling.label_tables import LabelTable, read_label_table
from embedding.probing.label_manifest import read_labels
from embedding.probing.labelled_windows import stored_files


@dataclass(frozen=True)
class Judgements:
    """Where people have judged, and what they found.

    Attributes:
        uri: Where they were read.
        source: The labels.
    """

    uri: str
    source: LabelTable

    @classmethod
    def read(cls, uri: str, label_format: str | None, shards: list[str]) -> "Judgements":
        """Read labels as jobs.probe does.

        Args:
            uri: Absolute path, glob pattern or URI.
            label_format: A format of crowsetta; None: the format is recognised.
            shards: URIs of the shards of the output.

        Raises:
            OSError: The storage failed.
            RequestError: They cannot be read, or match no recording.
        """
        try:
            judgements = cls(uri, read_label_table(uri, None, label_format, lambda: stored_files(shards)))
            read_labels(judgements.source, uri, None)  # finds mistakes in the table before the work
        except RequestError as error:
            raise RequestError(str(error).replace("--labels", "--validate", 1)) from error
        return judgements

    @property
    def files(self) -> pa.Array:
        """Names of the judged recordings."""
        return self.source.table["file"].unique()

    def of_class(self, name: str, windows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return which windows are judged for a class, and whether they have it.

        A table of judged clips says something about the class in its rows alone; in other annotations the whole
        recordings were searched for every class that occurs in them.

        Args:
            name: The class.
            windows: ``file``, ``start_time`` and ``end_time``.

        Returns:
            Rows of ``windows``, ``[judged]``, and whether each has the class, ``[judged]``.
        """
        source = self.source
        table = self._rows_about(name) if source.is_review else source.table
        if not len(table):
            return _NOTHING
        own = LabelTable(table, source.column, source.unmatched, source.is_review)
        labels = read_labels(own, self.uri, None).labels
        classes = list(labels.classes)
        if not source.is_review and name not in classes:
            return _NOTHING
        number_of = {file: number for number, file in enumerate(labels.files)}
        numbers = np.array([number_of.get(file, -1) for file in windows["file"].to_pylist()], np.int64)
        rows = np.flatnonzero(numbers >= 0)
        start_s, end_s = (windows[edge].to_numpy()[rows] for edge in ("start_time", "end_time"))
        is_usable = labels.is_usable(numbers[rows], start_s, end_s)
        has_class = np.zeros(len(rows), bool)
        if name in classes:
            has_class = labels.label_windows(numbers[rows], start_s, end_s)[:, classes.index(name)]
        return rows[is_usable], has_class[is_usable]

    def _rows_about(self, name: str) -> pa.Table:
        cells = self.source.table[self.source.column].to_pylist()
        is_own = [name in cell if isinstance(cell, list) else name == str(cell).strip() for cell in cells]
        return self.source.table.filter(pa.array(is_own, pa.bool_()))


_NOTHING = (np.empty(0, np.int64), np.empty(0, bool))
