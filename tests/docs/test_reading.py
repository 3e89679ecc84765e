"""The blocks of docs/reading.md, run over a small output."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.export import main as export
from jobs.probe import main as probe
from tests.support.commands import ROOT, environment
from tests.support.shards import write_output

TEXT = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
# Packages that this environment lacks, with the names of their environments in tests/support/tools.
OTHER_PACKAGES = {"datasets": "datasets", "perch_hoplite": "hoplite"}

DIM = 16
VECTORS = np.random.default_rng(0).standard_normal((24, 3, DIM)).astype(np.float32)
FILES = [f"/archive/{('north', 'south')[number % 2]}/{number}.wav" for number in range(len(VECTORS))]


def tool_of(block: str) -> str | None:
    """Return the environment that a block needs; None: this environment is enough."""
    return next((tool for package, tool in OTHER_PACKAGES.items() if f"from {package}" in block), None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the commands leave in ``/data``."""
    folder = tmp_path_factory.mktemp("data")
    write_output(str(folder / "embeddings"), dict(zip(FILES, VECTORS, strict=True)), {"model": "a model"})
    labels = folder / "species.csv"
    labels.write_text("file,label\n" + "".join(f"{file},{file.split('/')[2]}\n" for file in FILES))
    assert probe([str(folder / "embeddings"), "--labels", str(labels)]) == 0
    for command in COMMANDS:
        if "hoplite" not in command:
            assert export(arguments(command, folder)) == 0
    return folder


def arguments(command: list[str], folder: Path) -> list[str]:
    """Return the arguments of a command for jobs.export, with ``folder`` in the place of ``/data``."""
    assert command[:3] == ["python", "-m", "jobs.export"]
    return [word.replace("/data", str(folder)) for word in command[3:]]


def are_all_vectors(vectors: Any) -> bool:
    """Return whether ``vectors`` are VECTORS, in any order and precision."""
    rows = np.asarray(vectors)
    return sorted(rows.tolist()) == sorted(VECTORS.reshape(-1, DIM).astype(rows.dtype).tolist())


@pytest.mark.parametrize("number", [number for number, block in enumerate(BLOCKS) if not tool_of(block)])
def test_a_block_reads_all_vectors(number: int, data: Path) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[number].replace("/data", str(data)), names)
    assert are_all_vectors(names["vectors"])
    if "nearest" in names:
        assert len(names["nearest"]) == 20
    if "likeliest" in names:
        assert set(names["likeliest"]) == {"north", "south"}


@pytest.mark.long  # installs half a gigabyte
@pytest.mark.parametrize("number", [number for number, block in enumerate(BLOCKS) if tool_of(block)])
def test_a_block_with_another_package_reads_all_vectors(
    number: int, data: Path, python_with: Callable[[str], Path], tmp_path: Path
) -> None:
    tool = tool_of(BLOCKS[number])
    assert tool is not None
    python, env = python_with(tool), environment(PYTHONPATH=str(ROOT), HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    for command in COMMANDS:
        if tool in command:
            subprocess.run([python, *command[1:3], *arguments(command, data)], env=env, cwd=tmp_path, check=True)
    save = f"import numpy; numpy.save({str(tmp_path / 'vectors.npy')!r}, numpy.asarray(vectors))"
    program = BLOCKS[number].replace("/data", str(data)) + save
    subprocess.run([python, "-c", program], env=env, cwd=tmp_path, check=True)
    assert are_all_vectors(np.load(tmp_path / "vectors.npy"))
