"""From a folder of recordings and Raven tables of some of them to all calls, compared with what was mixed in."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from jobs import detect, probe, report
from tests.support.calls import (
    FAINT_DB,
    LABELS,
    LOUD_DB,
    MEDIUM_DB,
    Call,
    noise_backgrounds,
    read_backgrounds,
    write_archive,
    write_raven,
)
from tests.support.commands import Outcome, run_job_here
from tests.support.models import EFFICIENTNET

Embed = Callable[..., Outcome]
N_RECORDINGS, SECONDS, N_ANNOTATED = 64, 60.0, 32
WINDOW_S, HOP_S = 2.0, 1.0

pytestmark = pytest.mark.long  # tests/jobs/test_detect.py and test_detect_validate.py test each step on small outputs


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Call]]:
    """Recordings with calls. AVEX_BATCH_RECORDINGS names a folder of real recordings for the background."""
    folder = tmp_path_factory.mktemp("archive")
    real = os.environ.get("AVEX_BATCH_RECORDINGS")
    if real:
        files = [path for path in sorted(Path(real).iterdir()) if path.suffix.lower() in (".wav", ".flac", ".mp3")]
        backgrounds = read_backgrounds(files)
    else:
        backgrounds = noise_backgrounds(5)
    return folder, write_archive(folder, backgrounds, N_RECORDINGS, SECONDS, 12)


@pytest.fixture(scope="module")
def output(
    archive: tuple[Path, list[Call]],
    embed: Embed,
    checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The output after embedding, a probe of the annotated recordings, and detections of all."""
    folder, calls = archive
    root = tmp_path_factory.mktemp("out") / "o"
    files = sorted(str(path) for path in folder.rglob("*.wav"))
    (folder / "sites.csv").write_text("file,site\n" + "".join(f"{f},{Path(f).parent.name}\n" for f in files))
    write_raven(root.parent / "raven", calls, files[::2][:N_ANNOTATED])
    options = ("--model", EFFICIENTNET, "--checkpoint", checkpoints[EFFICIENTNET])
    windows = ("--window-s", WINDOW_S, "--hop-s", HOP_S)
    done = embed("--input", folder / "sites.csv", "--output", root, *options, *windows)
    assert done.code == 0, done.stderr
    done = run_job_here(probe.main, root, "--labels", root.parent / "raven", "--name", "calls")
    assert done.code == 0, done.stderr
    done = run_job_here(
        detect.main, root, "--probe", "calls", "--min-precision", "0.7", "--to", "raven", root.parent / "found"
    )
    assert done.code == 0, done.stderr
    return root


def detections(output: Path) -> list[dict[str, Any]]:
    return duckdb.connect().sql(f"from '{output}/detections/calls/*.parquet'").to_arrow_table().to_pylist()


def find(call: Call, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the detection of a call: of its label, and with its middle inside."""
    middle_s = (call.start_s + call.end_s) / 2
    for row in found:
        if row["file"] == call.file and row["label"] == call.label and row["start_time"] <= middle_s <= row["end_time"]:
            return row
    return None


def unannotated(calls: list[Call], output: Path) -> list[Call]:
    annotated = {path.name for path in (output.parent / "raven").iterdir()}
    return [
        call
        for call in calls
        if f"{Path(call.file).parent.name}-{Path(call.file).stem}.Table.1.selections.txt" not in annotated
    ]


def test_loud_calls_are_found_where_they_are(archive: tuple[Path, list[Call]], output: Path) -> None:
    _, calls = archive
    found, others = detections(output), unannotated(calls, output)
    share = {}
    for level_db in (LOUD_DB, MEDIUM_DB, FAINT_DB):
        own = [call for call in others if call.level_db == level_db]
        share[level_db] = np.mean([find(call, found) is not None for call in own])
    print(f"found of the calls at 20, 10, 0 dB: {[f'{each:.2f}' for each in share.values()]}")  # noqa: T201
    # Of seeded weights, which have learnt nothing: measured 0.89, 0.85 and 0.75 over real recordings (2026-12-01).
    assert share[LOUD_DB] >= 0.8
    assert share[LOUD_DB] >= share[FAINT_DB]
    for call in others:
        row = find(call, found)
        if call.level_db == LOUD_DB and row is not None and row["windows"] <= 3:
            # The windows that share half of the call: the first begins at most a window before it.
            assert call.start_s - WINDOW_S <= row["start_time"] <= call.start_s + HOP_S
            assert call.end_s - HOP_S <= row["end_time"] <= call.end_s + WINDOW_S


def test_few_detections_are_of_no_call(archive: tuple[Path, list[Call]], output: Path) -> None:
    _, calls = archive
    by_place: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        by_place.setdefault((call.file, call.label), []).append(call)
    found = detections(output)
    right = []
    for row in found:
        own = by_place.get((row["file"], row["label"]), [])
        right.append(any(call.start_s < row["end_time"] and row["start_time"] < call.end_s for call in own))
    print(f"{len(found)} detections, of calls: {np.mean(right):.2f}")  # noqa: T201
    assert np.mean(right) >= 0.7


def test_the_tables_for_raven_hold_the_detections(output: Path) -> None:
    rows = []
    for path in (output.parent / "found").rglob("*.txt"):
        with path.open(newline="") as stream:
            rows += list(csv.DictReader(stream, delimiter="\t"))
    assert len(rows) == len(detections(output))


def test_the_number_of_windows_with_calls_lies_in_its_interval(
    archive: tuple[Path, list[Call]], output: Path, tmp_path: Path
) -> None:
    """Judged as somebody would who knows when each call was; windows that share half of a call have it."""
    _, calls = archive
    scores = ("--probe", "calls", "--min-precision", "0.7")
    assert run_job_here(detect.main, output, *scores, "--sample", tmp_path / "sample.csv").code == 0

    def has_call(file: str, start_s: float, end_s: float, label: str) -> bool:
        shared = [
            min(end_s, call.end_s) - max(start_s, call.start_s)
            for call in calls
            if (call.file, call.label) == (file, label)
        ]
        return max(shared, default=-1.0) >= 0.5

    with (tmp_path / "sample.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        is_call = has_call(row["file"], float(row["start_time"]), float(row["end_time"]), row["label"])
        row["verdict"] = "present" if is_call else "absent"
    with (tmp_path / "judged.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    done = run_job_here(detect.main, output, *scores, "--validate", tmp_path / "judged.csv")
    assert done.code == 0, done.stderr
    print(done.stdout)  # noqa: T201
    summary = json.loads((output / "detections" / "calls" / "summary.json").read_text())
    windows = duckdb.connect().sql(f"select file, start_time, end_time from '{output}/embeddings/*.parquet'").fetchall()
    n_held = 0
    for row in summary["classes"]:
        n_true = sum(has_call(file, start_s, end_s, row["label"]) for file, start_s, end_s in windows)
        n_held += row["density"]["windows_with_call_low"] <= n_true <= row["density"]["windows_with_call_high"]
    assert n_held >= len(LABELS) - 1  # an interval of 95 % misses one time in twenty


def test_the_page_shows_activity_density_curves_and_confusions(output: Path, tmp_path: Path) -> None:
    done = run_job_here(report.main, output, "--html", tmp_path / "page.html")
    assert done.code == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    for name in ("activity-by-hour-0", "precision-0", "confusions-0"):
        assert f'id="{name}"' in page
