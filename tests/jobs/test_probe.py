"""A linear probe on an output, as a user makes one."""

import shutil
import sys
from collections.abc import Callable
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
from jobs.probe import main
from tests.support.commands import Outcome
from tests.support.probing import N_WINDOWS, SETTINGS, SPECIES, calls, csv, species, stored
from tests.support.shards import add_columns, write_output

Probe = Callable[..., Outcome]


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str], one_thread: None) -> Probe:
    def run(*arguments: object) -> Outcome:
        code = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("an archive, größer")
    write_output(str(folder), calls(), SETTINGS)
    return folder


@pytest.fixture
def output(archive: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(archive, tmp_path / "output"))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return csv(tmp_path / "labels.csv", *((file, species(file)) for file in calls()))


def predictions(output: Path, name: str = "label") -> list[dict[str, Any]]:
    return pq.read_table(output / "probes" / name / "predictions.parquet").to_pylist()


def sides(output: Path, name: str = "label") -> dict[str, str]:
    rows = pq.read_table(output / "probes" / name / "split.parquet").to_pylist()
    return {row["file"]: row["split"] for row in rows}


def test_what_is_stored_agrees_with_itself_and_with_scikit_learn(probe: Probe, output: Path, labels: Path) -> None:
    done = probe(output, "--labels", labels)
    assert (done.code, done.stderr) == (0, "")
    found, rows = stored(output), predictions(output)
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


def test_an_inner_layer_can_be_what_is_learnt_from(probe: Probe, output: Path, labels: Path) -> None:
    layer = "backbone.encoder.layers.5.fc2"

    def told_apart(windows: pa.Table) -> dict[str, pa.Array]:
        which = [SPECIES.index(species(file)) for file in windows["file"].to_pylist()]
        return {layer: column(np.eye(3, dtype=np.float32)[which] + 2)}

    add_columns(output, told_apart)
    done = probe(output, "--labels", labels, "--layer", layer)
    assert (done.code, done.stderr) == (0, "")
    found = stored(output, f"label@{layer}")
    assert found["layer"] == layer
    assert found["metrics"]["windows"]["accuracy"] == 1.0
    with np.load(output / "probes" / f"label@{layer}" / "weights.npz") as weights:
        assert weights["weight"].shape == (3, 3)
    assert probe(output, "--labels", labels).code == 0
    assert stored(output)["layer"] is None
    assert stored(output)["metrics"]["windows"]["accuracy"] < 1.0
    wrong = probe(output, "--labels", labels, "--layer", "backbone.encoder.layers.5.fc1")
    assert wrong.code == 2
    assert f"did you mean {layer!r}?" in wrong.stderr


def test_an_output_without_inner_layers_says_where_they_come_from(probe: Probe, output: Path, labels: Path) -> None:
    done = probe(output, "--labels", labels, "--layer", "embedding")
    assert done.code == 2
    assert "--layer: " in done.stderr
    assert "jobs.embed --layers" in done.stderr


def test_no_recording_is_on_both_sides(probe: Probe, output: Path, labels: Path) -> None:
    assert probe(output, "--labels", labels, "--test-share", 0.3).code == 0
    side = sides(output)
    assert sorted(side) == sorted(calls())
    for name in SPECIES:
        assert sorted(side[file] for file in side if species(file) == name) == ["test"] * 3 + ["train"] * 7
    assert {row["file"] for row in predictions(output)} == {file for file in side if side[file] == "test"}
    counts = stored(output)["split"]
    assert counts["train"] == {"recordings": 21, "windows": 21 * N_WINDOWS, "windows_used": 21 * N_WINDOWS}
    assert counts["test"] == {"recordings": 9, "windows": 9 * N_WINDOWS, "windows_used": 9 * N_WINDOWS}


