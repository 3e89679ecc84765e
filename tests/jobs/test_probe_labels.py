"""Labels of probes, as users write them in manifests."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

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
from tests.support.shards import write_output

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


def test_a_recording_may_have_several_labels_in_a_cell_or_a_list(probe: Probe, output: Path, tmp_path: Path) -> None:
    files = list(species_vectors())
    several = [[species_of(file), *(["rain"] if at % 2 else [])] for at, file in enumerate(files)]
    path = write_manifest(
        tmp_path / "labels.csv", *((file, "; ".join(names)) for file, names in zip(files, several, strict=True))
    )
    pq.write_table(pa.table({"file": files, "label": several}), tmp_path / "labels.parquet")
    done = probe(output, "--labels", path)
    assert probe(output, "--labels", tmp_path / "labels.parquet", "--name", "lists").code == done.code == 0
    found = read_probe(output)
    assert found["classes"] == [*SPECIES[:2], "rain", SPECIES[2]]
    assert not found["exclusive"]
    assert found["metrics"] == read_probe(output, "lists")["metrics"]
    assert "accuracy (all labels right)" in done.stdout
    rows = read_predictions(output)
    truth = np.array([[name in row["labels"] for name in found["classes"]] for row in rows])
    scores = np.array([row["scores"] for row in rows])
    assert found["metrics"]["windows"]["accuracy"] == pytest.approx(((scores >= 0) == truth).all(axis=1).mean())
    assert found["metrics"]["windows"]["roc_auc"] == pytest.approx(roc_auc_score(truth, scores))
    rain = found["by_class"][2]
    assert rain["class"] == "rain"
    assert abs(rain["windows"]["roc_auc"] - 0.5) < 0.3 < found["by_class"][0]["windows"]["roc_auc"] - 0.5


@pytest.mark.parametrize("columns", ["file,label,start_time,end_time", "file,label,Begin Time (s),End Time (s)"])
def test_a_label_with_times_holds_for_windows_that_it_overlaps_by_half(
    columns: str, probe: Probe, output: Path, tmp_path: Path
) -> None:
    rows: list[tuple[object, ...]] = []
    for file in species_vectors():
        rows += [
            (file, "call", 4.4, 7.6),  # 0.6 s in the first window, 2.6 of 3.2 s in the second
            (file, "call", 12.5, 26),  # half of the third window, all of the fourth and fifth, 1 s of the sixth
            (file, "click", 34.9, 35.0),  # at the end of the seventh
        ]
    del rows[0:3]
    rows.append((next(iter(species_vectors())), "", "", ""))  # a recording in which nothing was found
    labels = write_manifest(tmp_path / "labels.csv", *rows, columns=columns)
    assert probe(output, "--labels", labels, "--test-share", 0.9).code == 0
    silent = next(iter(species_vectors()))
    assert silent in read_split(output)
    expected = [[], ["call"], ["call"], ["call"], ["call"], [], ["click"], []]
    found = read_predictions(output)
    assert len(found) >= 26 * N_WINDOWS
    for row in found:
        assert row["labels"] == ([] if row["file"] == silent else expected[row["window_index"]])


def test_a_group_is_either_in_train_or_in_test(probe: Probe, output: Path, tmp_path: Path) -> None:
    site = {file: f"site {at % 5}" for at, file in enumerate(species_vectors())}
    rows = [(file, species_of(file), site[file]) for file in site]
    labels = write_manifest(tmp_path / "labels.csv", *rows, columns="file,label,site")
    assert probe(output, "--labels", labels, "--group", "site").code == 0
    split = read_split(output)
    split_of_sites = {(site[file], split[file]) for file in split}
    assert len(split_of_sites) == 5
    assert {name for _, name in split_of_sites} == {"train", "test"}


def test_a_column_of_the_manifest_may_give_the_split(probe: Probe, output: Path, tmp_path: Path) -> None:
    split = {file: ("test", "train", "train", "valid")[at % 4] for at, file in enumerate(species_vectors())}
    rows = [(file, species_of(file), split[file]) for file in split]
    labels = write_manifest(tmp_path / "labels.csv", *rows, columns="file,label,split")
    done = probe(output, "--labels", labels, "--test-share", 0.9)
    assert done.code == 0
    assert read_split(output) == {file: name for file, name in split.items() if name != "valid"}
    assert "left out: 7 rows of the manifest with another split" in done.stdout
    assert read_probe(output)["split"]["of"] == "the manifest"


def test_a_stored_split_used_as_a_manifest_gives_the_same_probe(probe: Probe, output: Path, labels: Path) -> None:
    assert probe(output, "--labels", labels, "--seed", 3).code == 0
    before = read_probe(output)
    stored_split = output / "probes" / "label" / "split.parquet"
    assert probe(output, "--labels", stored_split, "--seed", 4, "--name", "again").code == 0
    assert read_probe(output, "again")["metrics"] == before["metrics"]
    assert probe(output, "--labels", labels, "--replace", "--seed", 4).code == 0
    assert read_split(output) != read_split(output, "again")


def test_a_class_in_train_or_test_alone_is_named_and_left_out_of_the_means(
    probe: Probe, output: Path, tmp_path: Path
) -> None:
    names = {file: species_of(file) for file in species_vectors()}
    first, *_, last = names
    names |= {first: "hoopoe", last: "roller"}
    split = {file: "test" if at % 3 == 0 else "train" for at, file in enumerate(names)} | {last: "train"}
    rows = [(file, names[file], split[file]) for file in names]
    labels = write_manifest(tmp_path / "labels.csv", *rows, columns="file,label,split")
    done = probe(output, "--labels", labels)
    assert done.code == 0
    assert "not learnt (no window for training has the class, or all of them have it): hoopoe" in done.stdout
    reason = "no window for the test has the class, or all of them have it"
    assert f"not measured, and left out of the means ({reason}): roller" in done.stdout
    found = read_probe(output)
    assert found["classes"] == [*SPECIES[:2], "roller", SPECIES[2]]
    by_class = {row["class"]: row["windows"] for row in found["by_class"]}
    for name in ("hoopoe", "roller"):
        assert by_class.pop(name) == {"average_precision": None, "roc_auc": None}
    for name, mean in (("average_precision", "mean_average_precision"), ("roc_auc", "roc_auc")):
        assert found["metrics"]["windows"][mean] == pytest.approx(np.mean([row[name] for row in by_class.values()]))
    wrong = [row for row in read_predictions(output) if row["labels"] == ["hoopoe"]]
    assert len(wrong) == N_WINDOWS
    assert found["metrics"]["windows"]["accuracy"] <= 1 - len(wrong) / len(read_predictions(output))


def test_relative_names_in_a_manifest_count_from_its_folder(probe: Probe, tmp_path: Path) -> None:
    recordings = {f"{tmp_path}/clips{file}": vectors for file, vectors in species_vectors().items()}
    write_output(str(tmp_path / "output"), recordings, SETTINGS)
    labels = write_manifest(
        tmp_path / "labels.csv", *((f"clips{file}", species_of(file)) for file in species_vectors())
    )
    assert probe(tmp_path / "output", "--labels", labels).code == 0
    assert sorted(read_split(tmp_path / "output")) == sorted(recordings)


def test_a_cell_that_is_not_a_number_has_no_label(probe: Probe, output: Path, tmp_path: Path) -> None:
    numbers = [
        float("nan") if at == 0 else float(SPECIES.index(species_of(file))) for at, file in enumerate(species_vectors())
    ]
    pq.write_table(pa.table({"file": list(species_vectors()), "label": numbers}), tmp_path / "labels.parquet")
    done = probe(output, "--labels", tmp_path / "labels.parquet")
    assert (done.code, done.stderr) == (0, "")
    assert read_probe(output)["classes"] == ["0.0", "1.0", "2.0"]
    assert "left out: 1 row of the manifest without a label" in done.stdout


@pytest.mark.parametrize(
    ("manifest", "arguments", "reason"),
    [
        ("file,species\n{0},x\n", (), "--column: manifest {labels} needs one column 'label' (it has: file, species)"),
        ("file,labels\n{0},x\n", (), "--column: manifest {labels} needs one column 'label' (it has: file, labels) ("),
        ("file,label\n", (), "--labels: manifest {labels} has no row with a label to use"),
        ("file,label\na.wav,x\nb.wav,y\n", (), "--labels: none of the 2 recordings in {labels} is stored in {output}"),
        ("file,label\n{0},x\n{1},x\n", (), "--column: the windows for training are all 'x': there is nothing to tell"),
        (
            "file,label\n{0},x\n{1},y\n",
            (),
            "--labels: none of the 2 recordings is left for the test: a class needs two",
        ),
        ("file,label,split\n{0},x,train\n{1},y,train\n{2},z,test\n", (), "--column: nothing can be measured, as none"),
        (
            "file,label,split\n{0},x,Train\n{1},y,\n",
            (),
            "--labels: column 'split' of manifest {labels} has to say 'train' and 'test' (it says: Train, nothing)",
        ),
        ("file,label,split\n{0},x,train\n{1},y,train\n", (), "--labels: column 'split' of manifest {labels} has to "),
        ("file,label,split\n{0},x,train\n{0},x,test\n", (), "--labels: manifest {labels} says 'train' and 'test' for "),
        ("file,label,s\n{0},x,a\n{1},y,\n", ("--group", "s"), "--group: manifest {labels} says nothing for {1}"),
        (
            "file,label,split,s\n{0},x,train,a\n{1},y,test,a\n",
            ("--group", "s"),
            "--group: the manifest's column 'split' puts a into both",
        ),
        ("file,label,start_time\n{0},x,1\n", (), "--labels: manifest {labels} needs both start_time and end_time, ea"),
        ("file,label,start_time,end_time\n{0},x,soon,2\n", (), "--labels: column 'start_time' of manifest {labels} "),
        ("file,label,start_time,end_time\n{0},x,3,2\n", (), "--labels: manifest {labels} has a label of {0} that en"),
        ("file,label\n{0},x\n", ("--test-share", "1"), "--test-share: expected a share between 0 and 1"),
        ("file,label\n{0},x\n", ("--name", "a/b"), "--name: 'a/b' cannot be the name of a folder: choose another name"),
        ("file,label\n{0},x\n", ("--max-windows", "many"), "--max-windows: expected a whole number of at least 2, go"),
        ("file,label\n{0},x\n", ("--colum", "b"), "unknown option --colum (did you mean '--column'?)"),
        ("name;label\n{0};x\n", (), "--labels: manifest {labels} needs one column 'file' (it has: name;label)"),
    ],
)
def test_a_manifest_or_option_that_makes_no_sense_is_refused_in_one_line(
    manifest: str, arguments: tuple[str, ...], reason: str, probe: Probe, output: Path
) -> None:
    files = list(species_vectors())
    labels = output.parent / "labels.csv"
    labels.write_text(manifest.format(*files))
    done = probe(output, "--labels", labels, *arguments)
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {reason.format(*files, labels=labels, output=output)}")
    assert done.stderr.count("\n") == 1
    assert not (output / "probes").exists()
