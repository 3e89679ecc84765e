"""EAT: avex's real loading path, with a stand-in for the backbone that it gets from the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import eat_hub
from tests.conftest import ROOT

# EAT needs transformers, which the other models' loading keeps out of a process for good: a process of its own.
PROGRAM = """
import json, sys
import numpy as np
from embedding.config import EmbedConfig
from embedding.encoding.devices import Cpu
from embedding.encoding.encoder import Encoder
from embedding.settings import Settings

rng = np.random.default_rng(0)
windows = rng.standard_normal((3, 80_000)).astype(np.float32)
vectors = {}
for pooling in ("cls", "mean", "max"):
    config = EmbedConfig(input=("a",), output="b", model=("esp_aves2_eat_all",), checkpoint=(sys.argv[1],),
                         window_s=5.0, pooling=pooling)
    encoder = Encoder(Settings.of(config), Cpu(), 1)
    assert not encoder._features.training
    vectors[pooling] = encoder.encode(windows, np.full(3, 80_000))["embedding"].tolist()
print(json.dumps(vectors))
"""


def run(hf_home: Path, checkpoint: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, checkpoint],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_eat_pools_its_cls_token_and_its_patches(tmp_path: Path) -> None:
    eat_hub.make(tmp_path)
    done = run(tmp_path, "random")
    assert done.returncode == 0, done.stderr
    vectors = {pooling: np.array(rows) for pooling, rows in json.loads(done.stdout.splitlines()[-1]).items()}
    assert {rows.shape for rows in vectors.values()} == {(3, 768)}
    assert np.array_equal(vectors["cls"], np.full((3, 768), 7.0))  # token 0, the stand-in's own
    assert not np.allclose(vectors["mean"][0], vectors["mean"][1])
    assert (vectors["max"] >= vectors["mean"]).all()


def test_a_backbone_that_cannot_be_had_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    done = run(tmp_path, "random")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    for part in ("RequestError", "esp_aves2_eat_all needs its backbone", "HF_HOME"):
        assert part in last


@pytest.mark.parametrize("fits", [True, False])
def test_an_eat_checkpoint_is_counted_like_any_other(fits: bool, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    eat_hub.make(tmp_path)
    tensors = {"backbone.cls_token": torch.full((1, 1, 768), 3.0)}
    if fits:
        tensors |= {"backbone.patches.weight": torch.ones(768, 1, 16, 16), "backbone.patches.bias": torch.zeros(768)}
    save_file(tensors, tmp_path / "w.safetensors")
    done = run(tmp_path, str(tmp_path / "w.safetensors"))
    if fits:
        assert done.returncode == 0, done.stderr
        assert set(np.array(json.loads(done.stdout.splitlines()[-1])["cls"]).ravel()) == {3.0}
    else:
        assert "1 of 3 tensors matched" in done.stderr
