"""Runs of a reduced precision: the agreement with fp32 is measured, stored and shown, or refuses the run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.report import main as report_main
from tests.support.audio import tone, write_audio
from tests.support.commands import Outcome, run_job_here
from tests.support.models import BEATS


@pytest.fixture
def run_int8(embed: Callable[..., Outcome], checkpoints: dict[str, Path], tmp_path: Path) -> Callable[..., Outcome]:
    """Run a job of BEATs in int8 over eight windows, into ``tmp_path / "out"``."""
    recording = write_audio(tmp_path / "a.wav", tone(4.0, 16_000), 16_000)
    options = (
        "--model",
        BEATS,
        "--checkpoint",
        checkpoints[BEATS],
        "--window-s",
        0.5,
        "--precision",
        "int8",
        "--batch-size",
        8,
    )
    return lambda *more: embed("--input", recording, "--output", tmp_path / "out", *options, *more)


def test_a_run_of_int8_measures_its_agreement_with_fp32(run_int8: Callable[..., Outcome], tmp_path: Path) -> None:
    # 1. The figures are told and stored.
    output = tmp_path / "out"
    done = run_int8()
    assert done.code == 0, done.stderr
    assert "int8 vectors of esp_aves2_sl_beats_all: least cosine with fp32 0.99" in done.stdout
    agreement = json.loads((output / "run.json").read_text())["agreement"]
    assert agreement["windows"] == 8
    assert 0.995 <= agreement["least"] <= agreement["median"] < 1
    assert json.loads((output / "report.json").read_text())["runs"][-1]["agreement"] == agreement

    # 2. A run that finds nothing to do keeps them.
    assert run_int8().code == 0
    assert json.loads((output / "run.json").read_text())["agreement"] == agreement

    # 3. The report shows them.
    page = tmp_path / "page.html"
    shown = run_job_here(report_main, output, "--html", page)
    assert f"least cosine with fp32 {agreement['least']:.6f}" in shown.stdout
    assert f"least cosine with fp32 {agreement['least']:.6f}" in page.read_text()


@pytest.mark.long  # tests/unit/encoding/test_agreement.py tests the refusal
def test_a_run_whose_vectors_differ_too_much_from_fp32_is_refused(
    run_int8: Callable[..., Outcome], tmp_path: Path
) -> None:
    refused = run_int8("--min-agreement", 1)
    assert refused.code == 2
    assert (
        "int8 vectors of esp_aves2_sl_beats_all differ too much from fp32: least cosine with fp32 0.9" in refused.stderr
    )
    assert "or accept the vectors with --min-agreement 0.99" in refused.stderr
    assert not list((tmp_path / "out").glob("embeddings/*.parquet"))


@pytest.mark.parametrize("value", ["-0.1", "1.1", "high"])
def test_a_limit_that_is_no_cosine_is_refused(value: str, embed: Callable[..., Outcome], tmp_path: Path) -> None:
    refused = embed("--input", tmp_path, "--output", tmp_path / "out", f"--min-agreement={value}")
    assert refused.code == 2
    assert "--min-agreement" in refused.stderr
