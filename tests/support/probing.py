"""Labelled recordings of three species, their vectors, and manifests of their labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np

DIM = 6
N_WINDOWS = 8
SETTINGS = {"model": "a model", "checkpoint": "hf://somewhere", "window_s": 5.0}
SPECIES = ("blackbird", "chiffchaff", "wren")
PER_SPECIES = 10


def calls(seed: int = 0) -> dict[str, np.ndarray]:
    """Vectors of recordings of three species, which lie about a place of their own each."""
    rng = np.random.default_rng(seed)
    return {
        f"/archive/{name}/{at} Grün.wav": (20 + place + rng.standard_normal((N_WINDOWS, DIM))).astype(np.float32)
        for name, place in zip(SPECIES, rng.standard_normal((len(SPECIES), DIM)), strict=True)
        for at in range(PER_SPECIES)
    }


def species(file: str) -> str:
    return file.split("/")[2]


def csv(path: Path, *rows: tuple[object, ...], columns: str = "file,label") -> Path:
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def stored(output: Path, name: str = "label") -> dict[str, Any]:
    return json.loads((output / "probes" / name / "probe.json").read_text())
