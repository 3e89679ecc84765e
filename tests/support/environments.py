"""Python environments on top of this one, with packages that this one does not have."""

import subprocess
import sysconfig
import venv
from pathlib import Path


def make_environment(folder: Path, packages: Path) -> Path:
    """Return the Python of a new environment with ``packages``, a requirements file.

    Packages that need other versions than ours are found before ours, which stay as they are.
    """
    venv.create(folder, with_pip=True)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    Path(paths["purelib"], "ours.pth").write_text(sysconfig.get_paths()["purelib"])
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", packages], check=True, timeout=1200)
    return python
