"""The same command again: stored windows stay, missing and changed recordings are embedded, the report counts both."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from embedding.config import make_config
from embedding.listing.listing import list_recordings
from embedding.output.store import Store
from embedding.request import Request
from embedding.schema.failures import Failure
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, Outcome, environment
from tests.support.models import EFFICIENTNET

Embed = Callable[..., Outcome]

OPTIONS = ("--model", EFFICIENTNET, "--checkpoint", "random", "--window-s", 1, "--actors", 1)


def sorted_rows(output: Path) -> pd.DataFrame:
    return pq.read_table(output / "embeddings").to_pandas().sort_values(["file", "window_index"], ignore_index=True)


def read_report(output: Path) -> dict[str, dict[str, object]]:
    return json.loads((output / "report.json").read_text())


def read_ids(folder: Path) -> dict[str, int]:
    """Return the identities of the recordings in a folder, by name."""
    rows = list_recordings([str(folder)]).recordings.to_pylist()
    return {Path(row["file"]).name: row["file_id"] for row in rows}


def test_a_second_run_embeds_new_and_changed_recordings_and_keeps_deleted_ones(embed: Embed, tmp_path: Path) -> None:
    archive, output = tmp_path / "in", tmp_path / "out"
    for name, seed in (("same", 1), ("touched", 2), ("changed", 3), ("deleted", 4)):
        write_audio(archive / f"{name}.wav", tone(2.5, 16_000, seed=seed), 16_000)
    (archive / "repaired.wav").write_text("not audio")
    command = ("--input", archive, "--output", output, *OPTIONS, "--max-failure-rate", 0.5)
    assert embed(*command).code == 0
    before, ids_before = sorted_rows(output), read_ids(archive)

    os.utime(archive / "touched.wav")
    write_audio(archive / "changed.wav", tone(1.5, 16_000, seed=30), 16_000)
    (archive / "deleted.wav").unlink()
    write_audio(archive / "repaired.wav", tone(1.0, 16_000, seed=6), 16_000)
    write_audio(archive / "new.wav", tone(1.0, 16_000, seed=5), 16_000)
    again = embed(*command)
    assert again.code == 0, again.stderr
    after, ids = sorted_rows(output), read_ids(archive)

    names = after["file"].map(lambda file: Path(file).stem)
    assert names.value_counts().to_dict() == {
        "same": 3, "touched": 3, "changed": 2, "deleted": 3, "new": 1, "repaired": 1,
    }  # fmt: skip
    assert not after.duplicated(["file_id", "window_index"]).any()
    listed = after[names != "deleted"]
    assert dict(zip([Path(file).name for file in listed["file"]], listed["file_id"], strict=True)) == ids
    assert ids["touched.wav"] != ids_before["touched.wav"]
    for name in ("same", "touched", "deleted"):
        former = before[before["file"].str.endswith(f"{name}.wav")]
        assert np.array_equal(np.stack(former["embedding"]), np.stack(after[names == name]["embedding"]))  # type: ignore[arg-type]

    assert "2 of them were embedded before with another size or time" in again.stdout
    assert "1 again, because they had changed; 1 had a new time or size, but the same audio)" in again.stdout
    report = read_report(output)
    assert report["recordings"] == {
        "listed": 5, "already_done": 2, "embedded": 3, "failed": 0, "failed_before": 0, "changed": 1, "unchanged": 1,
        "balanced": True,
    }  # fmt: skip
    assert report["output"]["recordings"] == 6
    assert not list((output / "failures").glob("*"))  # the failure of repaired.wav was removed
    assert [run["state"] for run in report["runs"]] == ["complete", "complete"]  # type: ignore[index]


def test_only_the_missing_windows_of_a_half_done_recording_are_embedded(embed: Embed, tmp_path: Path) -> None:
    archive, output = tmp_path / "in", tmp_path / "out"
    write_audio(archive / "a.wav", tone(9.5, 16_000), 16_000)
    command = ("--input", archive, "--output", output, *OPTIONS, "--batch-size", 2, "--shard-rows", 2)
    assert embed(*command).code == 0
    whole = sorted_rows(output)
    shards = sorted((output / "embeddings").iterdir())
    assert len(shards) == 5
    shards[1].unlink()
    shards[3].unlink()
    (output / "embeddings" / f".tmp-{'01' * 16}-dead.parquet").write_bytes(b"half a shard")
    again = embed(*command)
    assert again.code == 0, again.stderr
    repaired = sorted_rows(output)
    assert repaired.drop(columns="embedding").equals(whole.drop(columns="embedding"))
    assert np.allclose(np.stack(repaired["embedding"]), np.stack(whole["embedding"]), atol=1e-6)  # type: ignore[arg-type]
    assert read_report(output)["runs"][-1]["windows_written"] == 4  # type: ignore[index]
    assert not list(output.rglob(".tmp-*"))


def test_retry_failed_embeds_failed_recordings_and_removes_their_failures(embed: Embed, tmp_path: Path) -> None:
    archive, output = tmp_path / "in", tmp_path / "out"
    write_audio(archive / "a.wav", tone(2.0, 16_000), 16_000)
    (archive / "b.wav").write_text("not audio")
    a, b = (read_ids(archive)[name] for name in ("a.wav", "b.wav"))
    # The output of a former run that could not read a.wav from the storage.
    store = Store(str(output), "{}")
    store.write_failures([Failure(str(archive / "a.wav"), a, 1, "decode", "io", "cannot be read: time-out")], "former")
    command = ("--input", archive, "--output", output, *OPTIONS, "--max-failure-rate", 1)
    first = embed(*command)
    assert "1 failed before (--retry-failed tries them again), 1 to do" in first.stdout
    assert {row["file_id"]: row["kind"] for row in pq.read_table(output / "failures").to_pylist()} == {
        a: "io", b: "corrupt",
    }  # fmt: skip
    again = embed(*command, "--retry-failed")
    assert again.code == 0
    assert [row["file_id"] for row in pq.read_table(output / "failures").to_pylist()] == [b]
    assert len(sorted_rows(output)) == 2
    recordings = read_report(output)["recordings"]
    assert (recordings["embedded"], recordings["failed"], recordings["balanced"]) == (1, 1, True)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--window-s", 2), "window_s was 1.0, is 2.0"),
        (("--hop-s", 0.5), "hop_s was 1.0, is 0.5"),
        (("--tail", "drop"), "tail was pad, is drop"),
        (("--pooling", "max"), "pooling was mean, is max"),
        (("--precision", "bf16"), "precision was fp32, is bf16"),
        (("--model", "esp_aves2_sl_beats_all"), f"model was {EFFICIENTNET}, is esp_aves2_sl_beats_all"),
        (("--model", "esp_aves2_sl_beats_all", "--mask-padding"), "mask_padding was False, is True"),
    ],
)
def test_other_settings_are_refused_before_any_work(
    options: tuple[object, ...], difference: str, embedded: Path, embed: Embed
) -> None:
    before = {path: path.stat().st_mtime_ns for path in embedded.rglob("*")}
    others = OPTIONS[2:] if "--model" in options else OPTIONS
    outcome = embed("--input", embedded.parent / "in", "--output", embedded, *others, *options)
    assert outcome.code == 2
    assert difference in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in embedded.rglob("*")} == before


def test_another_checkpoint_is_refused(embedded: Path, embed: Embed, checkpoints: dict[str, Path]) -> None:
    others = [checkpoints[EFFICIENTNET] if option == "random" else option for option in OPTIONS]
    outcome = embed("--input", embedded.parent / "in", "--output", embedded, *others)
    assert outcome.code == 2
    assert "checkpoint_digest was random, seed 0, is sha256:" in outcome.stderr


@pytest.fixture(scope="module")
def embedded(embed: Embed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a small run; its recordings are in the folder ``in`` beside it."""
    folder = tmp_path_factory.mktemp("guarded")
    write_audio(folder / "in" / "a.wav", tone(2.0, 16_000), 16_000)
    assert embed("--input", folder / "in", "--output", folder / "out", *OPTIONS).code == 0
    return folder / "out"


