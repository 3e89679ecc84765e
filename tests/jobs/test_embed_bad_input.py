"""Damaged and odd files among good recordings: every file ends as vectors or as a failure row."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.audio import tone, write_audio
from tests.support.commands import Outcome
from tests.support.models import EFFICIENTNET

GOOD_S = 2.0


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    good = tone(GOOD_S, 16_000)
    write_audio(folder / "good.wav", good, 16_000)
    (folder / "empty.wav").touch()
    write_audio(folder / "header only.wav", good[:0], 16_000)
    (folder / "text.wav").write_text("site 12, heavy rain, recorder stolen\n" * 20)
    flac = write_audio(folder / "truncated.flac", tone(20.0, 16_000), 16_000).read_bytes()
    (folder / "truncated.flac").write_bytes(flac[: len(flac) // 2])
    wav = write_audio(folder / "truncated.wav", tone(4.0, 16_000), 16_000).read_bytes()
    (folder / "truncated.wav").write_bytes(wav[: 44 + 2 * 16_000 * 3])  # three of four seconds
    bad = tone(3.0, 16_000)
    bad[16_000 * 2 + 7] = np.nan
    write_audio(folder / "nan.wav", bad, 16_000, subtype="FLOAT")
    bad[:] = np.inf
    write_audio(folder / "inf.wav", bad, 16_000, subtype="FLOAT")
    write_audio(folder / "8 bit.wav", good, 16_000, subtype="PCM_U8")
    write_audio(folder / "24 bit.wav", good, 16_000, subtype="PCM_24")
    write_audio(folder / "64 bit float.wav", good, 16_000, subtype="DOUBLE")
    write_audio(folder / "bats 384 kHz.wav", tone(GOOD_S, 384_000), 384_000)
    write_audio(folder / "eight channels.wav", tone(GOOD_S, 16_000, channels=8), 16_000)
    write_audio(folder / "short.wav", good[:1000], 16_000)
    write_audio(folder / "one sample.wav", good[:1], 16_000)
    (folder / "directory.wav").mkdir()
    write_audio(folder / "directory.wav" / "inside.wav", good, 16_000)
    (folder / "gone.wav").symlink_to(folder / "nowhere")
    unreadable = write_audio(folder / "forbidden.wav", good, 16_000)
    unreadable.chmod(0)
    return folder


def test_every_file_ends_as_vectors_or_as_a_failure_row(
    odd_files: Path, embed: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = embed(
        *("--input", odd_files, "--output", tmp_path / "out", "--model", EFFICIENTNET, "--checkpoint", "random"),
        *("--window-s", 1, "--actors", 1, "--max-failure-rate", 0.9),
    )
    assert outcome.code == 0, outcome.stderr
    rows = pq.read_table(tmp_path / "out" / "embeddings").to_pandas()
    failures = pq.read_table(tmp_path / "out" / "failures").to_pandas()
    assert np.isfinite(np.stack(rows["embedding"].to_numpy())).all()

    windows = {Path(file).name: n for file, n in rows.groupby("file").size().items()}  # type: ignore[arg-type]
    kinds = {Path(file).name: kind for file, kind in zip(failures["file"], failures["kind"], strict=True)}
    expected_kinds = {
        "empty.wav": "empty",
        "header only.wav": "empty",
        "text.wav": "corrupt",
        "truncated.flac": "truncated",
        "truncated.wav": "truncated",
        "nan.wav": "nonfinite",
        "inf.wav": "nonfinite",
        "gone.wav": "io",
    }
    expected_windows = {
        "good.wav": 2, "8 bit.wav": 2, "24 bit.wav": 2, "64 bit float.wav": 2, "bats 384 kHz.wav": 2,
        "eight channels.wav": 2, "short.wav": 1, "one sample.wav": 1, "inside.wav": 2, "truncated.wav": 3, "nan.wav": 3,
    }  # fmt: skip
    if os.geteuid() == 0:  # root may read every file
        expected_windows["forbidden.wav"] = 2
    else:
        expected_kinds["forbidden.wav"] = "io"
    n_windows_of_truncated_flac = windows.pop("truncated.flac")
    assert 9 <= n_windows_of_truncated_flac <= 11
    assert windows == expected_windows
    assert kinds == expected_kinds
    assert (failures["message"].str.len() > 10).all()
    assert not failures["message"].str.contains("\n").any()

    counts = rows.groupby("file").agg(n=("file", "size"), n_windows=("n_windows", "max"), last=("end_time", "max"))
    assert (counts["n"] == counts["n_windows"]).all()
    assert counts["last"].to_list() == pytest.approx(rows.groupby("file")["duration"].max().to_list())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["recordings"]["balanced"]
    assert report["recordings"]["failed"] == len(kinds)
    assert f"{len(kinds)} failed: " in outcome.stdout
    assert "truncated 2" in outcome.stdout


def test_a_folder_without_a_good_recording_ends_in_failure_rows_and_code_1(
    embed: Callable[..., Outcome], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty.wav").touch()
    outcome = embed(
        *("--input", tmp_path / "in", "--output", tmp_path / "out", "--model", EFFICIENTNET),
        *("--checkpoint", "random", "--actors", 1),
    )
    assert outcome.code == 1
    assert "0 of 1 recording embedded and saved · 1 failed: " in outcome.stdout
    assert "0 of 1 recordings are embedded and saved; 1 failed: empty.wav (empty)" in outcome.stderr
    assert pq.read_table(tmp_path / "out" / "failures")["kind"].to_pylist() == ["empty"]
