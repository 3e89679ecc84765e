"""Graphs in the cache: written once, in a process of their own; damage is found and mended; errors are told."""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedding.encoding import graph_files, graph_writer
from embedding.encoding.checkpoints import Checkpoint, fetch_checkpoint
from embedding.encoding.graph_files import CONTENTS, GRAPH, WEIGHTS, GraphFiles, open_graph_files
from embedding.encoding.models import Model, find_model
from embedding.encoding.optimized import UnoptimizedModel
from embedding.errors import RequestError, RunError
from tests.support.models import EFFICIENTNET

MODEL = find_model(EFFICIENTNET)
RANDOM_WEIGHTS = fetch_checkpoint(EFFICIENTNET, "random")
NAMES = {"graph.xml", "graph.bin", "constants.safetensors", "contents.json"}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for this test alone; the folder of its graphs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "avex-batch" / "graphs"


@pytest.fixture
def n_written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Write small files instead of a graph; the folders that were written."""
    folders = []

    def write(model: Model, checkpoint: Checkpoint, folder: Path) -> None:
        time.sleep(0.05)  # a second process would begin meanwhile
        for name in NAMES - {CONTENTS}:
            (folder / name).write_bytes(name.encode())
        checksums = {name: graph_files.checksum(folder / name) for name in NAMES - {CONTENTS}}
        (folder / CONTENTS).write_text(json.dumps(checksums))
        folders.append(folder)

    monkeypatch.setattr(graph_files, "_write_in_own_process", write)
    return folders


def test_files_are_written_by_a_process_of_their_own(own_cache: Path) -> None:
    files = open_graph_files(MODEL, RANDOM_WEIGHTS)
    assert {path.name for path in files.folder.iterdir()} == NAMES
    assert files.is_intact()
    assert files.has_graph
    assert [path for path in own_cache.iterdir() if path.suffix != ".lock"] == [files.folder]


def test_files_are_written_once(own_cache: Path, n_written: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_graph_files(MODEL, RANDOM_WEIGHTS), range(8)))
    assert len(set(opened)) == len(n_written) == 1


@pytest.mark.usefixtures("own_cache")
def test_another_model_or_checkpoint_has_files_of_its_own(n_written: list[Path]) -> None:
    other = replace(RANDOM_WEIGHTS, digest="sha256:00")
    other_model = find_model("esp_aves2_effnetb0_bio")
    opened = [open_graph_files(MODEL, RANDOM_WEIGHTS), open_graph_files(MODEL, other)]
    assert len({*opened, open_graph_files(other_model, RANDOM_WEIGHTS)}) == len(n_written) == 3


@pytest.mark.usefixtures("own_cache")
def test_files_of_another_version_are_not_used(n_written: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = [open_graph_files(MODEL, RANDOM_WEIGHTS)]
    monkeypatch.setattr(graph_files.metadata, "version", lambda package: f"99 of {package}")
    assert len({*opened, open_graph_files(MODEL, RANDOM_WEIGHTS)}) == len(n_written) == 2


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _replace_by_list(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("damage", [_cut, _flip, _replace_by_list, Path.unlink])
def test_damaged_files_are_written_again(name: str, damage: Callable[[Path], Any], n_written: list[Path]) -> None:
    files = open_graph_files(MODEL, RANDOM_WEIGHTS)
    damage(files.folder / name)
    assert open_graph_files(MODEL, RANDOM_WEIGHTS) == files
    assert files.is_intact()
    assert len(n_written) == 2


def test_what_a_process_left_that_died_is_deleted(own_cache: Path, n_written: list[Path]) -> None:
    folder = open_graph_files(MODEL, RANDOM_WEIGHTS).folder
    folder.rename(folder.with_name(f".tmp-{folder.name}"))
    assert open_graph_files(MODEL, RANDOM_WEIGHTS).is_intact()
    assert [path.name for path in own_cache.iterdir() if path.suffix != ".lock"] == [folder.name]


@pytest.mark.usefixtures("own_cache")
def test_files_that_no_run_has_opened_for_two_months_are_deleted(n_written: list[Path]) -> None:
    unused, used = (
        open_graph_files(MODEL, replace(RANDOM_WEIGHTS, digest=f"sha256:{digest}")).folder for digest in ("00", "11")
    )
    for days, folder in [(61, unused), (59, used)]:
        then_s = time.time() - days * 86_400
        os.utime(folder, (then_s, then_s))
    open_graph_files(MODEL, RANDOM_WEIGHTS)
    assert (unused.exists(), used.exists()) == (False, True)


@pytest.mark.usefixtures("own_cache")
def test_a_damaged_checkpoint_is_refused_as_by_every_encoder(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(RequestError, match=r"--checkpoint.*cut\.safetensors"):
        open_graph_files(MODEL, Checkpoint(str(path), str(path), "sha256:22"))


@pytest.mark.usefixtures("own_cache")
def test_a_bug_in_the_process_that_writes_is_told_with_its_traceback() -> None:
    nobody: Any = replace(RANDOM_WEIGHTS, path=7)
    with pytest.raises(RuntimeError, match=r"(?s)preparing esp_aves2_effnetb0_all failed:.*Traceback"):
        open_graph_files(MODEL, nobody)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -9 $$", -9)])
def test_the_death_of_the_process_that_writes_is_told(
    script: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RunError, match=rf"prepares esp_aves2_effnetb0_all .*died with exit code {code}: out of memory"):
        open_graph_files(MODEL, RANDOM_WEIGHTS)


def test_the_process_that_writes_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    """An encoder may be killed while it waits."""
    command = [sys.executable, "-c", "from embedding.encoding.graph_files import main; main()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        pickle.dump((MODEL, RANDOM_WEIGHTS, tmp_path), process.stdin)
        process.stdin.close()
        assert process.wait(timeout=60) == 1
    assert not list(tmp_path.iterdir())


def test_a_model_with_other_layers_has_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_writer, "optimized_class", lambda *_: UnoptimizedModel)
    graph_writer.write(MODEL, RANDOM_WEIGHTS, tmp_path)
    files = GraphFiles(tmp_path)
    assert files.is_intact()
    assert not files.has_graph
    assert not {GRAPH, WEIGHTS} & {path.name for path in tmp_path.iterdir()}
