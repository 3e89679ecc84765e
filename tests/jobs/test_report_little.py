"""``jobs.report --html`` for outputs with little data, and requests that it refuses."""

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
from tests.support.pages import DIM, open_page, write_finished_output

RNG = np.random.default_rng(1)
SMALL_OUTPUTS: dict[str, tuple[dict[str, np.ndarray], list[Failure], list[str]]] = {
    "only failures": (
        {},
        [Failure("/a.wav", 1, 0, "decode", "empty", "no bytes")],
        [
            "There are no embeddings.",
            "There are no finite vectors.",
            "There are no windows to draw.",
            "/a.wav: no bytes",
        ],
    ),
    "one window": (
        {"/a.wav": RNG.standard_normal((1, DIM))},
        [],
        ["The start time of 1 recording is not known.", "There is only one window", "No recording failed."],
    ),
    "two windows": (
        {"/a.wav": RNG.standard_normal((2, DIM))},
        [],
        ["All 2 windows", "UMAP needs at least 10 windows; there are 2."],
    ),
    "one recording": (
        {"/20250503_031300.WAV": RNG.standard_normal((30, DIM))},
        [],
        ["Audio of 1 recording by date", "All 30 windows. Each point is a window"],
    ),
    "silence": (
        {"/a.wav": np.zeros((12, DIM))},
        [],
        ["12 vectors, all zero.", "All 12 windows. All vectors are equal, so there is no map."],
    ),
    "mostly silence": (
        {"/a.wav": np.concatenate([np.zeros((12, DIM)), RNG.standard_normal((3, DIM))])},
        [],
        ["3 windows are outside this range.", "All 15 windows. Each point is a window"],
    ),
    "not finite": (
        {"/a.wav": np.full((3, DIM), np.nan)},
        [],
        ["There are no finite vectors. 3 vectors are not finite.", "There are no windows to draw."],
    ),
}


@needs_chromium
@pytest.mark.parametrize("case", SMALL_OUTPUTS)
def test_a_page_with_little_data_explains_what_is_missing(case: str, tmp_path: Path, browser: Browser) -> None:
    recordings, failures, texts = SMALL_OUTPUTS[case]
    write_finished_output(tmp_path / "out", recordings, failures)
    assert main([str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0
    with browser.new_context() as context:
        opened = open_page(context, tmp_path / "page.html")
        page_text = opened.page.locator("main").inner_text()
        for text in texts:
            assert text in page_text
        assert opened.errors == []


def test_disagreements_are_on_the_page(tmp_path: Path) -> None:
    write_finished_output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    for name in ("run.json", "report.json"):
        (tmp_path / "out" / name).unlink()
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page)]) == 1
    assert '<p class="warning">there was no report.json</p>' in page.read_text()
    assert "esp_aves2_effnetb0_all" in page.read_text()  # from the shards


def test_a_sample_has_the_requested_size(tmp_path: Path) -> None:
    write_finished_output(
        tmp_path / "out", {f"/{number}.wav": RNG.standard_normal((5, DIM)) for number in range(10)}, []
    )
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page), "--sample", "7"]) == 0
    assert "A random sample of 7 from 50 windows. Each point is a window;" in page.read_text()


def test_a_missing_manifest_of_the_input_is_a_warning(tmp_path: Path) -> None:
    write_finished_output(
        tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [], "/data", str(tmp_path / "gone.csv")
    )
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page)]) == 0
    warning = f"{tmp_path}/gone.csv was an input of the run, and cannot be read now; use --manifest if it moved"
    assert f'<p class="warning">{warning}</p>' in page.read_text()


def test_a_manifest_of_other_recordings_is_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_finished_output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    (tmp_path / "m.csv").write_text("file,label\na.wav,robin\n")  # a relative path, below tmp_path
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page), "--manifest", str(tmp_path / "m.csv")]) == 0
    warning = f"{tmp_path}/m.csv has no row for any recording in the sample; check the paths"
    assert warning in capfd.readouterr().out
    assert f'<p class="warning">{warning}</p>' in page.read_text()


def test_outputs_and_pages_may_be_in_s3(bucket: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = f"s3://{bucket}/an output"
    write_finished_output(root, {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    assert main([root, "--html", f"{root}/page.html"]) == 0
    assert f"page: {root}/page.html (" in capfd.readouterr().out
    assert b"All 3 windows. Each point is a window;" in storage.read_bytes(f"{root}/page.html")


def test_json_on_stdout_stays_valid_beside_a_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_finished_output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    assert main([str(tmp_path / "out"), "--json", "--html", str(tmp_path / "page.html")]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["output"]["windows"] == 3
    assert err.startswith(f"page: {tmp_path}/page.html (")


# --- requests that are refused ----------------------------------------------------------------------------------------


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
        (["--sample", "7"], "--manifest, --sample and --where need --html FILE or --png DIR"),
        (["--htlm", "p.html"], "unknown option --htlm (did you mean '--html'?)"),
        (["--png", "{folder}/file"], "--png: cannot make {folder}/file: File exists"),
        (["--png", ""], "--png: expected a path or an s3:// URI, got an empty name"),
        (["--png", "s3://bucket/png"], "--png: s3://bucket/png is not a folder of this machine"),
    ],
)
def test_a_bad_request_is_refused_before_the_work(
    options: list[str], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = [option.format(folder=tmp_path) for option in options]
    assert main([str(tmp_path / "no output"), *arguments]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"avex-batch: {reason.format(folder=tmp_path)}")
    assert error.count("\n") == 1


def test_without_a_browser_a_page_is_written_but_png_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    write_finished_output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    assert main([str(tmp_path / "out"), "--png", str(tmp_path / "png")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("avex-batch: --png needs Chrome or Chromium, and none was found: apt-get install chromium")
    assert error.count("\n") == 1
    assert main([str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0


def test_without_the_extra_the_error_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    assert main([str(tmp_path), "--html", str(tmp_path / "page.html")]) == 2
    error = f"avex-batch: --html needs packages that are not installed (umap): {install_command('report')}\n"
    assert capfd.readouterr().err == error


def test_an_installed_package_has_the_template(tmp_path: Path) -> None:
    """The wheel is built anew: it holds the files that pyproject.toml lists, unlike an editable installation."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("embedding", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "."]
    subprocess.run([*build, "."], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {f"embedding/overview/templates/page.{kind}" for kind in ("html", "css", "js")} <= files
