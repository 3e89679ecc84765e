"""Claims of other runs: of a process that has ended, or of another machine."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from embedding import storage
from embedding.output.claim import ClaimHolder

# Identifiers of runs, of the form that runs have.
OURS, THEIRS = "0000000000aa", "0000000000bb"


def leave_claim(root: Path, holder: ClaimHolder, name: str = "claim.json") -> None:
    """Write a claim as a run that died leaves it."""
    storage.write_bytes(str(root / name), json.dumps(asdict(holder)).encode())


def dead_holder(run_id: str = THEIRS) -> ClaimHolder:
    """Return a process that has ended, whose number this process has now."""
    this_process = ClaimHolder.this_process(run_id)
    return replace(this_process, process_start=this_process.process_start - 1)


def remote_holder(**changes: Any) -> ClaimHolder:
    """Return a process of another machine, which cannot be looked up."""
    return replace(ClaimHolder.this_process(THEIRS), machine="another", host="far-away", **changes)
