"""Outputs and layers compared on labels, as a user compares them."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding.schema.vectors import column
from jobs.evaluate import main
from tests.support.commands import Outcome, run_job_here
from tests.support.probing import (
    SETTINGS,
    SPECIES,
    read_probe,
    run_probe,
    species_of,
    species_vectors,
    write_species_labels,
    write_species_output,
)
from tests.support.shards import add_columns, write_output

Evaluate = Callable[..., Outcome]


@pytest.fixture
def evaluate(one_thread: None) -> Evaluate:
    return partial(run_job_here, main)


def test_outputs_and_layers_stand_in_one_table_the_best_first(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output, other = write_species_output(tmp_path / "one"), tmp_path / "noise"
    rng = np.random.default_rng(1)
    noise = {file: rng.standard_normal(vectors.shape).astype(np.float32) for file, vectors in species_vectors().items()}
    write_output(str(other), noise, SETTINGS | {"model": "noise"})

    def separable(windows: pa.Table) -> dict[str, pa.Array]:
        labels = [SPECIES.index(species_of(file)) for file in windows["file"].to_pylist()]
        return {
            "blocks.3": column(np.eye(3, dtype=np.float32)[labels] + rng.normal(0, 0.1, (len(labels), 3)).astype("f"))
        }

    add_columns(output, separable)
    labels = write_species_labels(tmp_path / "labels.csv")
    table = tmp_path / "figures.csv"
    done = evaluate(
        other, output, "--labels", labels, "--layer", "all", "--csv", table, "--classifier", "logistic", "knn"
    )
    assert (done.code, done.stderr) == (0, "")
    assert "[1] a model · blocks.3" in done.stdout
    with table.open() as stream:
        rows = {(row["model"], row["layer"]): row for row in csv.DictReader(stream)}
    assert list(rows) == [("noise", "embedding"), ("a model", "embedding"), ("a model", "blocks.3")]
    best, worst, middle = rows["a model", "blocks.3"], rows["noise", "embedding"], rows["a model", "embedding"]
    for name in ("logistic_accuracy", "knn_accuracy", "retrieval_auc", "precision_at_5", "clustering_nmi"):
        assert float(best[name]) > 0.99
        assert float(worst[name]) < float(middle[name]) + 0.05
        for row in rows.values():
            assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
    assert abs(float(worst["retrieval_auc"]) - 0.5) < 0.1
    assert run_probe(capsys, output, "--labels", labels).code == 0
    probe = read_probe(output)["metrics"]["windows"]
    assert float(middle["logistic_accuracy"]) == pytest.approx(probe["accuracy"])
    assert float(middle["logistic_map"]) == pytest.approx(probe["mean_average_precision"])
    assert not (other / "probes").exists(), "an evaluation stores nothing in the output"


def test_requests_that_make_no_sense_are_one_line(evaluate: Evaluate, tmp_path: Path) -> None:
    output, labels = write_species_output(tmp_path / "one"), write_species_labels(tmp_path / "labels.csv")
    for arguments, message in {
        ("--labels", labels, "--classifier", "svm"): "'svm' is not one of logistic, knn, mlp",
        ("--labels", labels, "--layer", "blocks.9"): "no vectors of 'blocks.9'",
        ("--labels", labels, "--k", 0): "--k",
        ("--labels", tmp_path / "missing.csv"): "missing.csv",
    }.items():
        done = evaluate(output, *arguments)
        assert done.code == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
