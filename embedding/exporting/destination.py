"""A folder that is there as a whole or not at all, and takes the place of nothing but its own former self."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from embedding import storage
from embedding.errors import RequestError, RunError
from embedding.output import json_files
from embedding.output.json_files import ExportRecord

# Says what an export is of; also the sign by which one is known.
NAME = "export.json"


def refuse_others(destination: Path, to: str) -> None:
    """Raises RequestError where something is that is no earlier export to the same format, or has more in it."""
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    try:
        about = json_files.parse(ExportRecord, storage.read_bytes(str(destination / NAME), json_files.MOST_BYTES))
        was, names = about.format, about.names
    except (OSError, json_files.BadRecordError):
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

    An earlier export steps aside and is deleted only once its successor stands. Where the exchange is interrupted, this
    function puts the earlier export back: at once, or at the next export if the process was killed.

    Raises:
        RequestError: another export to there is going on, or something has come to be there that is none.
        RunError: the earlier export could not be put back; the message says where it lies.
        OSError: the storage failed.
    """
    beside = destination.with_name(f"{storage.TEMPORARY_PREFIX}{destination.name}")
    if beside.is_symlink():
        raise RequestError(f"FOLDER: {beside} is a link, and the export would go where it leads: remove it")
    beside.mkdir(parents=True, exist_ok=True)
    lock = FileLock(beside / "lock")  # which its process takes with it, however it ends
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(f"FOLDER: another export to {destination} is going on") from error
    new, former = beside / "new", beside / "former"
    try:
        _put_back(former, destination)
        refuse_others(destination, to)
        for left_behind in (new, former):
            shutil.rmtree(left_behind, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            refuse_others(destination, to)  # the block took its time
            if destination.exists():
                destination.rename(former)
            new.rename(destination)
        finally:
            _put_back(former, destination)
        shutil.rmtree(beside, ignore_errors=True)
    except BaseException:
        if not former.exists():  # else it could not be put back
            shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        lock.release()


def _put_back(former: Path, destination: Path) -> None:
    """Give an export that has stepped aside its place again, unless a successor stands there."""
    if destination.exists() or former.is_symlink() or not former.exists():
        return
    try:
        former.rename(destination)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"the earlier export lies in {former}, move it back to {destination}: {reason}") from error
