"""Python environments that extend the environment of the tests by further packages."""

import subprocess
import sysconfig
import venv
from pathlib import Path


def make_environment(folder: Path, packages: Path) -> Path:
    """Create an environment, and return its Python.

    Packages of the new environment precede packages of the environment of the tests, which does not change.

    Args:
        folder: Folder of the new environment.
        packages: A requirements file.
    """
    venv.create(folder, with_pip=True)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    Path(paths["purelib"], "environment_of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"])
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", packages], check=True, timeout=1200)
    return python
