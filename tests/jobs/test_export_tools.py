"""Exports opened by tools with many dependencies, each tool in an environment of its own."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, environment
from tests.support.shards import write_output

pytestmark = pytest.mark.long  # installs 300 to 500 MB for each tool

RATE_HZ, WINDOW_S, N_WINDOWS, DIM = 16_000, 1.0, 3, 16
NAMES = ("north/a.wav", "north/b c.wav", "süd/2025/c.wav", "d.wav")
SETTINGS = {"model": "a model", "checkpoint": "hf://somewhere", "window_s": WINDOW_S, "sample_rate_hz": RATE_HZ}


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((N_WINDOWS, DIM)).astype(np.float32) for name in NAMES}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, vectors: dict[str, np.ndarray]) -> Path:
    """A folder of recordings; their vectors are in the folder ``output`` beside it."""
    folder = tmp_path_factory.mktemp("archive") / "recordings"
    for seed, name in enumerate(NAMES):
        write_audio(folder / name, tone(N_WINDOWS * WINDOW_S, RATE_HZ, 300.0 * (seed + 1), seed=seed), RATE_HZ)
    files = {str(folder / name): vectors_of_file for name, vectors_of_file in vectors.items()}
    write_output(str(folder.parent / "output"), files, SETTINGS, window_s=WINDOW_S)
    return folder


def export(python: Path, archive: Path, to: str, folder: Path) -> None:
    command = [python, "-m", "jobs.export", archive.parent / "output", "--to", to, folder]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, timeout=600)


def run_program(python: Path, program: str, *arguments: object) -> Any:
    """Return the last line of a program, read as JSON."""
    command = [python, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


HOPLITE = """
import json, sys
import numpy as np
from perch_hoplite.agile.audio_loader import make_filepath_loader
from perch_hoplite.agile.source_info import AudioSources
from perch_hoplite.db.sqlite_usearch_impl import SQLiteUSearchDB

database = SQLiteUSearchDB.create(sys.argv[1])
sources = AudioSources.from_config_dict(database.get_metadata("audio_sources"))
load = make_filepath_loader(sources, sample_rate_hz=16_000, window_size_s=1.0)
deployments = {deployment.id: deployment for deployment in database.get_all_deployments()}
recordings = {recording.id: recording for recording in database.get_all_recordings()}
windows = database.get_all_windows(include_embedding=True)
query = np.array(json.loads(sys.argv[2]), np.float32)
hits = [database.search(query, 3, approximate=approximate) for approximate in (True, False)]
print(json.dumps({
    "n": database.count_embeddings(),
    "projects": list(database.get_all_projects()),
    "deployments": sorted(deployment.name for deployment in deployments.values()),
    "model": database.get_metadata("model_config").to_dict(),
    "windows": [
        {
            "id": window.id,
            "name": recordings[window.recording_id].filename,
            "file_id": recordings[window.recording_id].file_id,
            "deployment": deployments[recordings[window.recording_id].deployment_id].name,
            "offsets": window.offsets,
            "embedding": np.asarray(window.embedding, np.float32).tolist(),
            "loudest": int(np.abs(load(recordings[window.recording_id].filename, window.offsets[0])).argmax()),
        }
        for window in windows
    ],
    "nearest": [[int(hit.window_id) for hit in of_search] for of_search in hits],
}))
"""


def test_hoplite_opens_and_searches_an_export_and_loads_its_audio(
    python_with: Callable[[str], Path], archive: Path, vectors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    python = python_with("hoplite")
    export(python, archive, "hoplite", tmp_path / "hoplite")
    query = vectors[NAMES[2]][1]
    found = run_program(python, HOPLITE, tmp_path / "hoplite", json.dumps(query.tolist()))
    assert found["n"] == len(NAMES) * N_WINDOWS
    assert found["projects"] == ["recordings"]
    assert found["deployments"] == ["north", "recordings", "süd"]
    assert found["model"]["embedding_dim"] == DIM
    assert found["model"]["model_config"] == SETTINGS
    windows = {(window["name"], window["offsets"][0]): window for window in found["windows"]}
    assert sorted(windows) == [(name, at * WINDOW_S) for name in sorted(NAMES) for at in range(N_WINDOWS)]
    for (name, start_s), window in windows.items():
        at = round(start_s / WINDOW_S)
        assert window["offsets"] == [start_s, start_s + WINDOW_S]
        assert window["deployment"] == (name.split("/")[0] if "/" in name else "recordings")
        assert window["file_id"] == 1000 + NAMES.index(name)
        assert np.array_equal(np.float16(window["embedding"]), vectors[name][at].astype(np.float16))
        audio = tone(N_WINDOWS * WINDOW_S, RATE_HZ, 300.0 * (NAMES.index(name) + 1), seed=NAMES.index(name))
        window_audio = audio[at * RATE_HZ : (at + 1) * RATE_HZ]
        assert abs(window_audio[window["loudest"]]) == pytest.approx(np.abs(window_audio).max(), abs=1e-3)
    products = {window["id"]: float(query @ np.array(window["embedding"])) for window in found["windows"]}
    expected = sorted(products, key=lambda window_id: -products[window_id])[:3]
    assert found["nearest"] == [expected, expected]


OPENSOUNDSCAPE = """
import json, sys
import numpy as np, pandas as pd
from opensoundscape import CNN
from opensoundscape.ml.cnn_architectures import resnet18
from opensoundscape.ml.shallow_classifier import MLPClassifier

ours = pd.read_csv(sys.argv[1], index_col=[0, 1, 2])
network = resnet18(2, weights=None, num_channels=1)
theirs = CNN(network, classes=["a", "b"], sample_duration=1.0, sample_rate=16_000).embed(ours[[]], progress_bar=False)
theirs.to_csv(sys.argv[2])
theirs = pd.read_csv(sys.argv[2], index_col=[0, 1, 2])
labels = np.eye(2)[np.arange(len(ours)) % 2]
MLPClassifier(input_size=ours.shape[1], output_size=2).fit(train_features=ours, train_labels=labels, steps=3)
print(json.dumps({
    "names": list(ours.index.names) == list(theirs.index.names),
    "index": bool(ours.index.equals(theirs.index)),
    "levels": [str(level.dtype) for level in ours.index.levels] == [str(level.dtype) for level in theirs.index.levels],
    "columns": list(ours.columns) == list(theirs.columns)[: ours.shape[1]],
    "finite": bool(np.isfinite(theirs.to_numpy()).all()),
    "rows": [[*index, row.tolist()] for index, row in zip(ours.index, ours.to_numpy())],
}))
"""


def test_the_csv_has_the_form_of_opensoundscapes_own_and_trains_a_classifier(
    python_with: Callable[[str], Path], archive: Path, vectors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    python = python_with("opensoundscape")
    export(python, archive, "opensoundscape", tmp_path / "oss")
    found = run_program(python, OPENSOUNDSCAPE, tmp_path / "oss" / "embeddings.csv", tmp_path / "theirs.csv")
    rows = found.pop("rows")
    assert found == {"names": True, "index": True, "levels": True, "columns": True, "finite": True}
    assert len(rows) == len(NAMES) * N_WINDOWS
    for file, start_s, end_s, row in rows:
        name = str(Path(file).relative_to(archive))
        assert end_s == start_s + WINDOW_S
        assert np.array_equal(np.float32(row), vectors[name][round(start_s / WINDOW_S)])
