"""From recordings and some selection tables to all calls, on an archive whose calls are known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.detect import main as detect_main
from jobs.probe import main as probe_main
from tests.support.annotation_files import raven_table
from tests.support.audio import write_audio
from tests.support.commands import Outcome, run_job_here
from tests.support.models import EFFICIENTNET

RATE_HZ, LENGTH_S, N_RECORDINGS, N_ANNOTATED = 16_000, 20, 30, 22
WINDOW_S, HOP_S = 1.0, 0.5
CALL_S = 1.5
LOUD, FAINT = 0.5, 0.01

Call = tuple[float, float, str, float]  # start, end, label, level


def chirp(label: str) -> np.ndarray:
    """Return a call: a trill of two tones, or clicks."""
    t = np.arange(round(CALL_S * RATE_HZ)) / RATE_HZ
    if label == "clicks":
        return (np.sin(2 * np.pi * 5000 * t) * (t % 0.1 < 0.01)).astype(np.float32)
    trill = np.sin(2 * np.pi * np.where(t % 0.125 < 0.0625, 2000, 3000) * t)
    return (trill * np.hanning(len(t)) ** 0.25).astype(np.float32)


def make_recording(seed: int) -> tuple[np.ndarray, list[Call]]:
    """Return noise with calls at times that no window begins with, and the calls."""
    rng = np.random.default_rng(seed)
    audio = (rng.standard_normal(LENGTH_S * RATE_HZ) * 0.01).astype(np.float32)
    calls = []
    for start_s in np.arange(2.25, LENGTH_S - 4, 6) + rng.uniform(0, 2, 3):
        label, level = ("trill", "clicks")[rng.integers(2)], (LOUD, LOUD, FAINT)[rng.integers(3)]
        at = round(start_s * RATE_HZ)
        call = chirp(label) * level
        audio[at : at + len(call)] += call
        calls.append((at / RATE_HZ, at / RATE_HZ + CALL_S, label, level))
    return audio, calls


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Call]]]:
    folder = tmp_path_factory.mktemp("archive")
    calls = {}
    for seed in range(N_RECORDINGS):
        audio, calls[f"rec{seed:02}"] = make_recording(seed)
        write_audio(folder / "recordings" / f"rec{seed:02}.wav", audio, RATE_HZ)
    for name in list(calls)[:N_ANNOTATED]:
        rows = [(start_s, end_s, label) for start_s, end_s, label, level in calls[name] if level == LOUD]
        raven_table(folder / "raven" / f"{name}.Table.1.selections.txt", *rows, column="Call Type")
    return folder, calls


@pytest.mark.usefixtures("one_thread")
def test_every_loud_call_is_found_where_it_was_mixed_in(
    embed: Callable[..., Outcome], checkpoints: dict[str, Path], archive: tuple[Path, dict[str, list[Call]]]
) -> None:
    folder, calls = archive
    output = folder / "embeddings"
    options = ("--model", EFFICIENTNET, "--checkpoint", checkpoints[EFFICIENTNET])
    windows = ("--window-s", WINDOW_S, "--hop-s", HOP_S)
    done = embed("--input", folder / "recordings", "--output", output, *options, *windows)
    assert done.code == 0, done.stderr
    done = run_job_here(probe_main, output, "--labels", folder / "raven", "--name", "calls")
    assert done.code == 0, done.stderr
    done = run_job_here(
        detect_main, output, "--probe", "calls", "--threshold", 0.3, "--to", "raven", folder / "detected"
    )
    assert done.code == 0, done.stderr
    files = [str(path) for path in (output / "detections" / "calls").glob("*.parquet")]
    found = pq.read_table(files).to_pylist()
    unseen = list(calls)[N_ANNOTATED:]
    missed = [
        (name, call)
        for name in unseen
        for call in calls[name]
        if call[3] == LOUD and not any(matches(row, name, call) for row in found)
    ]
    assert not missed
    assert len(unseen) <= sum(call[3] == LOUD for name in unseen for call in calls[name]), "there are calls"
    false = [row for row in found if not any(matches(row, name, call) for name, own in calls.items() for call in own)]
    assert len(false) <= 0.25 * len(found)
    tables = list((folder / "detected").rglob("*.selections.txt"))
    assert sum(len(table.read_text().splitlines()) - 1 for table in tables) == len(found)


def matches(row: dict[str, Any], name: str, call: Call) -> bool:
    """Return whether a detection has a call's label, and begins and ends within a window of it."""
    start_s, end_s, label, _ = call
    is_near = row["start_time"] <= end_s and row["end_time"] >= start_s and row["start_time"] >= start_s - WINDOW_S
    return Path(row["file"]).stem == name and row["label"] == label and is_near
