"""Judgements of people: which windows they have judged for a class, and what they found."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.errors import RequestError
from embedding.labelling.annotations import PRESENT, UNSURE
from embedding.labelling.label_tables import VERDICT_COLUMN, LabelTable, read_label_table
from embedding.probing.label_manifest import TIME_COLUMNS, read_labels
from embedding.probing.labelled_windows import stored_files


@dataclass(frozen=True)
class Judgements:
    """Judgements, and the place they were read from.

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
        if not self.source.is_review:
            return self._overlaps(self.source.table, name, windows)
        table = self._rows_about(name)
        exact, is_exact = _same_windows(table, windows)
        verdicts = [PRESENT] * len(table)  # of a table that says nothing else
        if VERDICT_COLUMN in table.column_names:
            verdicts = [str(verdict or PRESENT).strip() for verdict in table[VERDICT_COLUMN].to_pylist()]
        has_class = np.array([verdict == PRESENT for verdict in verdicts], bool)
        is_sure = np.array([verdict != UNSURE for verdict in verdicts], bool)
        others, others_have = self._overlaps(table.filter(pa.array(~is_exact)), name, windows)
        rows, first = np.unique(np.concatenate([exact[is_exact & is_sure], others]), return_index=True)
        return rows, np.concatenate([has_class[is_exact & is_sure], others_have])[first]

    def _overlaps(self, table: pa.Table, name: str, windows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the windows that share at least half with a judged stretch, as ``of_class`` does."""
        source = self.source
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


def _same_windows(table: pa.Table, windows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each row of a table the window with the same times, and whether there is one.

    A row that names one of our windows, as those of a sample do, says nothing about the windows that overlap it.
    """
    columns = [pair for pair in TIME_COLUMNS if set(pair) <= set(table.column_names)]
    if not columns:
        return np.full(len(table), -1), np.zeros(len(table), bool)

    def keys(rows: pa.Table, edges: tuple[str, str]) -> list[tuple[str, str, str]]:
        times = [[_milliseconds(value) for value in rows[edge].to_pylist()] for edge in edges]
        return list(zip(rows["file"].to_pylist(), *times, strict=True))

    row_of = {key: row for row, key in enumerate(keys(windows, ("start_time", "end_time")))}
    rows = np.array([row_of.get(key, -1) for key in keys(table, columns[0])], np.int64)
    return rows, rows >= 0


def _milliseconds(value: object) -> str:
    return "" if value is None or not str(value).strip() else f"{float(str(value)):.3f}"


_NOTHING = (np.empty(0, np.int64), np.empty(0, bool))
