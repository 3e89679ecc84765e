"""The clusters of windows as a derivation: every window with the number of its cluster."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from embedding.clustering.centres import Centres
from embedding.schema.vectors import finite_matrix

# A window, its cluster, and its distance from the nearest centre; docs/schema.md explains the columns.
MEMBERS = pa.schema(
    [
        ("file", pa.string()),
        ("file_id", pa.int64()),
        ("window_index", pa.int32()),
        ("start_time", pa.float64()),
        ("end_time", pa.float64()),
        ("cluster", pa.int32()),
        ("distance", pa.float32()),
    ]
)
_WINDOW_COLUMNS = MEMBERS.names[:5]


@dataclass(frozen=True)
class Assignment:
    """The derivation of clusters, see ``derive.Derivation``.

    Attributes:
        centres: The centres.
        vectors: The column of vectors.
    """

    centres: Centres
    vectors: str
    participle: str = "assigned"

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the shards to read."""
        return [*_WINDOW_COLUMNS, self.vectors]

    def make_partials(self, windows: pa.Table) -> pa.Table:
        """Return the MEMBERS among some windows."""
        cluster, distance = self.centres.assign(finite_matrix(windows[self.vectors]))
        members = windows.select(_WINDOW_COLUMNS).replace_schema_metadata(None)
        return (
            members.append_column("cluster", pa.array(cluster))
            .append_column("distance", pa.array(distance))
            .cast(MEMBERS)
        )

    def finish(self, partials: pa.Table) -> pa.Table:
        """Return the members in the order of file and window."""
        return partials.select(MEMBERS.names).sort_by([("file", "ascending"), ("window_index", "ascending")])
