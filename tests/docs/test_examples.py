"""The examples, run as their first lines say."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, environment


def run(example: str, *arguments: object, ray_address: str) -> str:
    command = [sys.executable, f"examples/{example}", *map(str, arguments)]
    env = environment(RAY_ADDRESS=ray_address, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tones_become_vectors_pictures_and_files(ray_address: str, tmp_path: Path) -> None:
    said = run("tones.py", tmp_path, ray_address=ray_address)
    assert said.count("12 recordings, 1.2 MB") == 1  # the script ran once
    assert "72 windows of 12 clips, vectors of 768 numbers" in said
    assert np.load(tmp_path / "vectors.npy").shape == (72, 768)
    assert "1760 Hz" in (tmp_path / "umap.html").read_text()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """As from a recorder, one of them damaged; or real ones, where the environment says where some are."""
    if real := os.environ.get("RECORDINGS"):
        return Path(real)
    folder = tmp_path / "card"
    for hour in range(3):
        write_audio(folder / f"20250503_{hour:02d}1300.WAV", tone(4.0, 48_000, seed=hour), 48_000)
    (folder / "20250503_031300.WAV").write_bytes(b"RIFF")
    return folder


# The jobs that it calls have tests of their own; that they are called rightly is a minute with imports.
@pytest.mark.long
def test_a_folder_of_recordings_is_looked_at(recordings: Path, ray_address: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    said = run("recordings.py", recordings, output, ray_address=ray_address)
    assert "<html" in (output / "page.html").read_text()[:2_000]
    assert "recordings, vectors of 2560 numbers" in said
    if "RECORDINGS" not in os.environ:
        assert "failed: 20250503_031300.WAV: corrupt" in said
        assert "20250503_021300.WAV: 2025-05-03 02:13:00" in said