def test_a_group_is_on_one_side(probe: Probe, output: Path, tmp_path: Path) -> None:
    site = {file: f"site {at % 5}" for at, file in enumerate(calls())}
    rows = [(file, species(file), site[file]) for file in site]
    labels = csv(tmp_path / "labels.csv", *rows, columns="file,label,site")
    assert probe(output, "--labels", labels, "--group", "site").code == 0
    side = sides(output)
    of_sites = {(site[file], side[file]) for file in side}
    assert len(of_sites) == 5
    assert {each for _, each in of_sites} == {"train", "test"}


def test_what_only_marks_a_recording_is_worth_nothing(probe: Probe, tmp_path: Path) -> None:
    """Labels drawn by lot, and windows of a recording all alike: split by windows, the probe would know every one."""
    rng = np.random.default_rng(1)
    recordings = {f"/{at}.wav": np.tile(rng.standard_normal(256), (4, 1)).astype(np.float32) for at in range(200)}
    label = {file: int(rng.integers(2)) for file in recordings}
    write_output(str(tmp_path), recordings, SETTINGS)
    labels = csv(tmp_path / "labels.csv", *label.items())
    assert probe(tmp_path, "--labels", labels, "--test-share", 0.5).code == 0
    metrics = stored(tmp_path)["metrics"]["windows"]
    assert 0.35 < metrics["roc_auc"] < 0.65
    assert 0.35 < metrics["accuracy"] < 0.65
    vectors = np.concatenate(list(recordings.values()))
    truth = np.repeat(np.eye(2, dtype=bool)[list(label.values())], 4, axis=0)
    leaky = fit(vectors[::2].copy(), truth[::2], is_exclusive=True)
    assert (leaky.scores(vectors[1::2]).argmax(axis=1) == truth[1::2].argmax(axis=1)).all()


def test_several_labels_may_stand_in_a_cell_or_a_list(probe: Probe, output: Path, tmp_path: Path) -> None:
    files = list(calls())
    several = [[species(file), *(["rain"] if at % 2 else [])] for at, file in enumerate(files)]
    path = csv(tmp_path / "labels.csv", *((file, "; ".join(names)) for file, names in zip(files, several, strict=True)))
    pq.write_table(pa.table({"file": files, "label": several}), tmp_path / "labels.parquet")
    done = probe(output, "--labels", path)
    assert probe(output, "--labels", tmp_path / "labels.parquet", "--name", "lists").code == done.code == 0
    found = stored(output)
    assert found["classes"] == [*SPECIES[:2], "rain", SPECIES[2]]
    assert not found["exclusive"]
    assert found["metrics"] == stored(output, "lists")["metrics"]
    assert "accuracy (all labels right)" in done.stdout
    rows = predictions(output)
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
    for file in calls():
        rows += [
            (file, "call", 4.4, 7.6),  # 0.6 s in the first window, 2.6 of 3.2 s in the second
            (file, "call", 12.5, 26),  # half of the third window, all of the fourth and fifth, 1 s of the sixth
            (file, "click", 34.9, 35.0),  # at the end of the seventh
        ]
    del rows[0:3]
    rows.append((next(iter(calls())), "", "", ""))  # nothing was found in it
    labels = csv(tmp_path / "labels.csv", *rows, columns=columns)
    assert probe(output, "--labels", labels, "--test-share", 0.9).code == 0
    silent = next(iter(calls()))
    assert silent in sides(output)
    expected = [[], ["call"], ["call"], ["call"], ["call"], [], ["click"], []]
    found = predictions(output)
    assert len(found) >= 26 * N_WINDOWS
    for row in found:
        assert row["labels"] == ([] if row["file"] == silent else expected[row["window_index"]])


def test_a_manifest_may_say_the_split(probe: Probe, output: Path, tmp_path: Path) -> None:
    split = {file: ("test", "train", "train", "valid")[at % 4] for at, file in enumerate(calls())}
    rows = [(file, species(file), split[file]) for file in split]
    labels = csv(tmp_path / "labels.csv", *rows, columns="file,label,split")
    done = probe(output, "--labels", labels, "--test-share", 0.9)
    assert done.code == 0
    assert sides(output) == {file: side for file, side in split.items() if side != "valid"}
    assert "left out: 7 rows of the manifest of another split" in done.stdout
    assert stored(output)["split"]["of"] == "the manifest"


