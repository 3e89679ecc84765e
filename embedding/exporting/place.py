"""A folder that is there as a whole or not at all, and takes the place of nothing but its own former self."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from embedding import storage
from embedding.errors import RequestError

# Says what an export is of; also the sign by which one is known.
NAME = "export.json"


def refuse_others(destination: Path, to: str) -> None:
    """Raises RequestError where something is that is no earlier export to the same format, or has more in it."""
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    try:
        about = json.loads((destination / NAME).read_bytes())
        was, names = about["format"], about["names"]
    except (OSError, ValueError, KeyError, TypeError):
        was, names = None, []
    if was != to:
        raise RequestError(f"FOLDER: {destination} is there and no earlier export to {to}: choose another one")
    added = sorted(path.name for path in destination.iterdir() if path.name not in names)
    if added:
        raise RequestError(
            f"FOLDER: {destination} is an earlier export, but {added[0]} in it is not: move it elsewhere, or choose "
            "another folder"
        )


@contextmanager
def taking(destination: Path, to: str) -> Iterator[Path]:
    """A folder beside ``destination`` to write into; when the block has ended well, it takes that place.

    Raises:
        RequestError: another export to there is going on, or something has come to be there that is none.
    """
    beside = destination.with_name(f"{storage.TEMPORARY_PREFIX}{destination.name}")
    beside.mkdir(parents=True, exist_ok=True)
    lock = FileLock(beside / "lock")  # which its process takes with it, however it ends
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(f"FOLDER: another export to {destination} is going on") from error
    new, former = beside / "new", beside / "former"
    try:
        for left_behind in (new, former):
            shutil.rmtree(left_behind, ignore_errors=True)
        new.mkdir()
        yield new
        refuse_others(destination, to)  # the block took its time
        if destination.exists():
            destination.rename(former)
        new.rename(destination)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        lock.release()
