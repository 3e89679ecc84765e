"""Graphs are written while Ray starts; faults leave the word to the encoders."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from embedding.encoding import graph_preparation
from embedding.encoding.graph_preparation import prepare_graphs
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from tests.support.encoding import make_settings
from tests.support.models import BEATS, EFFICIENTNET


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "avex-batch" / "graphs"


def prepare(*targets: Settings) -> tuple[list[str], list[str]]:
    """Return what was said and what was warned of."""
    said: list[str] = []
    warned: list[str] = []
    prepare_graphs(targets, said.append, warned.append).join()
    return said, warned


def pretend_to_write(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[str]:
    """Create an empty folder instead of a graph, or raise ``error``; return the names of the models."""
    written = []

    def write(model: Any, checkpoint: Any) -> None:
        if error:
            raise error
        graph_preparation.graph_folder(model, checkpoint).mkdir(parents=True)
        written.append(model.name)

    monkeypatch.setattr(graph_preparation, "open_graph_files", write)
    return written


def test_the_graph_of_each_model_is_written_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = pretend_to_write(monkeypatch)
    targets = [make_settings("random", BEATS), make_settings("random", EFFICIENTNET)]
    said, warned = prepare(*targets)
    assert written == [BEATS, EFFICIENTNET]
    assert said == [f"preparing {model} for this machine's CPUs (about 15 s, once)" for model in written]
    assert prepare(*targets) == ([], [])
    assert warned == []
    assert len(written) == 2


@pytest.mark.parametrize("options", [{"layers": "0"}, {"mask_padding": True}])
def test_models_that_need_torch_are_not_prepared(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    written = pretend_to_write(monkeypatch)
    assert prepare(make_settings("random", BEATS, **options)) == ([], [])
    assert written == []


def test_a_cache_that_cannot_be_written_is_told(own_cache: Path) -> None:
    own_cache.parent.touch()
    said, warned = prepare(make_settings("random", BEATS), make_settings("random", EFFICIENTNET))
    assert said == []
    assert len(warned) == 1
    assert warned[0].startswith("the prepared model cannot be kept: ")
    assert str(own_cache.parent) in warned[0]


def test_a_full_disk_is_told_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_write(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    _, warned = prepare(make_settings("random", EFFICIENTNET))
    assert len(warned) == 1
    assert "No space left on device; each start" in warned[0]


@pytest.mark.parametrize("error", [RequestError("--checkpoint: damaged"), RuntimeError("a bug")])
def test_the_encoders_report_what_prevents_a_graph(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_write(monkeypatch, error)
    said, warned = prepare(make_settings("random", EFFICIENTNET))
    assert (len(said), warned) == (1, [])
