"""Extras: the command that installs them, from a checkout and from an index."""

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from embedding import extras
from embedding.errors import RequestError


class Distribution:
    def __init__(self, direct_url: object) -> None:
        self._text = None if direct_url is None else json.dumps(direct_url)

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._text


@pytest.mark.parametrize(
    ("direct_url", "target"),
    [
        (None, "'avex-batch[report]'"),
        ({"url": "https://host/x.whl", "archive_info": {}}, "'avex-batch[report]'"),
        ({"url": "file:///home/a%20b/avex", "dir_info": {"editable": True}}, "-e '/home/a b/avex[report]'"),
    ],
)
def test_the_command_fits_the_way_in_which_the_package_is_installed(
    direct_url: object, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda _: Distribution(direct_url))
    assert extras.install_command("report") == f"{sys.executable} -m pip install {target}"


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(RequestError, match=r"\Aumap is not installed: .* -m pip install .*report"):
        extras.load("umap", "report")
    with pytest.raises(RequestError, match=r"\A--html needs packages that are not installed \(umap\): "):
        extras.refuse_missing(("json", "umap"), "report", "--html")


def test_a_package_that_lacks_another_one_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        extras.load("half", "report")