def test_what_is_stored_of_a_split_splits_the_same_way_again(probe: Probe, output: Path, labels: Path) -> None:
    assert probe(output, "--labels", labels, "--seed", 3).code == 0
    before = stored(output)
    again = output / "probes" / "label" / "split.parquet"
    assert probe(output, "--labels", again, "--seed", 4, "--name", "again").code == 0
    assert stored(output, "again")["metrics"] == before["metrics"]
    assert probe(output, "--labels", labels, "--replace", "--seed", 4).code == 0
    assert sides(output) != sides(output, "again")


def test_a_class_on_one_side_only_is_named_and_counts_for_nothing(probe: Probe, output: Path, tmp_path: Path) -> None:
    names = {file: species(file) for file in calls()}
    first, *_, last = names
    names |= {first: "hoopoe", last: "roller"}
    split = {file: "test" if at % 3 == 0 else "train" for at, file in enumerate(names)} | {last: "train"}
    rows = [(file, names[file], split[file]) for file in names]
    labels = csv(tmp_path / "labels.csv", *rows, columns="file,label,split")
    done = probe(output, "--labels", labels)
    assert done.code == 0
    assert "not learnt (of the windows to learn from none has it, or every one): hoopoe" in done.stdout
    reason = "of the windows for the test none has it, or every one"
    assert f"not measured, and left out of the means ({reason}): roller" in done.stdout
    found = stored(output)
    assert found["classes"] == [*SPECIES[:2], "roller", SPECIES[2]]
    by_class = {row["class"]: row["windows"] for row in found["by_class"]}
    for name in ("hoopoe", "roller"):
        assert by_class.pop(name) == {"average_precision": None, "roc_auc": None}
    for name, mean in (("average_precision", "mean_average_precision"), ("roc_auc", "roc_auc")):
        assert found["metrics"]["windows"][mean] == pytest.approx(np.mean([row[name] for row in by_class.values()]))
    wrong = [row for row in predictions(output) if row["labels"] == ["hoopoe"]]
    assert len(wrong) == N_WINDOWS
    assert found["metrics"]["windows"]["accuracy"] <= 1 - len(wrong) / len(predictions(output))


def test_of_too_many_windows_a_sample_is_used_and_said(probe: Probe, output: Path, tmp_path: Path) -> None:
    rare = next(iter(calls()))
    second = list(calls())[1]
    names = {file: "rare" if file in (rare, second) else "common" for file in calls()}
    labels = csv(tmp_path / "labels.csv", *names.items())
    done = probe(output, "--labels", labels, "--max-windows", 40)
    assert done.code == 0
    assert "40 of 184 windows to learn from are used: --max-windows" in done.stdout
    found = {row["class"]: row for row in stored(output)["by_class"]}
    assert (found["rare"]["train_windows"], found["common"]["train_windows"]) == (8, 32)
    assert stored(output)["split"]["test"]["windows_used"] == len(predictions(output)) == 40


def test_rows_that_are_there_twice_count_once(probe: Probe, output: Path, labels: Path) -> None:
    assert probe(output, "--labels", labels).code == 0
    before = stored(output), predictions(output)
    shutil.copy(output / "embeddings" / "s0.parquet", output / "embeddings" / "t.parquet")
    (output / "report.json").write_text('{"state": "running"}')
    done = probe(output, "--labels", labels, "--replace")
    assert done.code == 0
    assert "a run of jobs.embed is going on, or died" in done.stdout
    assert len(predictions(output)) == len(before[1])
    assert stored(output)["metrics"]["windows"] == pytest.approx(before[0]["metrics"]["windows"])


