"""Linear probes on an output, as a user makes them."""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from embedding.extras import install_command
from embedding.probing.logistic_regression import fit
from embedding.schema.vectors import column
from tests.support.commands import Outcome
from tests.support.probing import (
    N_WINDOWS,
    SETTINGS,
    SPECIES,
    read_predictions,
    read_probe,
    read_split,
    run_probe,
    species_of,
    species_vectors,
    write_manifest,
    write_species_labels,
    write_species_output,
)
from tests.support.shards import add_columns, write_output

Probe = Callable[..., Outcome]


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str], one_thread: None) -> Probe:
    return partial(run_probe, capsys)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return write_species_output(tmp_path / "an output, größer")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write_species_labels(tmp_path / "labels.csv")


def test_stored_weights_predictions_and_metrics_agree_with_each_other_and_with_scikit_learn(
    probe: Probe, output: Path, labels: Path
) -> None:
    done = probe(output, "--labels", labels)
    assert (done.code, done.stderr) == (0, "")
    found, rows = read_probe(output), read_predictions(output)
    assert found["classes"] == list(SPECIES)
    assert found["exclusive"]
    windows = {(row["file"], row["window_index"]): row for row in pq.read_table(output / "embeddings").to_pylist()}
    with np.load(output / "probes" / "label" / "weights.npz") as weights:
        vectors = np.array([windows[row["file"], row["window_index"]]["embedding"] for row in rows])
        scores = vectors @ weights["weight"].T + weights["bias"]
        assert weights["classes"].tolist() == list(SPECIES)
    assert np.allclose(scores, [row["scores"] for row in rows], atol=1e-5)
    truth = np.array([SPECIES.index(row["labels"][0]) for row in rows])
    powers = np.exp(scores)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    metrics = found["metrics"]["windows"]
    assert metrics["accuracy"] == pytest.approx((scores.argmax(axis=1) == truth).mean())
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"))
    by_class = [average_precision_score(truth == at, probabilities[:, at]) for at in range(3)]
    assert metrics["mean_average_precision"] == pytest.approx(np.mean(by_class))
    assert [row["windows"]["average_precision"] for row in found["by_class"]] == pytest.approx(by_class)
    assert metrics["accuracy"] > 0.6 > found["chance"]["windows"]["accuracy"]
    assert found["metrics"]["recordings"]["accuracy"] >= metrics["accuracy"]
    assert found["settings"] == SETTINGS
    assert f"accuracy{metrics['accuracy']:29.3f}" in done.stdout
    assert "RANDOM" not in done.stdout


def test_a_probe_can_learn_from_an_inner_layer(probe: Probe, output: Path, labels: Path) -> None:
    layer = "backbone.encoder.layers.5.fc2"

    def separable_vectors(windows: pa.Table) -> dict[str, pa.Array]:
        labels = [SPECIES.index(species_of(file)) for file in windows["file"].to_pylist()]
        return {layer: column(np.eye(3, dtype=np.float32)[labels] + 2)}

    add_columns(output, separable_vectors)
    done = probe(output, "--labels", labels, "--layer", layer)
    assert (done.code, done.stderr) == (0, "")
    found = read_probe(output, f"label@{layer}")
    assert found["layer"] == layer
    assert found["metrics"]["windows"]["accuracy"] == 1.0
    with np.load(output / "probes" / f"label@{layer}" / "weights.npz") as weights:
        assert weights["weight"].shape == (3, 3)
    assert probe(output, "--labels", labels).code == 0
    assert read_probe(output)["layer"] is None
    assert read_probe(output)["metrics"]["windows"]["accuracy"] < 1.0
    wrong = probe(output, "--labels", labels, "--layer", "backbone.encoder.layers.5.fc1")
    assert wrong.code == 2
    assert f"did you mean {layer!r}?" in wrong.stderr


def test_an_output_without_inner_layers_names_the_option_that_stores_them(
    probe: Probe, output: Path, labels: Path
) -> None:
    done = probe(output, "--labels", labels, "--layer", "embedding")
    assert done.code == 2
    assert "--layer: " in done.stderr
    assert "jobs.embed --layers" in done.stderr