def test_jobs_report_counts_the_shards_and_names_disagreements(embedded: Path, tmp_path: Path) -> None:
    output = shutil.copytree(embedded, tmp_path / "out")

    def report(*options: object) -> Outcome:
        command = [sys.executable, "-m", "jobs.report", *map(str, options)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        return Outcome(done.returncode, done.stdout, done.stderr)

    consistent = report(output)
    assert consistent.code == 0, consistent.stderr
    assert consistent.stdout.startswith("1 recording embedded, 0 failed · 2 windows in 1 shard · 2 s of audio")
    assert "checked: stored data matches report.json" in consistent.stdout
    shard = next((output / "embeddings").iterdir())
    shutil.copy(shard, shard.with_name("again.parquet"))
    repeated = report(output)
    assert repeated.code == 1
    assert "2 repeated rows: removed by the next run" in repeated.stdout
    assert json.loads(report(output, "--json").stdout)["output"]["repeated"] == 2
    (output / "report.json").unlink()
    rebuilt = report(output)
    assert rebuilt.code == 1
    assert "there was no report.json" in rebuilt.stdout
    assert read_report(output)["output"]["windows"] == 2
    for refused, reason in (
        (report(tmp_path / "nowhere"), "nowhere"),
        (report(output, "--jsno"), "unknown option --jsno (did you mean '--json'?)"),
        (report(), "the following arguments are required: OUTPUT"),
    ):
        assert (refused.code, len(refused.stderr.splitlines())) == (2, 1)
        assert reason in refused.stderr


def test_a_run_removes_repeated_rows(embedded: Path, embed: Embed, tmp_path: Path) -> None:
    output = shutil.copytree(embedded, tmp_path / "out")
    whole = sorted_rows(output)
    shard = next((output / "embeddings").iterdir())
    shutil.copy(shard, shard.with_name("again.parquet"))
    assert embed("--input", embedded.parent / "in", "--output", output, *OPTIONS).code == 0
    assert sorted_rows(output).drop(columns="embedding").equals(whole.drop(columns="embedding"))


@pytest.mark.long  # tests/unit/output/test_claim.py tests the claims
def test_a_second_run_on_an_output_is_refused_until_the_first_one_is_dead(
    embed: Embed, ray_address: str, tmp_path: Path
) -> None:
    archive, output = tmp_path / "in", tmp_path / "out"
    for seed in range(40):
        write_audio(archive / f"{seed}.wav", tone(20.0, 16_000, seed=seed), 16_000)
    command = ("--input", archive, "--output", output, *OPTIONS, "--shard-rows", 40)
    first = subprocess.Popen(
        [sys.executable, "-m", "jobs.embed", *map(str, command)],
        cwd=ROOT,
        env=environment(RAY_ADDRESS=ray_address),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for((output / "claim.json").exists, first)
    claim = json.loads((output / "claim.json").read_text())
    refused = embed(*command)
    assert refused.code == 2
    assert f"is being written by another run (process {first.pid} on {claim['host']}, since " in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    wait_for(lambda: len(list(output.glob("embeddings/*.parquet"))) >= 2, first)
    first.kill()
    first.wait()
    assert (output / "claim.json").exists()
    resumed = embed(*command)
    assert resumed.code == 0, resumed.stderr
    rows = sorted_rows(output)
    assert len(rows) == 800
    assert not rows.duplicated(["file_id", "window_index"]).any()
    assert not (output / "claim.json").exists()
    assert read_report(output)["runs"][-1]["state"] == "complete"  # type: ignore[index]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], limit_s: float = 120.0) -> None:
    """Wait until ``condition`` holds; fail when the process ends first, or after ``limit_s``."""
    until = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)


def test_comparing_a_request_with_an_output_starts_no_process_and_writes_nothing(embedded: Path) -> None:
    config = make_config({"input": [str(embedded.parent / "in")], "output": str(embedded)} | GUARDED)
    before = {path: path.stat().st_mtime_ns for path in embedded.rglob("*")}
    children = psutil.Process().children()
    request = Request.of(config)
    inventory, backlog = request.compare(request.targets[0], thorough=True)
    assert len(backlog.todo) == 0
    assert len(inventory.shards) == 1
    assert psutil.Process().children() == children
    assert {path: path.stat().st_mtime_ns for path in embedded.rglob("*")} == before


GUARDED: dict[str, object] = {"model": EFFICIENTNET, "checkpoint": "random", "window_s": 1}
