"""``jobs.report --html`` where there is little to show, and where nothing can be shown."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from embedding import storage
from embedding.extras import install_command
from embedding.schema.failures import Failure
from jobs.report import main
from tests.support.browser import needs_chromium
from tests.support.commands import ROOT
from tests.support.pages import DIM, opened, output

RNG = np.random.default_rng(1)
LITTLE: dict[str, tuple[dict[str, np.ndarray], list[Failure], list[str]]] = {
    "only failures": (
        {},
        [Failure("/a.wav", 1, 0, "decode", "empty", "no bytes")],
        ["Nothing is embedded.", "There are no vectors.", "There are no windows to draw.", "/a.wav: no bytes"],
    ),
    "one window": (
        {"/a.wav": RNG.standard_normal((1, DIM))},
        [],
        ["Of 1 recording none says when it began", "There is one window: nothing to compare it with.", "None."],
    ),
    "two windows": (
        {"/a.wav": RNG.standard_normal((2, DIM))},
        [],
        ["All 2 windows", "There are 2 windows; below 10 UMAP has nothing to go by."],
    ),
    "one recording": (
        {"/20250503_031300.WAV": RNG.standard_normal((30, DIM))},
        [],
        ["Audio of 1 recording by date", "All 30 windows, each a point."],
    ),
    "silence": (
        {"/a.wav": np.zeros((12, DIM))},
        [],
        ["12 vectors, and every one is zero.", "their vectors are all the same, so there is nothing to tell apart"],
    ),
    "mostly silence": (
        {"/a.wav": np.concatenate([np.zeros((12, DIM)), RNG.standard_normal((3, DIM))])},
        [],
        ["; 3 lie outside.", "All 15 windows, each a point."],
    ),
    "not finite": (
        {"/a.wav": np.full((3, DIM), np.nan)},
        [],
        ["There are no vectors. 3 vectors not finite.", "There are no windows to draw."],
    ),
}


@needs_chromium
@pytest.mark.parametrize("case", LITTLE)
def test_where_there_is_little_to_show_the_page_says_so(case: str, tmp_path: Path, browser: Browser) -> None:
    recordings, failures, words = LITTLE[case]
    output(tmp_path / "out", recordings, failures)
    assert main([str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0
    with browser.new_context() as context:
        found = opened(context, tmp_path / "page.html")
        text = found.page.locator("main").inner_text()
        for each in words:
            assert each in text
        assert found.errors == []


def test_what_disagrees_and_what_nobody_knows_is_said(tmp_path: Path) -> None:
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    for name in ("run.json", "report.json"):
        (tmp_path / "out" / name).unlink()
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page)]) == 1
    assert '<p class="warning">there was no report.json</p>' in page.read_text()
    assert "esp_aves2_effnetb0_all" in page.read_text()  # as the shards say


def test_a_sample_is_as_large_as_is_asked_for(tmp_path: Path) -> None:
    output(tmp_path / "out", {f"/{at}.wav": RNG.standard_normal((5, DIM)) for at in range(10)}, [])
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page), "--sample", "7"]) == 0
    assert "7 of 50 windows, drawn at random, each a point." in page.read_text()


def test_a_manifest_that_was_the_input_and_is_gone_is_said(tmp_path: Path) -> None:
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [], "/data", str(tmp_path / "gone.csv"))
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page)]) == 0
    said = f"{tmp_path}/gone.csv, which was the input, cannot be read now: --manifest says where it is"
    assert f'<p class="warning">{said}</p>' in page.read_text()


def test_a_manifest_of_other_recordings_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    (tmp_path / "m.csv").write_text("file,label\na.wav,robin\n")  # relative: below tmp_path
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page), "--manifest", str(tmp_path / "m.csv")]) == 0
    said = f"{tmp_path}/m.csv has a row for none of the recordings that were drawn: other paths?"
    assert said in capfd.readouterr().out
    assert f'<p class="warning">{said}</p>' in page.read_text()


def test_outputs_and_pages_may_lie_in_s3(bucket: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = f"s3://{bucket}/an output"
    output(root, {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    assert main([root, "--html", f"{root}/page.html"]) == 0
    assert f"page: {root}/page.html (" in capfd.readouterr().out
    assert b"All 3 windows, each a point." in storage.read_bytes(f"{root}/page.html")


def test_json_stays_json_beside_a_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    assert main([str(tmp_path / "out"), "--json", "--html", str(tmp_path / "page.html")]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["output"]["windows"] == 3
    assert err.startswith(f"page: {tmp_path}/page.html (")


# --- requests that make no sense --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--html", "{folder}"], "--html: {folder} is a folder; name a file in it"),
        (["--html", "{folder}/file/page.html"], "--html: cannot make {folder}/file: File exists"),
        (["--html", "ftp://a/page.html"], "--html: ftp:// is not supported"),
        (["--html", "p.html", "--sample", "0"], "--sample: expected a whole number of at least 1 and at most 10,000"),
        (["--html", "p.html", "--sample", "many"], "--sample: expected a whole number"),
        (["--html", "p.html", "--manifest", "{folder}/none.csv"], "--manifest: cannot read manifest {folder}/none.csv"),
        (["--html", "p.html", "--manifest", "{folder}/file"], "--manifest: {folder}/file is not a manifest"),
        (
            ["--sample", "7"],
            "--manifest and --sample are for pictures: say with --html FILE or --png DIR where they go",
        ),
        (["--htlm", "p.html"], "unknown option --htlm (did you mean '--html'?)"),
        (["--png", "{folder}/file"], "--png: cannot make {folder}/file: File exists"),
        (["--png", ""], "--png: expected a path or an s3:// URI, got an empty name"),
        (["--png", "s3://bucket/png"], "--png: s3://bucket/png is no folder of this machine"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_work(
    options: list[str], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    named = [option.format(folder=tmp_path) for option in options]
    assert main([str(tmp_path / "no output"), *named]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"avex-batch: {reason.format(folder=tmp_path)}")
    assert error.count("\n") == 1


def test_without_a_browser_there_is_a_page_but_no_png(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    assert main([str(tmp_path / "out"), "--png", str(tmp_path / "png")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("avex-batch: --png needs a Chrome or Chromium, and there is none: apt-get install chromium")
    assert error.count("\n") == 1
    assert main([str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0


def test_without_the_extra_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    assert main([str(tmp_path), "--html", str(tmp_path / "page.html")]) == 2
    said = f"avex-batch: --html needs packages that are not installed (umap): {install_command('report')}\n"
    assert capfd.readouterr().err == said


def test_an_installed_package_has_the_template(tmp_path: Path) -> None:
    """Not an editable one: a wheel has what pyproject.toml says it has."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("embedding", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "."]
    subprocess.run([*build, "."], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"embedding/overview/templates/page.{kind}" for kind in ("html", "css", "js")} <= packed
