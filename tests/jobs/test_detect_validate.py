"""``jobs.detect --validate`` and ``--sample``: how many windows have a call, from some that people have judged."""

import csv
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.output.recordings_table import RECORDINGS_TABLE
from jobs.detect import main
from tests.support.commands import Outcome, run_job_here
from tests.support.probing import SETTINGS
from tests.support.shards import write_output

Detect = Callable[..., Outcome]

N_RECORDINGS, N_WINDOWS = 24, 500
CLASSES = ("owl", "wren")


@pytest.fixture
def detect(connection: None) -> Detect:
    return partial(run_job_here, main)


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    """For each recording, which windows have an owl and a wren; owls call at site A, and before noon."""
    rng = np.random.default_rng(0)
    return {
        f"/a/{number:02}.wav": np.column_stack(
            [rng.random(N_WINDOWS) < (0.2 if number % 2 else 0.02), rng.random(N_WINDOWS) < 0.05]
        )
        for number in range(N_RECORDINGS)
    }


@pytest.fixture(scope="module")
def output(truth: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows of 5 s whose two numbers are noisy scores of the classes, from two sites."""
    root = tmp_path_factory.mktemp("out") / "o"
    rng = np.random.default_rng(1)
    vectors = {file: rng.normal(np.where(has, 1.0, -3.0), 1.5).astype(np.float32) for file, has in truth.items()}
    write_output(str(root), vectors, SETTINGS, 4)
    (root / "report.json").write_text(json.dumps({"state": "complete"}))
    rows = [
        {"file": file, "file_id": 1000 + number, "site": "B" if number % 2 == 0 else "A"}
        | {"recorded_at": datetime(2025, 5, 3, 6 if number % 2 else 18) + timedelta(days=number)}
        for number, file in enumerate(truth)
    ]
    pq.write_table(pa.Table.from_pylist(rows, RECORDINGS_TABLE), root / "recordings.parquet")
    np.savez(root.parent / "p.npz", weight=np.eye(2), bias=np.zeros(2), classes=np.array(CLASSES))
    return root


def densities(output: Path) -> dict[str, dict[str, Any]]:
    summary = json.loads((output / "detections" / "p" / "summary.json").read_text())
    return {row["label"]: row["density"] for row in summary["classes"] if "density" in row}


def judge(sample: Path, truth: dict[str, np.ndarray], judged: Path) -> int:
    """Judge the windows of a sample as somebody would who always hears right; leave every tenth unsure."""
    with sample.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["verdict"] for row in rows} == {"unsure"}
    for number, row in enumerate(rows):
        has = truth[row["file"]][int(float(row["start_time"]) / 5), CLASSES.index(row["label"])]
        if number % 10:
            row["verdict"] = "present" if has else "absent"
    with judged.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def test_a_judged_sample_tells_how_many_windows_have_a_call(
    detect: Detect, output: Path, truth: dict[str, np.ndarray], tmp_path: Path
) -> None:
    probe = ("--probe", output.parent / "p.npz", "--threshold", 0.9)
    done = detect(output, *probe, "--sample", tmp_path / "sample.csv")
    assert done.code == 0, done.stderr
    n = judge(tmp_path / "sample.csv", truth, tmp_path / "judged.csv")
    assert f"{n} windows to judge" in done.stdout
    assert 100 <= n <= 240  # ten of each class and bin
    done = detect(output, *probe, "--validate", tmp_path / "judged.csv")
    assert done.code == 0, done.stderr
    found = densities(output)
    everything = np.concatenate(list(truth.values()))
    for number, name in enumerate(CLASSES):
        density = found[name]
        assert density["windows"] == N_RECORDINGS * N_WINDOWS
        assert density["density_low"] <= everything[:, number].mean() <= density["density_high"]
        assert density["windows_with_call_high"] < 3 * everything[:, number].sum()
    by_site = found["owl"]["by_site"]
    assert by_site["A"]["density"] > 3 * by_site["B"]["density"]
    by_hour = found["owl"]["by_hour"]
    assert by_hour[6]["windows"] + by_hour[18]["windows"] > 0.3 * len(everything)
    assert by_hour[3] is None or by_hour[3]["windows"] > 0
    assert "windows with a call" in done.stdout


def test_annotated_recordings_are_judgements_too(
    detect: Detect, output: Path, truth: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Label tracks of some recordings: where there is no label there is no call."""
    for file in ("/a/03.wav", "/a/04.wav", "/a/05.wav", "/a/06.wav"):
        lines = [
            f"{5 * row:.6f}\t{5 * row + 5:.6f}\t{name}\n"
            for number, name in enumerate(CLASSES)
            for row in np.flatnonzero(truth[file][:, number])
        ]
        (tmp_path / f"{Path(file).stem}.txt").write_text("".join(lines))
    (tmp_path / "99.txt").write_text("0.000000\t5.000000\towl\n")
    done = detect(output, "--probe", output.parent / "p.npz", "--threshold", 0.9, "--validate", tmp_path)
    assert done.code == 0, done.stderr
    assert "1 annotation of 1 file match no recording of the output" in " ".join(done.stdout.split())
    everything = np.concatenate(list(truth.values()))
    found = densities(output)
    for number, name in enumerate(CLASSES):
        assert found[name]["judged"] == 4 * N_WINDOWS
        assert found[name]["density_low"] <= everything[:, number].mean() <= found[name]["density_high"]


def test_a_condition_restricts_the_windows_that_count(
    detect: Detect, output: Path, truth: dict[str, np.ndarray], tmp_path: Path
) -> None:
    probe = ("--probe", output.parent / "p.npz", "--threshold", 0.9)
    detect(output, *probe, "--sample", tmp_path / "sample.csv")
    judge(tmp_path / "sample.csv", truth, tmp_path / "judged.csv")
    done = detect(
        output, *probe, "--validate", tmp_path / "judged.csv", "--where", "site = 'A'", "--name", "a", "--replace"
    )
    assert done.code == 0, done.stderr
    summary = json.loads((output / "detections" / "a" / "summary.json").read_text())
    assert summary["classes"][0]["density"]["windows"] == N_RECORDINGS * N_WINDOWS / 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,start_time,end_time,label,verdict\n/a/00.wav,0,5,frog,present\n", "judges 5 windows of none of the"),
        ("file,start_time,end_time,label,verdict\n/a/00.wav,0,5,owl,perhaps\n", "--validate: column 'verdict'"),
        ("a,b\n1,2\n", "--validate: "),
    ],
)
def test_labels_that_judge_nothing_are_one_line(
    detect: Detect, output: Path, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "labels.csv").write_text(content)
    done = detect(output, "--probe", output.parent / "p.npz", "--threshold", 0.9, "--validate", tmp_path / "labels.csv")
    assert done.code == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_sample_needs_a_place_and_a_probe(detect: Detect, output: Path, tmp_path: Path) -> None:
    done = detect(output, "--probe", output.parent / "p.npz", "--sample", tmp_path / "none" / "x.csv")
    assert (done.code, "--sample" in done.stderr) == (2, True)
    assert detect(output, "--sample", tmp_path / "x.csv").code == 2
    (tmp_path / "judged.csv").write_text("verdicts")
    done = detect(output, "--probe", output.parent / "p.npz", "--sample", tmp_path / "judged.csv")
    assert (done.code, "may hold verdicts" in done.stderr) == (2, True)
    assert (tmp_path / "judged.csv").read_text() == "verdicts"