def test_a_new_probe_takes_the_place_of_one_with_other_settings(probe: Probe, output: Path, labels: Path) -> None:
    assert probe(output, "--labels", labels).code == 0
    write_output(str(output), calls(seed=1), SETTINGS | {"checkpoint": "random"})
    done = probe(output, "--labels", labels, "--replace")
    assert done.code == 0
    assert "RANDOM WEIGHTS" in done.stdout
    assert stored(output)["settings"]["checkpoint"] == "random"


def test_an_output_and_labels_in_s3(probe: Probe, bucket: str, tmp_path: Path, s3_api: Any) -> None:
    root = f"s3://{bucket}/an output"
    write_output(root, calls(), SETTINGS)
    labels = csv(tmp_path / "labels.csv", *((file, species(file)) for file in calls()))
    s3_api.put_object(Bucket=bucket, Key="labels.csv", Body=labels.read_bytes())
    done = probe(root, "--labels", f"s3://{bucket}/labels.csv")
    assert (done.code, done.stderr) == (0, "")
    keys = [item["Key"] for item in s3_api.list_objects_v2(Bucket=bucket, Prefix="an output/probes/")["Contents"]]
    names = ["predictions.parquet", "probe.json", "split.parquet", "weights.npz"]
    assert keys == [f"an output/probes/label/{name}" for name in names]


def test_names_in_a_manifest_count_from_its_folder(probe: Probe, tmp_path: Path) -> None:
    here = {f"{tmp_path}/clips{file}": own for file, own in calls().items()}
    write_output(str(tmp_path / "output"), here, SETTINGS)
    labels = csv(tmp_path / "labels.csv", *((f"clips{file}", species(file)) for file in calls()))
    assert probe(tmp_path / "output", "--labels", labels).code == 0
    assert sorted(sides(tmp_path / "output")) == sorted(here)


