"""Pooling of an output to one row per recording.

OUTPUT/recordings/POOLING/*.parquet   one row per recording; POOLING@LAYER for vectors of an inner layer
"""

import json
from dataclasses import dataclass

import pyarrow as pa

from embedding import storage
from embedding.cli.terminal import Terminal
from embedding.config import name_at_layer
from embedding.derived.derive import Outcome, derive
from embedding.derived.derived_output import DerivedOutput
from embedding.output.shard_reading import no_embeddings_error
from embedding.output.store import Store
from embedding.pooling.partial_sums import SEQUENCE
from embedding.pooling.partial_tables import SHARD_COLUMNS, make_partials, merge_partials, pool_partials
from embedding.schema.vectors import as_embedding
from embedding.where import choose_recordings

POOLED_FOLDER = "recordings"


@dataclass(frozen=True)
class Pooling:
    """The derivation of pooled rows, see ``derive.Derivation``.

    Attributes:
        poolings: Names of poolings.
        vectors: The column of vectors.
    """

    poolings: tuple[str, ...]
    vectors: str
    participle: str = "pooled"

    @property
    def columns(self) -> list[str]:
        """Columns of the shards to read."""
        return [*SHARD_COLUMNS, self.vectors]

    def make_partials(self, windows: pa.Table) -> pa.Table:
        """Return the partial sums of recordings, or for sequences their windows."""
        return make_partials(as_embedding(windows, self.vectors), self.poolings)

    def finish(self, partials: pa.Table) -> pa.Table:
        """Return the pooled rows."""
        if len(partials["file_id"].unique()) < len(partials):  # of several shards
            partials = merge_partials(partials, self.poolings)
        return pool_partials(partials, self.poolings)


def pool(
    root: str,
    poolings: tuple[str, ...],
    layer: str | None,
    terminal: Terminal,
    *,
    where: str | None = None,
    verbose: bool = False,
) -> Outcome:
    """Pool the vectors of an output; recordings that are pooled already are not pooled again.

    Args:
        root: Directory or prefix of the output.
        poolings: Names of poolings.
        layer: The inner layer whose vectors are pooled; None for the output of the model.
        terminal: Prints progress.
        where: An SQL condition over ``recordings.parquet``; other recordings are not pooled now, and rows of recordings
            that are pooled already stay.
        verbose: Print the log lines of Ray.

    Raises:
        RequestError: There are no embeddings, or none of the layer, or another run holds the pooled output.
        RunError: The storage or the cluster failed; what is stored stays valid.
    """
    store = Store(root, "")
    settings = store.stored_settings()
    if settings is None:
        raise no_embeddings_error(root)
    output = pooled_output(root, poolings, layer, json.dumps(settings, sort_keys=True))
    pooling = Pooling(poolings, store.column_of(layer))
    return derive(root, output, pooling, terminal, chosen=choose_recordings(root, where), verbose=verbose)


def pooled_output(root: str, poolings: tuple[str, ...], layer: str | None, settings: str) -> DerivedOutput:
    """Return the pooled output of some poolings; ``settings`` are those of the vectors, as JSON."""
    folder = storage.child(storage.join(root, POOLED_FOLDER), name_at_layer("+".join(poolings), layer))
    return DerivedOutput(folder, settings, "pool", partials_by_row=poolings == (SEQUENCE,))