def test_no_recording_is_both_in_train_and_in_test(probe: Probe, output: Path, labels: Path) -> None:
    assert probe(output, "--labels", labels, "--test-share", 0.3).code == 0
    split = read_split(output)
    assert sorted(split) == sorted(species_vectors())
    for name in SPECIES:
        assert sorted(split[file] for file in split if species_of(file) == name) == ["test"] * 3 + ["train"] * 7
    assert {row["file"] for row in read_predictions(output)} == {file for file in split if split[file] == "test"}
    counts = read_probe(output)["split"]
    assert counts["train"] == {"recordings": 21, "windows": 21 * N_WINDOWS, "windows_used": 21 * N_WINDOWS}
    assert counts["test"] == {"recordings": 9, "windows": 9 * N_WINDOWS, "windows_used": 9 * N_WINDOWS}


def test_marks_of_single_recordings_do_not_improve_the_metrics(probe: Probe, tmp_path: Path) -> None:
    """Labels are random, and all windows of a recording are equal: a split by windows would leak every label."""
    rng = np.random.default_rng(1)
    recordings = {f"/{at}.wav": np.tile(rng.standard_normal(256), (4, 1)).astype(np.float32) for at in range(200)}
    label = {file: int(rng.integers(2)) for file in recordings}
    write_output(str(tmp_path), recordings, SETTINGS)
    labels = write_manifest(tmp_path / "labels.csv", *label.items())
    assert probe(tmp_path, "--labels", labels, "--test-share", 0.5).code == 0
    metrics = read_probe(tmp_path)["metrics"]["windows"]
    assert 0.35 < metrics["roc_auc"] < 0.65
    assert 0.35 < metrics["accuracy"] < 0.65
    vectors = np.concatenate(list(recordings.values()))
    truth = np.repeat(np.eye(2, dtype=bool)[list(label.values())], 4, axis=0)
    leaky = fit(vectors[::2].copy(), truth[::2], is_exclusive=True)
    assert (leaky.scores(vectors[1::2]).argmax(axis=1) == truth[1::2].argmax(axis=1)).all()


def test_a_balanced_sample_is_used_of_too_many_windows(probe: Probe, output: Path, tmp_path: Path) -> None:
    files = list(species_vectors())
    names = {file: "rare" if file in files[:2] else "common" for file in files}
    labels = write_manifest(tmp_path / "labels.csv", *names.items())
    done = probe(output, "--labels", labels, "--max-windows", 40)
    assert done.code == 0
    assert "40 of 184 windows for training are used: --max-windows" in done.stdout
    found = {row["class"]: row for row in read_probe(output)["by_class"]}
    assert (found["rare"]["train_windows"], found["common"]["train_windows"]) == (8, 32)
    assert read_probe(output)["split"]["test"]["windows_used"] == len(read_predictions(output)) == 40


def test_repeated_rows_count_once(probe: Probe, output: Path, labels: Path) -> None:
    assert probe(output, "--labels", labels).code == 0
    before = read_probe(output), read_predictions(output)
    shutil.copy(output / "embeddings" / "s0.parquet", output / "embeddings" / "t.parquet")
    (output / "report.json").write_text('{"state": "running"}')
    done = probe(output, "--labels", labels, "--replace")
    assert done.code == 0
    assert "a run of jobs.embed is in progress or has died" in done.stdout
    assert len(read_predictions(output)) == len(before[1])
    assert read_probe(output)["metrics"]["windows"] == pytest.approx(before[0]["metrics"]["windows"])


def test_a_second_probe_of_a_name_is_refused_unless_it_may_replace_the_first(
    probe: Probe, output: Path, labels: Path
) -> None:
    assert probe(output, "--labels", labels, "--name", "twice").code == 0
    before = (output / "probes" / "twice" / "probe.json").read_bytes()
    again = probe(output, "--labels", labels, "--name", "twice", "--seed", "1")
    assert again.code == 2
    assert f"there is a probe 'twice' in {output} already: add --replace" in again.stderr
    assert (output / "probes" / "twice" / "probe.json").read_bytes() == before
    assert probe(output, "--labels", labels, "--name", "twice", "--seed", "1", "--replace").code == 0