def test_a_damaged_shard_is_named_in_one_line(probe: Probe, output: Path, labels: Path) -> None:
    shard = output / "embeddings" / "s1.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    done = probe(output, "--labels", labels)
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {shard} is damaged (")
    assert done.stderr.count("\n") == 1


def test_vectors_that_are_not_finite_are_named_in_one_line(probe: Probe, tmp_path: Path, labels: Path) -> None:
    vectors = calls()
    next(iter(vectors.values()))[0] = np.nan
    write_output(str(tmp_path / "odd"), vectors, SETTINGS)
    done = probe(tmp_path / "odd", "--labels", labels)
    assert done.code == 2
    shard = tmp_path / "odd" / "embeddings" / "s0.parquet"
    assert done.stderr.startswith(f"avex-batch: {shard} holds vectors that are not finite: delete it and run ")
    assert done.stderr.count("\n") == 1


def test_a_shard_without_the_layer_of_others_is_named(probe: Probe, output: Path, labels: Path) -> None:
    for shard in sorted((output / "embeddings").iterdir())[:2]:
        table = pq.read_table(shard)
        pq.write_table(table.append_column("inner", table["embedding"]), shard)
    done = probe(output, "--labels", labels, "--layer", "inner")
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {output}/embeddings/s2.parquet holds no vectors of 'inner'")
    assert done.stderr.count("\n") == 1


def test_without_scikit_learn_it_says_what_to_install(
    probe: Probe, output: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    done = probe(output, "--labels", labels)
    assert (done.code, done.stderr) == (2, f"avex-batch: sklearn is not installed: {install_command('report')}\n")


@pytest.mark.parametrize(
    ("manifest", "arguments", "reason"),
    [
        ("file,species\n{0},x\n", (), "--column: manifest {labels} needs one column 'label' (it has: file, species)"),
        ("file,labels\n{0},x\n", (), "--column: manifest {labels} needs one column 'label' (it has: file, labels) ("),
        ("file,label\n", (), "--labels: manifest {labels} has no row with a label to use"),
        ("file,label\na.wav,x\nb.wav,y\n", (), "--labels: none of the 2 recordings in {labels} is stored in {output}"),
        ("file,label\n{0},x\n{1},x\n", (), "--column: the windows to learn from are all 'x': there is nothing to te"),
        ("file,label\n{0},x\n{1},y\n", (), "--labels: of 2 recordings none is left for the test: a class takes two, o"),
        ("file,label,split\n{0},x,train\n{1},y,train\n{2},z,test\n", (), "--column: nothing can be measured, as none"),
        (
            "file,label,split\n{0},x,Train\n{1},y,\n",
            (),
            "--labels: column 'split' of manifest {labels} has to say 'train' and 'test' (it says: Train, nothing)",
        ),
        ("file,label,split\n{0},x,train\n{1},y,train\n", (), "--labels: column 'split' of manifest {labels} has to "),
        ("file,label,split\n{0},x,train\n{0},x,test\n", (), "--labels: manifest {labels} says 'train' and 'test' of "),
        ("file,label,s\n{0},x,a\n{1},y,\n", ("--group", "s"), "--group: manifest {labels} says nothing of {1}"),
        ("file,label,split,s\n{0},x,train,a\n{1},y,test,a\n", ("--group", "s"), "--group: by the manifest's column "),
        ("file,label,start_time\n{0},x,1\n", (), "--labels: manifest {labels} needs both start_time and end_time, ea"),
        ("file,label,start_time,end_time\n{0},x,soon,2\n", (), "--labels: column 'start_time' of manifest {labels} "),
        ("file,label,start_time,end_time\n{0},x,3,2\n", (), "--labels: manifest {labels} has a label of {0} that en"),
        ("file,label\n{0},x\n", ("--test-share", "1"), "--test-share: expected a share between 0 and 1"),
        ("file,label\n{0},x\n", ("--name", "a/b"), "--name: 'a/b' cannot be the name of a folder: choose another one"),
        ("file,label\n{0},x\n", ("--max-windows", "many"), "--max-windows: expected a whole number of at least 2, go"),
        ("file,label\n{0},x\n", ("--colum", "b"), "unknown option --colum (did you mean '--column'?)"),
        ("name;label\n{0};x\n", (), "--labels: manifest {labels} needs one column 'file' (it has: name;label)"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    manifest: str, arguments: tuple[str, ...], reason: str, probe: Probe, output: Path
) -> None:
    files = list(calls())
    labels = output.parent / "labels.csv"
    labels.write_text(manifest.format(*files))
    done = probe(output, "--labels", labels, *arguments)
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {reason.format(*files, labels=labels, output=output)}")
    assert done.stderr.count("\n") == 1
    assert not (output / "probes").exists()


def test_a_misspelt_option_is_named_and_not_the_one_that_is_missing_then(probe: Probe, output: Path) -> None:
    done = probe(output, "--label", "labels.csv")
    assert (done.code, done.stderr) == (2, "avex-batch: unknown option --label (did you mean '--labels'?)\n")


def test_the_output_is_called_what_the_command_line_calls_it(probe: Probe, output: Path, labels: Path) -> None:
    (output / "report.json").write_text("{")
    done = probe(output, "--labels", labels)
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: OUTPUT: cannot read {output}/report.json: ")


def test_no_number_is_no_label(probe: Probe, output: Path, tmp_path: Path) -> None:
    numbers = [float("nan") if at == 0 else float(SPECIES.index(species(file))) for at, file in enumerate(calls())]
    pq.write_table(pa.table({"file": list(calls()), "label": numbers}), tmp_path / "labels.parquet")
    done = probe(output, "--labels", tmp_path / "labels.parquet")
    assert (done.code, done.stderr) == (0, "")
    assert stored(output)["classes"] == ["0.0", "1.0", "2.0"]
    assert "left out: 1 row of the manifest without a label" in done.stdout


def test_where_there_are_no_embeddings_nothing_is_learnt(probe: Probe, tmp_path: Path, labels: Path) -> None:
    done = probe(tmp_path / "nothing", "--labels", labels)
    assert done.code == 2
    assert "holds no embeddings: write them with jobs.embed" in done.stderr


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
