"""Local paths on a cluster: whether every node sees what the driver sees.

A folder of the same name on another machine need not be the same folder. So some recordings are looked for with their
sizes, and the output by the claim that this run has put there.
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
from embedding.output.claim import NAME, read_owner

# Recordings that are looked for: spread over the listing, so that of several mounts each is likely among them.
N_RECORDINGS = 16

ADVICE = (
    "on a cluster recordings and output must lie in S3, or on a file system that every node has mounted under the same "
    "path"
)


@dataclass(frozen=True)
class SharedPaths:
    """Some local ``recordings`` with their sizes in bytes (-1: unknown), and the local ``output`` of run ``run_id``."""

    recordings: tuple[tuple[str, int], ...] = ()
    output: str | None = None
    run_id: str = ""

    @classmethod
    def of(cls, recordings: pa.Table, output: str, run_id: str) -> "SharedPaths":
        """Of a listing, ``sources.RECORDINGS``, as this machine sees it now."""
        at = np.unique(np.linspace(0, len(recordings) - 1, N_RECORDINGS, dtype=np.int64))
        some = recordings.select(["file", "size"]).take(at).to_pylist()
        local = tuple((row["file"], row["size"]) for row in some if not storage.is_s3(row["file"]))
        seen = tuple(each for each in local if _is_there(*each))  # others were removed since, and fail by themselves
        return cls(seen, None if storage.is_s3(output) else output, run_id)

    def missing(self) -> str:
        """What this machine does not see, for a sentence; nothing if all is well."""
        for path, n_bytes in self.recordings:
            if not _is_there(path, n_bytes):
                return f"no such recording as {path} with {n_bytes:,} bytes"
        if self.output is not None:
            owner = read_owner(storage.join(self.output, NAME))
            if owner is None or owner.run_id != self.run_id:
                return f"another {self.output} than the driver's, or none"
            if not os.access(self.output, os.W_OK):
                return f"no right to write to {self.output}"
        return ""

    def check(self) -> None:
        """Once per process, which may be on a node that came after the run had begun.

        Raises:
            RunError: this machine does not see them.
        """
        _check(self)


NOTHING_LOCAL = SharedPaths()


@cache  # of what passes; what raises is looked for again
def _check(paths: SharedPaths) -> None:
    if missing := paths.missing():
        raise RunError(f"node {socket.gethostname()} has {missing}; {ADVICE}")


def refuse_unshared(missing_by_node: list[tuple[str, str]]) -> None:
    """Whether every node sees the paths, from what each of them misses.

    Raises:
        RequestError: some do not; the message names them.
    """
    lacking = [(node, missing) for node, missing in missing_by_node if missing]
    if lacking:
        node, missing = lacking[0]
        others = f" (nor have {len(lacking) - 1} more nodes)" if len(lacking) > 1 else ""
        raise RequestError(f"--input, --output: node {node} has {missing}{others}; {ADVICE}")


def _is_there(path: str, n_bytes: int) -> bool:
    try:
        return n_bytes in (-1, Path(path).stat().st_size)
    except OSError:
        return False