def test_a_new_probe_replaces_one_of_other_settings(probe: Probe, output: Path, labels: Path) -> None:
    assert probe(output, "--labels", labels).code == 0
    write_output(str(output), species_vectors(seed=1), SETTINGS | {"checkpoint": "random"})
    done = probe(output, "--labels", labels, "--replace")
    assert done.code == 0
    assert "RANDOM WEIGHTS" in done.stdout
    assert read_probe(output)["settings"]["checkpoint"] == "random"


def test_an_output_and_labels_may_be_in_s3(probe: Probe, bucket: str, tmp_path: Path, s3_api: Any) -> None:
    root = f"s3://{bucket}/an output"
    write_output(root, species_vectors(), SETTINGS)
    labels = write_manifest(tmp_path / "labels.csv", *((file, species_of(file)) for file in species_vectors()))
    s3_api.put_object(Bucket=bucket, Key="labels.csv", Body=labels.read_bytes())
    done = probe(root, "--labels", f"s3://{bucket}/labels.csv")
    assert (done.code, done.stderr) == (0, "")
    keys = [item["Key"] for item in s3_api.list_objects_v2(Bucket=bucket, Prefix="an output/probes/")["Contents"]]
    names = ["predictions.parquet", "probe.json", "split.parquet", "weights.npz"]
    assert keys == [f"an output/probes/label/{name}" for name in names]


def test_a_damaged_shard_is_named_in_one_line(probe: Probe, output: Path, labels: Path) -> None:
    shard = output / "embeddings" / "s1.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    done = probe(output, "--labels", labels)
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {shard} is damaged (")
    assert done.stderr.count("\n") == 1


def test_a_shard_with_vectors_that_are_not_finite_is_named_in_one_line(
    probe: Probe, tmp_path: Path, labels: Path
) -> None:
    vectors = species_vectors()
    next(iter(vectors.values()))[0] = np.nan
    write_output(str(tmp_path / "odd"), vectors, SETTINGS)
    done = probe(tmp_path / "odd", "--labels", labels)
    assert done.code == 2
    shard = tmp_path / "odd" / "embeddings" / "s0.parquet"
    assert done.stderr.startswith(f"avex-batch: {shard} holds vectors that are not finite: delete it and run ")
    assert done.stderr.count("\n") == 1


def test_a_shard_without_the_layer_of_other_shards_is_named(probe: Probe, output: Path, labels: Path) -> None:
    for shard in sorted((output / "embeddings").iterdir())[:2]:
        table = pq.read_table(shard)
        pq.write_table(table.append_column("inner", table["embedding"]), shard)
    done = probe(output, "--labels", labels, "--layer", "inner")
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {output}/embeddings/s2.parquet holds no vectors of 'inner'")
    assert done.stderr.count("\n") == 1


def test_without_scikit_learn_the_command_that_installs_it_is_named(
    probe: Probe, output: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    done = probe(output, "--labels", labels)
    assert (done.code, done.stderr) == (2, f"avex-batch: sklearn is not installed: {install_command('report')}\n")


def test_a_misspelt_option_is_named_before_a_missing_one(probe: Probe, output: Path) -> None:
    done = probe(output, "--label", "labels.csv")
    assert (done.code, done.stderr) == (2, "avex-batch: unknown option --label (did you mean '--labels'?)\n")


def test_messages_name_the_output_as_the_command_line_does(probe: Probe, output: Path, labels: Path) -> None:
    (output / "report.json").write_text("{")
    done = probe(output, "--labels", labels)
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: OUTPUT: cannot read {output}/report.json: ")


def test_an_output_without_embeddings_is_refused(probe: Probe, tmp_path: Path, labels: Path) -> None:
    done = probe(tmp_path / "nothing", "--labels", labels)
    assert done.code == 2
    assert "holds no embeddings: write them with jobs.embed" in done.stderr
