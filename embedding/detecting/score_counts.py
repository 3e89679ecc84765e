"""Counts of the scores of all windows, by hour and by site, and the windows that people have judged, in one pass.

A worker takes some shards and returns one row, so the driver's memory does not depend on the number of windows. For a
sample that is to be judged, the windows with the smallest hashes of each class and fine bin come along.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.derived.ranks import rank_in_groups
from embedding.detecting.density import N_FINE, fine_bin
from embedding.detecting.detections import ProbeDetection
from embedding.output.shard_reading import open_shard
from embedding.output.shard_schema import check_values
from embedding.overview.sample_choice import hash_windows
from embedding.schema.vectors import finite_matrix

UNKNOWN_HOUR = 24
_BATCH_ROWS = 8192
_COLUMNS = ("file", "file_id", "window_index", "start_time", "end_time")
# A window that may be in the sample of a class.
CANDIDATES = pa.schema(
    [
        ("file", pa.string()),
        ("start_time", pa.float64()),
        ("end_time", pa.float64()),
        ("logit", pa.float32()),
        ("class", pa.int64()),
        ("bin", pa.int64()),
        ("hash", pa.uint64()),
    ]
)

# One row for each task: counts as bytes of int64, and a window for each item of the lists.
_TASK_RESULT = pa.schema(
    [
        ("n_shards", pa.int64()),
        ("by_hour", pa.binary()),
        ("by_site", pa.binary()),
        ("file", pa.list_(pa.string())),
        ("start_time", pa.list_(pa.float64())),
        ("end_time", pa.list_(pa.float64())),
        ("logits", pa.binary()),
        ("candidates", pa.list_(pa.struct(list(CANDIDATES)))),
    ]
)


@dataclass(frozen=True)
class Places:
    """When and where recordings were made; arrays ``[recordings]``, sorted by ``file_id``.

    Attributes:
        file_id: Identities of the recordings.
        began: datetime64[s]; NaT where unknown.
        site: Numbers of their sites; the last number is for recordings without one.
        n_sites: Number of sites, with that of recordings without one.
    """

    file_id: NDArray[np.int64]
    began: NDArray[np.datetime64]
    site: NDArray[np.int64]
    n_sites: int

    @classmethod
    def of(cls, recordings: pa.Table, names: Sequence[str]) -> "Places":
        """Return the places in a table of ``recordings_table``.

        Args:
            recordings: The table.
            names: Names of the sites.
        """
        ordered = recordings.sort_by("file_id")
        site = pc.index_in(ordered["site"].combine_chunks(), pa.array(names, pa.string()))  # type: ignore[attr-defined]
        began = ordered["recorded_at"].to_numpy().astype("datetime64[s]")
        return cls(ordered["file_id"].to_numpy(), began, site.fill_null(len(names)).to_numpy(), len(names) + 1)

    def has(self, file_id: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of these recordings are known."""
        if not len(self.file_id):
            return np.zeros(len(file_id), bool)
        return self.file_id[self._row(file_id)] == file_id

    def _row(self, file_id: NDArray[np.int64]) -> NDArray[np.int64]:
        # Not np.isin, which sorts all of its second argument: 17 s for a batch among ten million recordings.
        return np.minimum(np.searchsorted(self.file_id, file_id), len(self.file_id) - 1)

    def hour_and_site(
        self, file_id: NDArray[np.int64], start_s: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return hour of the day and site of windows, ``[windows]`` each; UNKNOWN_HOUR without a time."""
        if not len(self.file_id):
            return np.full(len(file_id), UNKNOWN_HOUR), np.full(len(file_id), self.n_sites - 1)
        row = self._row(file_id)
        is_known = self.file_id[row] == file_id
        time = self.began[row] + start_s.astype("timedelta64[s]")
        hour = (time - time.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.int64)
        is_timed = is_known & ~np.isnat(time)
        return np.where(is_timed, hour, UNKNOWN_HOUR), np.where(is_known, self.site[row], self.n_sites - 1)


@dataclass(frozen=True)
class ScoreCounts:
    """The scores of all windows.

    Attributes:
        by_hour: ``[25, classes, N_FINE]``, windows; the last hour is unknown.
        by_site: ``[sites, classes, N_FINE]``, windows; the last site is unknown.
        windows: ``file``, ``start_time`` and ``end_time`` of the windows of judged recordings.
        logits: ``[windows, classes]``, their scores.
        candidates: A table of CANDIDATES; empty where no sample is drawn.
    """

    by_hour: NDArray[np.int64]
    by_site: NDArray[np.int64]
    windows: pa.Table
    logits: NDArray[np.float32]
    candidates: pa.Table

    @classmethod
    def empty(cls, n_classes: int, n_sites: int) -> "ScoreCounts":
        """Return the counts of no windows."""
        return cls(
            np.zeros((UNKNOWN_HOUR + 1, n_classes, N_FINE), np.int64),
            np.zeros((n_sites, n_classes, N_FINE), np.int64),
            pa.schema([("file", pa.string()), ("start_time", pa.float64()), ("end_time", pa.float64())]).empty_table(),
            np.empty((0, n_classes), np.float32),
            CANDIDATES.empty_table(),
        )

    def plus(self, results: pa.Table, n_sampled: int) -> "ScoreCounts":
        """Return the counts after those of some tasks are added; ``n_sampled`` is that of ``count_scores``."""
        candidates = [self.candidates]
        by_hour, by_site, windows, logits = self.by_hour, self.by_site, [self.windows], [self.logits]
        for row in results.to_pylist():
            by_hour = by_hour + np.frombuffer(row["by_hour"], np.int64).reshape(by_hour.shape)
            by_site = by_site + np.frombuffer(row["by_site"], np.int64).reshape(by_site.shape)
            windows.append(pa.table({name: row[name] for name in self.windows.column_names}, self.windows.schema))
            logits.append(np.frombuffer(row["logits"], np.float32).reshape(-1, self.logits.shape[1]))
            candidates.append(pa.Table.from_pylist(row["candidates"], CANDIDATES))
        chosen = choose_smallest(pa.concat_tables(candidates), n_sampled)
        return ScoreCounts(by_hour, by_site, pa.concat_tables(windows), np.concatenate(logits), chosen)


def choose_smallest(candidates: pa.Table, n: int) -> pa.Table:
    """Return the ``n`` windows with the smallest hashes of each class and bin."""
    if not len(candidates):
        return candidates
    order = [("class", "ascending"), ("bin", "ascending"), ("hash", "ascending")]
    ordered = candidates.sort_by(order)  # type: ignore[arg-type]
    group = ordered["class"].to_numpy() << 32 | ordered["bin"].to_numpy()
    return ordered.filter(pa.array(rank_in_groups(group) < n))


def count_scores(
    shards: pa.Table, detection: ProbeDetection, places: Places, judged: pa.Array, n_sampled: int
) -> pa.Table:
    """Count the scores in some shards: the task of a worker.

    Args:
        shards: A table with the column ``uri``.
        detection: The probe, as it detects.
        places: When and where recordings were made; other recordings are not counted.
        judged: Names of the recordings whose windows are returned.
        n_sampled: Candidates for a sample, of each class and fine bin.

    Raises:
        OSError: The storage failed.
        RequestError: A shard is damaged.
    """
    counts = ScoreCounts.empty(len(detection.classes), places.n_sites)
    found: list[pa.Table] = []
    logits_found: list[NDArray[np.float32]] = []
    candidates, column, scorer = counts.candidates, detection.vectors, detection.scorer
    for uri in shards["uri"].to_pylist():
        with open_shard(uri, vectors=column) as shard:
            for batch in shard.iter_batches(_BATCH_ROWS, columns=[*_COLUMNS, column], use_threads=False):
                rows = pa.table(batch).replace_schema_metadata(None)
                check_values(uri, rows)
                rows = rows.filter(pa.array(places.has(rows["file_id"].to_numpy())))
                logits = scorer.logits(finite_matrix(rows[column]))
                hour, site = places.hour_and_site(rows["file_id"].to_numpy(), rows["start_time"].to_numpy())
                _count(counts.by_hour, hour, logits)
                _count(counts.by_site, site, logits)
                is_judged = pc.is_in(rows["file"], judged)  # type: ignore[attr-defined]
                found.append(rows.filter(is_judged).select(counts.windows.column_names))
                logits_found.append(logits[is_judged.to_numpy()])
                if n_sampled:
                    both = pa.concat_tables([candidates, _candidates(rows, logits, n_sampled)])
                    candidates = choose_smallest(both, n_sampled)
    windows = pa.concat_tables([counts.windows, *found])
    logits = np.concatenate([counts.logits, *logits_found])
    row = {"by_hour": counts.by_hour.tobytes(), "by_site": counts.by_site.tobytes(), "logits": logits.tobytes()}
    row |= {"n_shards": len(shards)} | {name: windows[name].to_pylist() for name in windows.column_names}
    return pa.Table.from_pylist([row | {"candidates": candidates.to_pylist()}], _TASK_RESULT)


def _candidates(rows: pa.Table, logits: NDArray[np.float32], n: int) -> pa.Table:
    """Return the windows with the ``n`` smallest hashes of each class and fine bin."""
    hashes = hash_windows(rows["file_id"].to_numpy(), rows["window_index"].to_numpy())
    by_hash = np.argsort(hashes)
    n_classes = logits.shape[1]
    fine = fine_bin(logits[by_hash])  # [windows, classes]
    group = (np.arange(n_classes) * N_FINE + fine).ravel()
    order = np.argsort(group, kind="stable")  # within a group in the order of the hashes
    kept = order[rank_in_groups(group[order]) < n]
    window, label = by_hash[kept // n_classes], kept % n_classes
    table = rows.select(["file", "start_time", "end_time"]).take(pa.array(window))
    columns = [*table.columns, logits[window, label], label, fine.ravel()[kept], hashes[window]]
    return pa.table(columns, names=CANDIDATES.names).cast(CANDIDATES)


def _count(counts: NDArray[np.int64], group: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
    """Add windows to ``counts``, ``[groups, classes, N_FINE]``."""
    n_classes = logits.shape[1]
    cell = (group[:, None] * n_classes + np.arange(n_classes)) * N_FINE + fine_bin(logits)
    counts += np.bincount(cell.ravel(), minlength=counts.size).reshape(counts.shape)
