"""The blocks of README.md run unchanged, except for names of folders and the checkpoint."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, environment, run_embed

README = (ROOT / "README.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_audio(tmp_path / "recordings" / "birds_10s.wav", tone(12.0, 48_000), 48_000)
    write_audio(tmp_path / "call.wav", tone(4.0, 48_000), 48_000)
    return tmp_path


def test_the_first_command_and_the_first_python_block_run(folder: Path, ray_address: str) -> None:
    command = re.search(r"^\$ \.venv/bin/python -m jobs\.embed (.*)$", README, re.MULTILINE)
    assert command is not None
    arguments = [*command[1].split(), "--checkpoint", "random"]
    names = {"--input": "recordings/", "--output": "embeddings/"}
    arguments = [str(folder / word) if word in names.values() else word for word in arguments]
    outcome = run_embed(*arguments, env={"RAY_ADDRESS": ray_address})
    assert outcome.code == 0, outcome.stderr
    assert "done in" in outcome.stdout
    (block, *_) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    block = block.replace("window_s=5)", 'window_s=5, checkpoint="random", quiet=True)')
    env = environment(RAY_ADDRESS=ray_address, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", f"{block}\nassert output.vectors('birds_10s.wav').shape == (3, 768)"],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"start_time +score", done.stdout)


def test_options_that_the_readme_shows_exist() -> None:
    from jobs.embed import make_parser

    known = set(make_parser()._option_string_actions)
    for job in ("pool", "search", "probe", "detect", "evaluate", "cluster", "report", "export"):
        module = __import__(f"jobs.{job}", fromlist=["make_parser"])
        known |= set(module.make_parser()._option_string_actions)
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert shown <= known
