"""File systems that are small, and folders that are closed."""

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
    """A file system in memory at ``folder``, of ``size`` (like ``10m``); the test is skipped where none can be made."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let even root mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def without_privileges() -> Iterator[Path]:
    """A directory of which the closed parts are closed to this test, even if root runs it."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as later:
        Path(folder).chmod(0o755)
        if os.geteuid() == 0:
            later.callback(os.seteuid, 0)
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        yield Path(folder)
