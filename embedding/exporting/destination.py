"""The folder of an export, which appears when it is complete and replaces only an earlier export to the same format."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from embedding import storage
from embedding.errors import RequestError, RunError
from embedding.output import json_files
from embedding.output.json_files import ExportRecord

# Describes an export; a folder with this file is recognised as an export.
RECORD_NAME = "export.json"


def refuse_other_content(destination: Path, to: str) -> None:
    """Refuse to replace anything but an empty folder or an earlier export to the same format.

    Args:
        destination: The folder of the export.
        to: The format.

    Raises:
        RequestError: The destination has other content, or an earlier export has more files than its own.
    """
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    try:
        content = storage.read_bytes(str(destination / RECORD_NAME), json_files.MOST_BYTES)
        record = json_files.parse(ExportRecord, content)
        found, names = record.format, record.names
    except (OSError, json_files.BadRecordError):
        found, names = None, []
    if found != to:
        raise RequestError(f"FOLDER: {destination} exists and is no earlier export to {to}: choose another folder")
    added = sorted(path.name for path in destination.iterdir() if path.name not in names)
    if added:
        raise RequestError(
            f"FOLDER: {destination} is an earlier export, but {added[0]} in it is not: move it elsewhere, or choose "
            "another folder"
        )


@contextmanager
def replace_folder(destination: Path, to: str) -> Iterator[Path]:
    """Yield a new folder to write into, which becomes ``destination`` when the block ends without an error.

    An earlier export is moved aside, and deleted only after the new folder is in its place. If the exchange is
    interrupted, the earlier export is moved back: at once, or by the next export if the process was killed.

    Args:
        destination: The folder of the export.
        to: The format.

    Raises:
        RequestError: Another export to the folder is in progress, or the folder has other content.
        RunError: The earlier export could not be moved back; the message says where it is.
        OSError: The storage failed.
    """
    staging = destination.with_name(f"{storage.TEMPORARY_PREFIX}{destination.name}")
    if staging.is_symlink():
        raise RequestError(f"FOLDER: {staging} is a link, and the export would go to its target: remove the link")
    staging.mkdir(parents=True, exist_ok=True)
    lock = FileLock(staging / "lock")  # released by the system if this process dies
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(f"FOLDER: another export to {destination} is in progress") from error
    new, former = staging / "new", staging / "former"
    try:
        _move_back(former, destination)
        refuse_other_content(destination, to)
        for remains in (new, former):
            shutil.rmtree(remains, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            refuse_other_content(destination, to)  # again, because the block takes its time
            if destination.exists():
                destination.rename(former)
            new.rename(destination)
        finally:
            _move_back(former, destination)
        shutil.rmtree(staging, ignore_errors=True)
    except BaseException:
        if not former.exists():  # otherwise the earlier export could not be moved back
            shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        lock.release()


def _move_back(former: Path, destination: Path) -> None:
    """Move an earlier export back to its place, unless a new export is there."""
    if destination.exists() or former.is_symlink() or not former.exists():
        return
    try:
        former.rename(destination)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"the earlier export lies in {former}, move it back to {destination}: {reason}") from error
