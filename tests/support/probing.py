"""Probes over labelled recordings of three species: outputs, manifests, the command and its results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.probe import main
from tests.support.commands import Outcome
from tests.support.shards import write_output

DIM = 6
N_WINDOWS = 8
SETTINGS = {"model": "a model", "checkpoint": "hf://somewhere", "window_s": 5.0}
SPECIES = ("blackbird", "chiffchaff", "wren")
PER_SPECIES = 10


def species_vectors(seed: int = 0) -> dict[str, np.ndarray]:
    """Return the vectors of recordings of three species, ``[windows, dim]`` by file; each species has a centre."""
    rng = np.random.default_rng(seed)
    return {
        f"/archive/{name}/{number} Grün.wav": (20 + centre + rng.standard_normal((N_WINDOWS, DIM))).astype(np.float32)
        for name, centre in zip(SPECIES, rng.standard_normal((len(SPECIES), DIM)), strict=True)
        for number in range(PER_SPECIES)
    }


def species_of(file: str) -> str:
    return file.split("/")[2]


def write_manifest(path: Path, *rows: tuple[object, ...], columns: str = "file,label") -> Path:
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def write_species_output(folder: Path) -> Path:
    write_output(str(folder), species_vectors(), SETTINGS)
    return folder


def write_species_labels(path: Path) -> Path:
    """Write a manifest with the species of each recording."""
    return write_manifest(path, *((file, species_of(file)) for file in species_vectors()))


def run_probe(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run ``python -m jobs.probe`` in this process."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def read_probe(output: Path, name: str = "label") -> dict[str, Any]:
    return json.loads((output / "probes" / name / "probe.json").read_text())


def read_predictions(output: Path, name: str = "label") -> list[dict[str, Any]]:
    return pq.read_table(output / "probes" / name / "predictions.parquet").to_pylist()


def read_split(output: Path, name: str = "label") -> dict[str, str]:
    """Return ``train`` or ``test`` of each recording."""
    rows = pq.read_table(output / "probes" / name / "split.parquet").to_pylist()
    return {row["file"]: row["split"] for row in rows}
