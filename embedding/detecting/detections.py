"""Detections as a derivation: windows to hits, and the hits of a recording to detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.derived.ranks import rank_in_groups
from embedding.detecting.merging import merge_hits
from embedding.detecting.scoring import Scorer
from embedding.output.recordings_table import RECORDINGS_TABLE, WHEN_AND_WHERE
from embedding.schema.vectors import EMBEDDING, finite_matrix

# A window that reaches the threshold of a label.
HITS = pa.schema(
    [
        ("file", pa.string()),
        ("file_id", pa.int64()),
        ("start_time", pa.float64()),
        ("end_time", pa.float64()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("sample_rate", pa.int32()),
    ]
)
# One or more windows of a label: the score is the highest of them, and docs/schema.md explains the columns.
DETECTIONS = pa.schema([*HITS, ("mean_score", pa.float32()), ("windows", pa.int32())])
# As they are stored in the end: with when and where their recordings were made, null where that is unknown.
STORED_DETECTIONS = pa.schema([*DETECTIONS, *(RECORDINGS_TABLE.field(name) for name in WHEN_AND_WHERE)])

_WINDOW_COLUMNS = ("file", "file_id", "start_time", "end_time", "sample_rate")
# Columns of predicted labels, of a run with --predict.
LABELS, SCORES = "labels", "scores"


@dataclass(frozen=True)
class Merging:
    """The rules by which hits become detections.

    Attributes:
        gap_s: Hits of a label merge over gaps of up to so many seconds; negative: hits do not merge.
        top: Keep so many detections of each label in each file, the highest scores; None: keep all.
    """

    gap_s: float
    top: int | None

    def select(self, detections: pa.Table) -> pa.Table:
        """Return the ``top`` detections of each label; ties are in the order of file and start."""
        if self.top is None:
            return detections
        order = [("label", "ascending"), ("score", "descending"), ("file", "ascending"), ("start_time", "ascending")]
        ordered = detections.sort_by(order)  # type: ignore[arg-type]
        label = pc.dictionary_encode(ordered["label"]).combine_chunks().indices.to_numpy()  # type: ignore[attr-defined]
        return ordered.filter(pa.array(rank_in_groups(label) < self.top))

    def detections(self, hits: pa.Table) -> pa.Table:
        """Return the DETECTIONS of HITS, in the order of file, start and label."""
        hits = hits.combine_chunks()
        label = pc.dictionary_encode(hits["label"]).combine_chunks().indices.to_numpy()  # type: ignore[attr-defined]
        merged = merge_hits(
            hits["file_id"].to_numpy(),
            label.astype(np.int64),
            hits["start_time"].to_numpy(),
            hits["end_time"].to_numpy(),
            hits["score"].to_numpy(),
            self.gap_s,
        )
        shared = hits.take(pa.array(merged.first))
        table = pa.table(
            [
                shared["file"],
                shared["file_id"],
                merged.start_s,
                merged.end_s,
                shared["label"],
                merged.highest.astype(np.float32),
                shared["sample_rate"],
                merged.mean.astype(np.float32),
                merged.n_hits.astype(np.int32),
            ],
            schema=DETECTIONS,
        )
        order = [("file", "ascending"), ("start_time", "ascending"), ("label", "ascending")]
        return self.select(table).sort_by(order)  # type: ignore[arg-type]

    def fewest_hits(self, hits: pa.Table) -> pa.Table:
        """Return those hits of a shard that may become detections."""
        return self.select(hits) if self.gap_s < 0 else hits


@dataclass(frozen=True)
class ProbeDetection:
    """The derivation of a probe's detections, see ``derive.Derivation``.

    Attributes:
        scorer: The probe and its thresholds.
        classes: Names of its classes.
        vectors: The column of vectors that the probe scores.
        merging: The rules by which hits become detections.
    """

    scorer: Scorer
    classes: tuple[str, ...]
    vectors: str
    merging: Merging
    participle: str = "scored"

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the shards to read."""
        return [*_WINDOW_COLUMNS, self.vectors]

    def make_partials(self, windows: pa.Table) -> pa.Table:
        """Return the HITS in some windows."""
        vectors = finite_matrix(windows[self.vectors])
        # Without a threshold all windows are hits of all classes: far more than the best of them.
        best = self.merging.top if self.merging.gap_s < 0 else None
        found = self.scorer.find_hits(vectors) if best is None else self.scorer.find_best(vectors, best)
        labels = pa.array(self.classes, pa.string()).take(pa.array(found.label))
        return self.merging.fewest_hits(_make_hits(windows, found.window, labels, found.score))

    def finish(self, partials: pa.Table) -> pa.Table:
        """Return the DETECTIONS of recordings."""
        return self.merging.detections(partials)


@dataclass(frozen=True)
class PredictionDetection:
    """The derivation of detections from the labels that the model itself predicts, of a run with ``--predict``.

    Attributes:
        threshold: Thresholds by label; a label that is not named has ``otherwise``.
        otherwise: Threshold of other labels.
        merging: The rules by which hits become detections.
    """

    threshold: dict[str, float]
    otherwise: float
    merging: Merging
    vectors: str = EMBEDDING
    participle: str = "scored"

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the shards to read."""
        return [*_WINDOW_COLUMNS, LABELS, SCORES]

    def make_partials(self, windows: pa.Table) -> pa.Table:
        """Return the HITS in some windows."""
        labels, scores = windows[LABELS].combine_chunks(), windows[SCORES].combine_chunks()
        if labels.flatten().null_count or not labels.value_lengths().equals(scores.value_lengths()):
            raise pa.ArrowInvalid("predicted labels and their scores do not match")
        window, names, score = labels.value_parent_indices().to_numpy(), labels.flatten(), scores.flatten().to_numpy()
        encoded = pc.dictionary_encode(names)  # type: ignore[attr-defined]
        least = np.array([self.threshold.get(name, self.otherwise) for name in encoded.dictionary.to_pylist()])
        is_hit = score >= least[encoded.indices.to_numpy()] if len(score) else np.empty(0, bool)
        hits = _make_hits(windows, window[is_hit], names.filter(pa.array(is_hit)), score[is_hit])
        return self.merging.fewest_hits(hits)

    def finish(self, partials: pa.Table) -> pa.Table:
        """Return the DETECTIONS of recordings."""
        return self.merging.detections(partials)


def _make_hits(windows: pa.Table, window: NDArray[np.int64], labels: pa.Array, score: NDArray[np.floating]) -> pa.Table:
    rows = windows.select(list(_WINDOW_COLUMNS)).replace_schema_metadata(None).take(pa.array(window))
    hits = rows.append_column("label", labels).append_column("score", pa.array(score.astype(np.float32)))
    return hits.select(HITS.names).cast(HITS)
