"""``jobs.embed --detect``: detections in the same pass, equal to those of jobs.detect, whatever happens on the way."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedding
from embedding.derived import derive
from embedding.derived.derived_output import DerivedOutput
from jobs import detect
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, Outcome, environment, run_job_here
from tests.support.models import EFFICIENTNET

Embed = Callable[..., Outcome]
OPTIONS = ("--model", EFFICIENTNET, "--checkpoint", "random", "--window-s", 1, "--actors", 1)
SHARDS = ("--shard-rows", 8, "--batch-size", 8)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 3 to 9 windows, so that shards of 8 rows divide some of them."""
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(6):
        write_audio(folder / f"{seed}.wav", tone(3.0 + seed, 16_000, seed=seed), 16_000)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, archive: Path, embed: Embed) -> Path:
    """A probe of two classes, of which each finds about half of the windows."""
    output = tmp_path_factory.mktemp("first") / "out"
    assert embed("--input", archive, "--output", output, *OPTIONS).code == 0
    vectors = np.stack(pq.read_table(output / "embeddings")["embedding"].to_numpy())
    weight = np.random.default_rng(0).normal(size=(2, vectors.shape[1])) / np.linalg.norm(vectors, axis=1).mean()
    bias = -np.median(vectors @ weight.T, axis=0)
    path = output.parent / "half.npz"
    np.savez(path, weight=weight, bias=bias, classes=np.array(["one", "two"]))
    return path


def rows(output: Path, name: str = "half") -> list[dict[str, Any]]:
    table = pa.concat_tables([pq.read_table(path) for path in (output / "detections" / name).glob("*.parquet")])
    table = table.sort_by([("file", "ascending"), ("start_time", "ascending"), ("label", "ascending")])
    return table.drop_columns("file_id").to_pylist()


def expected_of(output: Path, weights: Path) -> list[dict[str, Any]]:
    """Return the detections that jobs.detect finds in a second pass."""
    assert run_job_here(detect.main, output, "--probe", weights, "--name", "second pass").code == 0
    return rows(output, "second pass")


def test_detections_of_the_same_pass_are_those_of_a_second_pass(
    archive: Path, weights: Path, embed: Embed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(derive, "_read_windows", lambda *_: pytest.fail("a shard was read again"))
        done = embed("--input", archive, "--output", output, *OPTIONS, *SHARDS, "--detect", weights)
    assert done.code == 0, done.stderr
    assert "detections of 2 labels" in done.stdout
    assert len(list((output / "embeddings").iterdir())) >= 3
    assert not list((output / "detections" / "half").rglob(".shards/*"))
    assert rows(output) == expected_of(output, weights) != []
    again = run_job_here(detect.main, output, "--probe", weights)
    assert (again.code, "6 scored before, 0 to do" in again.stdout) == (0, True)


def test_new_recordings_are_scored_and_stored_ones_too(
    archive: Path, weights: Path, embed: Embed, tmp_path: Path
) -> None:
    """A run without the option leaves shards without scores; the next run with it reads them."""
    output = tmp_path / "out"
    assert embed("--input", archive, "--output", output, *OPTIONS, *SHARDS, "--limit", 3).code == 0
    done = embed("--input", archive, "--output", output, *OPTIONS, *SHARDS, "--detect", weights)
    assert (done.code, "0 scored before, 6 to do" in done.stdout) == (0, True)
    assert rows(output) == expected_of(output, weights)


def test_scores_of_a_shard_that_has_changed_are_not_used(
    archive: Path, weights: Path, embed: Embed, tmp_path: Path, connection: None
) -> None:
    """A repair removes windows that are stored twice, and their scores must go with them."""
    output = tmp_path / "out"
    scores = output / "detections" / "half" / ".shards"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DerivedOutput, "delete_partials", lambda _: None)
        assert embed("--input", archive, "--output", output, *OPTIONS, *SHARDS, "--detect", weights).code == 0
    expected = rows(output)
    for path in (output / "detections" / "half").glob("*.parquet"):
        path.unlink()
    first, second, *_ = sorted((output / "embeddings").iterdir())
    # The scores of the second shard under the name of the first: another set of windows.
    shutil.copy(scores / second.name, scores / first.name)
    done = run_job_here(detect.main, output, "--probe", weights)
    assert (done.code, rows(output)) == (0, expected)


def test_a_killed_run_goes_on_with_its_scores(archive: Path, weights: Path, embed: Embed, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.embed", "--input", archive, "--output", output, *OPTIONS, *SHARDS]
    command += ["--detect", weights]
    with subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((output / "detections" / "half" / ".shards").glob("*.parquet")):
            pass
        process.send_signal(signal.SIGKILL)
    assert embed("--input", archive, "--output", output, *OPTIONS, *SHARDS, "--detect", weights).code == 0
    assert rows(output) == expected_of(output, weights)


def test_a_probe_that_does_not_fit_is_refused_before_the_work(
    archive: Path, weights: Path, embed: Embed, tmp_path: Path
) -> None:
    np.savez(tmp_path / "short.npz", weight=np.zeros((1, 3)), bias=np.zeros(1), classes=np.array(["a"]))
    cases = {
        str(tmp_path / "short.npz"): "scores vectors of 3 numbers, but this output has 1,280",
        str(tmp_path / "none.npz"): "none.npz",
        "unknown": "unknown",
    }
    for probe, message in cases.items():
        done = embed("--input", archive, "--output", tmp_path / "out", *OPTIONS, "--detect", probe)
        assert (done.code, "--detect: " in done.stderr) == (2, True), done.stderr
        assert message in done.stderr
    assert not (tmp_path / "out" / "embeddings").exists()
    several = ("--model", EFFICIENTNET, "esp_aves2_sl_beats_all", "--checkpoint", "random")
    done = embed("--input", archive, "--output", tmp_path / "out", *several, "--window-s", 1, "--detect", weights)
    assert (done.code, "--detect: a probe fits one model" in done.stderr) == (2, True)


def test_python_takes_the_option(archive: Path, weights: Path, connection: None, tmp_path: Path) -> None:
    result = embedding.embed(
        input=archive,
        output=tmp_path / "out",
        model=EFFICIENTNET,
        checkpoint="random",
        window_s=1,
        detect=weights,
        limit=2,
        quiet=True,
    )
    assert result is not None
    found = result.output.detections("half").to_arrow()
    assert set(found["label"].to_pylist()) <= {"one", "two"}
    summary = json.loads((tmp_path / "out" / "detections" / "half" / "summary.json").read_text())
    assert summary["recordings"] == 2
