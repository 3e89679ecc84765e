"""Small file systems, and folders without permissions."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system in memory at ``folder``; skip the test if this machine does not allow it.

    Args:
        folder: A path that does not exist.
        size: Size of the file system, like ``10m``.
    """
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not allow root to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def without_privileges() -> Iterator[Path]:
    """Yield a directory in which permissions are effective, even if root runs the test."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as cleanup:
        Path(folder).chmod(0o755)
        if os.geteuid() == 0:
            cleanup.callback(os.seteuid, 0)
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        yield Path(folder)
