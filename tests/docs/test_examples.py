"""The examples run as their first lines describe."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, environment


def run_example(example: str, *arguments: object, ray_address: str) -> str:
    command = [sys.executable, f"examples/{example}", *map(str, arguments)]
    env = environment(RAY_ADDRESS=ray_address, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long  # two minutes, mostly imports; the jobs that the example calls have their own tests
def test_the_example_of_tones_writes_vectors_and_a_picture(ray_address: str, tmp_path: Path) -> None:
    printed = run_example("tones.py", tmp_path, ray_address=ray_address)
    assert printed.count("12 recordings, 1.2 MB") == 1  # the script ran once
    assert "72 windows of 12 clips, vectors of 768 numbers" in printed
    assert np.load(tmp_path / "vectors.npy").shape == (72, 768)
    assert "1760 Hz" in (tmp_path / "umap.html").read_text()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Recordings with the names of a recorder, one of them damaged; or the folder in the variable RECORDINGS."""
    if real := os.environ.get("RECORDINGS"):
        return Path(real)
    folder = tmp_path / "card"
    for hour in range(3):
        write_audio(folder / f"20250503_{hour:02d}1300.WAV", tone(4.0, 48_000, seed=hour), 48_000)
    (folder / "20250503_031300.WAV").write_bytes(b"RIFF")
    return folder


@pytest.mark.long  # a minute with imports; the jobs that the example calls have their own tests
def test_the_example_of_recordings_prints_failures_and_writes_a_page(
    recordings: Path, ray_address: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    printed = run_example("recordings.py", recordings, output, ray_address=ray_address)
    assert "<html" in (output / "page.html").read_text()[:2_000]
    assert "recordings, vectors of 2560 numbers" in printed
    if "RECORDINGS" not in os.environ:
        assert "failed: 20250503_031300.WAV: corrupt" in printed
        assert "20250503_021300.WAV: 2025-05-03 02:13:00" in printed
