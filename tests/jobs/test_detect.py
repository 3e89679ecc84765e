"""Detections of a probe over an output, as a user makes them."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

from embedding.detecting.detection_files import delete_detections
from jobs.detect import main
from local_ray import ray_of
from tests.support.commands import ROOT, Outcome, environment, run_job_here
from tests.support.probing import (
    N_WINDOWS,
    SETTINGS,
    SPECIES,
    read_probe,
    run_probe,
    species_of,
    species_vectors,
    write_manifest,
    write_species_labels,
    write_species_output,
)
from tests.support.shards import write_output

Detect = Callable[..., Outcome]

# A probe of two classes, and vectors of two numbers: the logits of the classes.
WEIGHTS = {"weight": np.eye(2), "bias": np.zeros(2), "classes": np.array(["low", "high, shrill"])}


@pytest.fixture
def detect(connection: None) -> Detect:
    return partial(run_job_here, main)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    np.savez(tmp_path / "weights.npz", **WEIGHTS)  # type: ignore[arg-type]
    return tmp_path / "weights.npz"


def logits(*rows: tuple[float, float]) -> np.ndarray:
    return np.array(rows, np.float32)


def write(folder: Path, recordings: dict[str, np.ndarray], n_shards: int = 3) -> Path:
    write_output(str(folder), recordings, SETTINGS, n_shards)
    return folder


def add_recording(output: Path, file: str, vectors: np.ndarray) -> None:
    """Add a recording in a shard of its own."""
    other = output.parent / "other"
    write_output(str(other), {file: vectors}, SETTINGS, 1)
    table = pq.read_table(other / "embeddings" / "s0.parquet")
    ids = pa.array(np.full(len(table), 5))
    table = table.set_column(table.column_names.index("file_id"), "file_id", ids)
    pq.write_table(table, output / "embeddings" / "new.parquet")


def detections(output: Path, name: str = "weights") -> list[dict[str, Any]]:
    """Return the rows as DuckDB reads them, in order."""
    query = f"from '{output}/detections/{name}/*.parquet' order by file, start_time, label"
    return duckdb.connect().sql(query).to_arrow_table().to_pylist()


def spans(output: Path, name: str = "weights") -> list[tuple[str, float, float, str]]:
    return [(row["file"], row["start_time"], row["end_time"], row["label"]) for row in detections(output, name)]


def test_neighbouring_windows_of_a_label_are_one_detection(detect: Detect, weights: Path, tmp_path: Path) -> None:
    output = write(
        tmp_path / "out",
        {
            "/a/one.wav": logits((2, -9), (1, -9), (-9, 3), (-9, -9), (4, -9)),
            "/a/two.wav": logits((-9, -9), (-9, -9)),
            "/b/Grün.wav": logits((-9, 0.1)),
        },
    )
    done = detect(output, "--probe", weights)
    assert (done.code, done.stderr) == (0, "")
    assert "3 recordings in 3 shards · 0 scored before, 3 to do" in done.stdout
    assert "4 detections of 2 labels" in done.stdout
    first, second, third, fourth = detections(output)
    assert (first["file"], first["start_time"], first["end_time"], first["label"]) == ("/a/one.wav", 0, 10, "low")
    assert first["score"] == pytest.approx(expit(2))
    assert first["mean_score"] == pytest.approx((expit(2) + expit(1)) / 2)
    assert (first["windows"], first["file_id"], first["sample_rate"]) == (2, 1000, 48_000)
    assert (second["start_time"], second["label"]) == (10, "high, shrill")
    assert (third["start_time"], third["end_time"]) == (20, 25)
    assert (fourth["file"], fourth["label"]) == ("/b/Grün.wav", "high, shrill")
    summary = json.loads((output / "detections" / "weights" / "summary.json").read_text())
    assert [(row["label"], row["detections"], row["recordings"]) for row in summary["classes"]] == [
        ("low", 2, 1),
        ("high, shrill", 2, 2),
    ]
    assert not list(output.rglob(".parts/*"))


def test_a_gap_joins_what_lies_on_both_sides(detect: Detect, weights: Path, tmp_path: Path) -> None:
    output = write(tmp_path / "out", {"/a.wav": logits((2, -9), (-9, -9), (2, -9), (-9, -9), (-9, -9), (2, -9))})
    assert detect(output, "--probe", weights, "--merge-gap-s", 5).code == 0
    assert [row[1:3] for row in spans(output)] == [(0, 15), (25, 30)]


def test_thresholds_by_label_come_from_a_file(detect: Detect, weights: Path, tmp_path: Path) -> None:
    output = write(tmp_path / "out", {"/a.wav": logits((1, 1), (-9, -9), (3, 3))})
    thresholds = tmp_path / "thresholds.csv"
    thresholds.write_text('label,threshold\n"high, shrill",0.9\n')
    assert detect(output, "--probe", weights, "--threshold-file", thresholds).code == 0
    assert [(row[1], row[3]) for row in spans(output)] == [(0, "low"), (10, "high, shrill"), (10, "low")]


def test_top_keeps_the_best_windows_of_each_label(detect: Detect, weights: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    recordings = {f"/{number}.wav": rng.standard_normal((9, 2)).astype(np.float32) for number in range(12)}
    output = write(tmp_path / "out", recordings)
    done = detect(output, "--probe", weights, "--top", 5)
    assert (done.code, done.stderr) == (0, "")
    every = [(vectors[at], file, 5.0 * at) for file, vectors in recordings.items() for at in range(9)]
    rows = detections(output)
    for number, label in enumerate(WEIGHTS["classes"]):
        best = sorted(every, key=lambda row: -row[0][number])[:5]
        found = {(row["file"], row["start_time"]) for row in rows if row["label"] == label}
        assert found == {(file, start_s) for _, file, start_s in best}
    # Recordings that come later compete with the earlier ones.
    add_recording(output, "/new.wav", logits((99, -99), (98, -99)))
    assert "12 scored before, 1 to do" in detect(output, "--probe", weights, "--top", 5).stdout
    low = [row for row in detections(output) if row["label"] == "low"]
    assert len(low) == 5
    assert [row["start_time"] for row in low if row["file"] == "/new.wav"] == [0, 5]
    assert len(list((output / "detections" / "weights").glob("*.parquet"))) == 1


def test_new_recordings_alone_are_scored_and_changed_ones_again(detect: Detect, weights: Path, tmp_path: Path) -> None:
    output = write(tmp_path / "out", {"/a.wav": logits((2, -9), (2, -9)), "/b.wav": logits((2, -9))}, 1)
    assert detect(output, "--probe", weights).code == 0
    again = detect(output, "--probe", weights)
    assert "2 scored before, 0 to do" in again.stdout
    assert len(spans(output)) == 2
    # /a.wav has changed, and lost its calls; /c.wav is new.
    write_output(str(output), {"/c.wav": logits((-9, 2)), "/a.wav": logits((-9, -9))}, SETTINGS, 1)
    shard = output / "embeddings" / "s0.parquet"
    table = pq.read_table(shard)
    moved = pa.array([each + 7 for each in table["file_id"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("file_id"), "file_id", moved), shard)
    done = detect(output, "--probe", weights)
    assert "0 scored before, 2 to do" in done.stdout
    assert spans(output) == [("/c.wav", 0, 5, "high, shrill")]


def test_top_finds_the_next_best_when_a_recording_has_changed(detect: Detect, weights: Path, tmp_path: Path) -> None:
    output = write(tmp_path / "out", {"/a.wav": logits((9, -9)), "/b.wav": logits((8, -9))}, 1)
    assert detect(output, "--probe", weights, "--top", 1).code == 0
    assert [row[0] for row in spans(output) if row[3] == "low"] == ["/a.wav"]
    shard = output / "embeddings" / "s0.parquet"
    write_output(str(output), {"/a.wav": logits((1, -9)), "/b.wav": logits((8, -9))}, SETTINGS, 1)
    table = pq.read_table(shard)
    ids = pa.array([5, 1001])  # /a.wav is another version
    pq.write_table(table.set_column(table.column_names.index("file_id"), "file_id", ids), shard)
    assert detect(output, "--probe", weights, "--top", 1).code == 0
    assert [row[0] for row in spans(output) if row[3] == "low"] == ["/b.wav"]


def test_vectors_that_are_not_finite_are_refused_with_their_shard(
    detect: Detect, weights: Path, tmp_path: Path
) -> None:
    output = write(tmp_path / "out", {"/a.wav": logits((np.nan, 1), (1, 1))}, 1)
    done = detect(output, "--probe", weights)
    assert done.code == 2
    assert "s0.parquet is damaged (vectors are not finite)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_replace_leaves_files_of_other_programs(detect: Detect, weights: Path, tmp_path: Path) -> None:
    output = write(tmp_path / "out", {"/a.wav": logits((1, 1))}, 1)
    assert detect(output, "--probe", weights, "--top", 1).code == 0
    mine = output / "detections" / "weights" / "mine.parquet"
    pq.write_table(pa.table({"x": [1]}), mine)
    delete_detections(str(output), "weights")
    assert mine.exists()
    assert not list(mine.parent.rglob("top-*.parquet"))


def test_a_probe_of_this_output_finds_its_species(
    detect: Detect, capsys: pytest.CaptureFixture[str], one_thread: None, tmp_path: Path
) -> None:
    output = write_species_output(tmp_path / "out")
    assert run_probe(capsys, output, "--labels", write_species_labels(tmp_path / "labels.csv")).code == 0
    done = detect(output, "--probe", "label")
    assert (done.code, done.stderr) == (0, "")
    rows = detections(output, "label")
    share = np.mean([row["label"] == species_of(row["file"]) for row in rows])
    assert share > 0.6, "by chance a third"
    assert max(row["windows"] for row in rows) > 1
    calibration = read_probe(output)["calibration"]
    assert calibration["method"] == "temperature"
    assert calibration["classes_fitted"] == list(SPECIES)
    assert sum(each["n"] for each in calibration["after"]["bins"]) == 6 * N_WINDOWS * len(SPECIES)


def test_thresholds_for_a_precision_are_chosen_and_told(
    detect: Detect, capsys: pytest.CaptureFixture[str], one_thread: None, tmp_path: Path
) -> None:
    output = write_species_output(tmp_path / "out")
    files = list(species_vectors())
    rows = [(file, f"{species_of(file)};{'noise' if at % 2 else 'calm'}") for at, file in enumerate(files)]
    assert run_probe(capsys, output, "--labels", write_manifest(tmp_path / "labels.csv", *rows)).code == 0
    done = detect(output, "--probe", "label", "--min-precision", 0.95)
    assert done.code == 0
    assert "left out, as they never reach precision 0.95 in the test: " in done.stdout
    summary = json.loads((output / "detections" / "label" / "summary.json").read_text())
    by_label = {row["label"]: row for row in summary["classes"]}
    assert by_label["blackbird"]["precision_in_test"] >= 0.95
    assert 0 < by_label["blackbird"]["recall_in_test"] <= 1
    out = [row for row in summary["classes"] if row["threshold"] is None]
    assert {row["label"] for row in out} <= {"noise", "calm"}
    assert not {row["label"] for row in detections(output, "label")} & {row["label"] for row in out}
    impossible = detect(output, "--probe", "label", "--min-precision", 0.95, "--threshold", 0.5)
    assert impossible.code == 2


def test_other_settings_need_replace_or_another_name(detect: Detect, weights: Path, tmp_path: Path) -> None:
    output = write(tmp_path / "out", {"/a.wav": logits((0.2, -9), (3, -9))}, 1)
    assert detect(output, "--probe", weights).code == 0
    refused = detect(output, "--probe", weights, "--threshold", 0.9)
    assert refused.code == 2
    assert "another thresholds" in refused.stderr
    assert "--replace" in refused.stderr
    assert len(spans(output)) == 1
    assert detect(output, "--probe", weights, "--threshold", 0.9, "--name", "strict").code == 0
    assert spans(output, "strict") == [("/a.wav", 5, 10, "low")]
    assert detect(output, "--probe", weights, "--threshold", 0.9, "--replace").code == 0
    assert spans(output) == [("/a.wav", 5, 10, "low")]
    assert detect(output, "--probe", weights, "--top", 1, "--replace").code == 0
    assert [row[1:] for row in spans(output)] == [(0, 5, "high, shrill"), (5, 10, "low")]
    assert detect(output, "--probe", weights).code == 2
    assert detect(output, "--probe", weights, "--replace").code == 0
    assert [row[1:] for row in spans(output)] == [(0, 10, "low")]


def test_labels_that_the_model_predicted_become_detections(detect: Detect, tmp_path: Path) -> None:
    output = write(tmp_path / "out", {"/a.wav": logits((0, 0), (0, 0), (0, 0))}, 1)
    shard = output / "embeddings" / "s0.parquet"
    refused = detect(output)
    assert refused.code == 2
    assert "--predict" in refused.stderr
    table = pq.read_table(shard)
    table = table.append_column("labels", pa.array([["wren", "rain"], ["wren"], ["rain", "wren"]]))
    table = table.append_column("scores", pa.array([[0.9, 0.6], [0.7], [0.8, 0.1]], pa.list_(pa.float32())))
    pq.write_table(table, shard)
    assert detect(output).code == 0
    assert [row[1:] for row in spans(output, "predictions")] == [(0, 5, "rain"), (0, 10, "wren"), (10, 15, "rain")]
    assert detect(output, "--min-precision", 0.9, "--name", "x").code == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (WEIGHTS | {"weight": np.ones((2, 3))}, "vectors of 3 numbers, but this output has 2"),
        (WEIGHTS | {"weight": np.ones((3, 2))}, "needs weight [classes, dim]"),
        (WEIGHTS | {"bias": np.array([1, np.nan])}, "no finite number"),
        (WEIGHTS | {"classes": np.array(["a", "a"])}, "each once"),
        (WEIGHTS | {"classes": np.array([1, 2])}, "names in 'classes'"),
        ({"weight": np.eye(2), "bias": np.zeros(2)}, "lacks 'classes'"),
        (WEIGHTS | {"classes": np.array(["a", {}], object)}, "neither numbers nor texts"),
        (WEIGHTS | {"classes": np.array([b"a", b"b"])}, "neither numbers nor texts"),
        (WEIGHTS | {"exclusive": np.array("no")}, "one truth value"),
        (WEIGHTS | {"weight": np.full((2, 2), 1e300)}, "no finite number"),
        (WEIGHTS | {"scale": np.ones(3)}, "needs weight [classes, dim]"),
    ],
)
def test_weights_that_are_none_are_refused_in_one_line(
    detect: Detect, tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    output = write(tmp_path / "out", {"/a.wav": logits((1, 1), (1, 1), (1, 1))})
    np.savez(tmp_path / "bad.npz", **arrays)
    done = detect(output, "--probe", tmp_path / "bad.npz")
    assert done.code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_probe_that_is_not_there_names_those_that_are(
    detect: Detect, capsys: pytest.CaptureFixture[str], one_thread: None, tmp_path: Path
) -> None:
    output = write_species_output(tmp_path / "out")
    none = detect(output, "--probe", "label")
    assert "has no probe 'label': learn one with" in none.stderr
    assert run_probe(capsys, output, "--labels", write_species_labels(tmp_path / "labels.csv")).code == 0
    misspelt = detect(output, "--probe", "lable")
    assert (none.code, misspelt.code) == (2, 2)
    assert "did you mean 'label'?" in misspelt.stderr
    weights = output / "probes" / "label" / "weights.npz"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "is damaged" in detect(output, "--probe", "label").stderr
    assert detect(output, "--probe", "../label").code == 2


def test_detections_are_written_for_other_programs(detect: Detect, weights: Path, tmp_path: Path) -> None:
    output = write(
        tmp_path / "out",
        {
            "/rec/b/20250503_031300.WAV": logits((2, -9), (-9, 3)),
            "/rec/a/one\ttab.wav": logits((-9, -9), (2, -9)),
            "/rec/a/silent.wav": logits((-9, -9)),
        },
    )
    for to in ("raven", "raven-combined", "audacity", "kaleidoscope", "csv"):
        done = detect(output, "--probe", weights, "--to", to, tmp_path / to)
        assert (done.code, done.stderr) == (0, "")
        assert f"3 detections for {to}" in done.stdout
    raven = (tmp_path / "raven" / "b" / "20250503_031300.Table.1.selections.txt").read_text().splitlines()
    assert raven[0].split("\t")[:5] == ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"]
    assert raven[1].split("\t")[3:7] == ["0.000000", "5.000000", "0.000", "24000.000"]
    assert [line.split("\t")[10] for line in raven[1:]] == ["low", "high, shrill"]
    combined = (tmp_path / "raven-combined" / "detections.selections.txt").read_text().splitlines()
    begins = [[float(line.split("\t")[at]) for at in (3, 9)] for line in combined[1:]]
    assert begins == [[5, 5], [15, 0], [20, 5]], "one recording of 10 s and one of 5 s lie before the last"
    assert (tmp_path / "audacity" / "b" / "20250503_031300.txt").read_text().splitlines() == [
        "0.000000\t5.000000\tlow",
        "5.000000\t10.000000\thigh, shrill",
    ]
    kaleidoscope = duckdb.connect().execute(f"from '{tmp_path}/kaleidoscope/detections.csv'").fetchall()
    assert [row[:6] for row in kaleidoscope][-2:] == [
        ("/rec", "b", "20250503_031300.WAV", 0, 0.0, 5.0),
        ("/rec", "b", "20250503_031300.WAV", 0, 5.0, 5.0),
    ]
    birdnet = duckdb.connect().sql(f"from '{tmp_path}/csv/detections.csv'")
    assert birdnet.columns == ["Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File"]
    assert detect(output, "--probe", weights, "--to", "raven", tmp_path / "audacity").code == 2
    assert detect(output, "--probe", weights, "--to", "ravne", tmp_path / "x").code == 2
    assert "did you mean 'raven'" in detect(output, "--probe", weights, "--to", "ravne", tmp_path / "x").stderr


def test_a_run_that_is_killed_is_continued(weights: Path, ray_address: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    recordings = {f"/{number}.wav": rng.standard_normal((7, 2)).astype(np.float32) for number in range(40)}
    output = write(tmp_path / "out", recordings, 12)
    command = [sys.executable, "-m", "jobs.detect", str(output), "--probe", str(weights)]
    env = environment(RAY_ADDRESS=ray_address)
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE) as process:
        folder = output / "detections" / "weights"
        while process.poll() is None and not list(folder.glob("**/*.parquet")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "the job ended before it could be killed"
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = [(row[0], row[1], row[2], row[3]) for row in spans(output)]
    assert len(set(found)) == len(found)
    seconds = sum(end_s - start_s for _, start_s, end_s, _ in found)
    assert seconds == 5 * sum(int((vectors >= 0).sum()) for vectors in recordings.values())


@pytest.mark.long  # a Ray of its own; test_pool.py has an output in S3
def test_s3_holds_detections_like_a_disk(weights: Path, bucket: str) -> None:
    output = f"s3://{bucket}/out"
    write_output(output, {"/a.wav": logits((2, -9), (2, -9)), "/b.wav": logits((-9, 2))}, SETTINGS, 2)
    with ray_of(2) as address:
        for said, more in (
            ("0 scored before, 2 to do", []),
            ("2 scored before, 0 to do", []),
            ("2 detections of 2 labels", ["--top", "1", "--replace"]),
        ):
            command = [sys.executable, "-m", "jobs.detect", output, "--probe", str(weights), *more]
            env = environment(RAY_ADDRESS=address)
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            assert said in done.stdout
