"""Local paths on a cluster: a check that every node sees what the driver sees.

A folder of the same name on another machine may be another folder. So a node looks for some recordings with their
sizes, and for the claim of this run in the output.
"""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedding import storage
from embedding.errors import RequestError, RunError
from embedding.output.claim import NAME, read_holder
from embedding.text import plural

# Recordings that a node looks for. They are spread over the listing, so that most likely each of several mounts has
# one.
N_RECORDINGS = 16

ADVICE = (
    "on a cluster recordings and output must lie in S3, or on a file system that every node has mounted under the same "
    "path"
)


@dataclass(frozen=True)
class SharedPaths:
    """Local paths that every node has to see.

    Attributes:
        recordings: Some local recordings, each with its size in bytes (-1 where unknown).
        output: The output; None where it is not local.
        run_id: The run that has claimed the output.
    """

    recordings: tuple[tuple[str, int], ...] = ()
    output: str | None = None
    run_id: str = ""

    @classmethod
    def of(cls, recordings: pa.Table, output: str, run_id: str) -> "SharedPaths":
        """Choose some recordings that this machine sees.

        Args:
            recordings: The columns of ``schema.recordings.RECORDINGS``.
            output: Directory or ``s3://`` prefix.
            run_id: The run that has claimed the output.
        """
        rows = np.unique(np.linspace(0, len(recordings) - 1, N_RECORDINGS, dtype=np.int64))
        chosen = recordings.select(["file", "size"]).take(rows).to_pylist()
        local = ((row["file"], row["size"]) for row in chosen if not storage.is_s3(row["file"]))
        # A recording that was removed after the listing is a failure of its own.
        present = tuple((path, n_bytes) for path, n_bytes in local if _exists(path, n_bytes))
        return cls(present, None if storage.is_s3(output) else output, run_id)

    def describe_missing(self) -> str:
        """Return the first path that this machine does not see, as the end of a sentence; empty if it sees all."""
        for path, n_bytes in self.recordings:
            if not _exists(path, n_bytes):
                return f"no such recording as {path} with {n_bytes:,} bytes"
        if self.output is not None:
            holder = read_holder(storage.join(self.output, NAME))
            if holder is None or holder.run_id != self.run_id:
                return f"another {self.output} than the driver's, or none"
            if not os.access(self.output, os.W_OK):
                return f"no right to write to {self.output}"
        return ""

    def check(self) -> None:
        """Check once per process, because its node may have joined after the run began.

        Raises:
            RunError: This machine does not see the paths.
        """
        _check(self)


NOTHING_LOCAL = SharedPaths()


@cache  # caches a check that passes; a check that raises is repeated by the next call
def _check(paths: SharedPaths) -> None:
    if missing := paths.describe_missing():
        raise RunError(f"node {socket.gethostname()} has {missing}; {ADVICE}")


def refuse_unshared(missing_by_node: list[tuple[str, str]]) -> None:
    """Refuse paths that some nodes do not see.

    Args:
        missing_by_node: For each node its host name and what ``SharedPaths.describe_missing`` returned there.

    Raises:
        RequestError: A node does not see the paths; the message names it.
    """
    lacking = [(node, missing) for node, missing in missing_by_node if missing]
    if lacking:
        node, missing = lacking[0]
        others = f" ({plural(len(lacking) - 1, 'more node')} affected)" if len(lacking) > 1 else ""
        raise RequestError(f"--input, --output: node {node} has {missing}{others}; {ADVICE}")


def _exists(path: str, n_bytes: int) -> bool:
    """Return whether there is a file of this size; any size if ``n_bytes`` is -1."""
    try:
        return n_bytes in (-1, Path(path).stat().st_size)
    except OSError:
        return False
