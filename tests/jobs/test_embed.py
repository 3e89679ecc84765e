"""jobs.embed as a user runs it, with real files, a real Ray, and real models with seeded weights."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from embedding.output.store import embeddings_schema
from local_ray import ray_of
from tests.support import reference
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, Outcome, environment, run_embed
from tests.support.models import BEATS, EFFICIENTNET

Embed = Callable[..., Outcome]
WINDOW_S, HOP_S = 2.0, 1.0
MODELS = [BEATS, EFFICIENTNET]


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings in mono and stereo, at 16, 44.1 and 48 kHz, shorter and longer than a window."""
    folder = tmp_path_factory.mktemp("archive")
    write_audio(folder / "mono 16k.wav", tone(4.0, 16_000, 300), 16_000)
    write_audio(folder / "site 1" / "mono 44k.flac", tone(3.31, 44_100, 700, seed=1), 44_100)
    write_audio(folder / "site 1" / "STEREO 48k.WAV", tone(2.5, 48_000, 1100, channels=2, seed=2), 48_000)
    write_audio(folder / "site 2" / "stéréo #16k.flac", tone(2.0, 16_000, 1500, channels=2, seed=3), 16_000)
    write_audio(folder / "site 2" / "short 48k.wav", tone(0.7, 48_000, 2000, seed=4), 48_000)
    (folder / "site 2" / "notes.txt").write_text("rain")
    (folder / "site 2" / "._hidden.wav").write_text("resource fork")
    return folder


@pytest.fixture(scope="module")
def outputs(
    archive: Path, embed: Embed, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Path, Outcome]]:
    """A function that embeds the archive with a model in a precision, and returns the output and the outcome.

    A run with the same model and precision happens only once.
    """
    results: dict[tuple[str, str], tuple[Path, Outcome]] = {}

    def run(model: str, precision: str = "fp32") -> tuple[Path, Outcome]:
        if (model, precision) not in results:
            output = tmp_path_factory.mktemp("output") / "out"
            outcome = embed(
                *("--input", archive, "--output", output, "--model", model, "--checkpoint", checkpoints[model]),
                *("--window-s", WINDOW_S, "--hop-s", HOP_S, "--precision", precision, "--batch-size", 4),
                *("--actors", 1, "--shard-rows", 6),
            )
            assert outcome.code == 0, outcome.stderr
            results[model, precision] = output, outcome
        return results[model, precision]

    return run


@pytest.mark.parametrize("model", MODELS)
def test_stored_vectors_match_the_reference_loop(
    model: str,
    archive: Path,
    outputs: Callable[..., tuple[Path, Outcome]],
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    output, _ = outputs(model)
    rows = (
        pq.read_table(output / "embeddings").sort_by([("file", "ascending"), ("window_index", "ascending")]).to_pylist()
    )
    network = reference.load(model, checkpoints[model], tmp_path)
    expected = [
        (str(path), index, window)
        for path in sorted(archive.rglob("*"), key=str)
        if path.suffix.lower() in (".wav", ".flac") and not path.name.startswith(".")
        for index, window in enumerate(reference.windows(path, 16_000, WINDOW_S, HOP_S))
    ]
    assert [(row["file"], row["window_index"]) for row in rows] == [(file, index) for file, index, _ in expected]
    errors = []
    for row, (_, _, (start_s, end_s, samples)) in zip(rows, expected, strict=True):
        assert (row["start_time"], row["end_time"]) == (start_s, end_s)
        vector = reference.embed(network, samples)
        errors.append(np.linalg.norm(np.array(row["embedding"]) - vector) / np.linalg.norm(vector))
    print(f"{model}: {len(rows)} windows, largest relative error {max(errors):.2e}")  # noqa: T201 — for the record
    assert max(errors) <= 1e-5


# tests/unit/encoding/test_openvino_graph.py and test_encoder.py test both models in bf16, too.
@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_bf16_vectors_have_the_direction_of_fp32_vectors(
    model: str, outputs: Callable[..., tuple[Path, Outcome]]
) -> None:
    fp32, bf16 = (
        np.stack(
            pq.read_table(outputs(model, precision)[0] / "embeddings")
            .sort_by([("file", "ascending"), ("window_index", "ascending")])["embedding"]
            .to_numpy()
        )
        for precision in ("fp32", "bf16")
    )
    cosine = (fp32 * bf16).sum(1) / np.linalg.norm(fp32, axis=1) / np.linalg.norm(bf16, axis=1)
    print(f"{model}: smallest cosine {cosine.min():.6f}")  # noqa: T201 — for the record
    assert cosine.min() >= 0.999


def test_every_window_is_stored_once(archive: Path, outputs: Callable[..., tuple[Path, Outcome]]) -> None:
    output, _ = outputs(EFFICIENTNET)
    table = pq.read_table(output / "embeddings").to_pandas()
    assert not table.duplicated(["file_id", "window_index"]).any()
    counts = table.groupby("file").agg(rows=("file", "size"), n_windows=("n_windows", "first"))
    assert (counts["rows"] == counts["n_windows"]).all()
    by_name = {Path(file).name: rows for file, rows in counts["rows"].items()}  # type: ignore[arg-type]
    assert by_name == {
        "mono 16k.wav": 4, "mono 44k.flac": 4, "STEREO 48k.WAV": 3, "stéréo #16k.flac": 2, "short 48k.wav": 1,
    }  # fmt: skip


def test_common_readers_open_the_output_without_ray(outputs: Callable[..., tuple[Path, Outcome]]) -> None:
    output, _ = outputs(EFFICIENTNET)
    shards = sorted((output / "embeddings").glob("*.parquet"))
    assert len(shards) >= 2  # --shard-rows 6 of 14 windows
    assert all(pq.read_schema(shard).equals(embeddings_schema(1280)) for shard in shards)
    pattern = str(output / "embeddings" / "*.parquet")
    counts = duckdb.execute(f"select count(*), any_value(len(embedding)) from '{pattern}'").fetchall()
    assert counts == [(14, 1280)]
    frame = pl.read_parquet(pattern)
    assert frame["embedding"].dtype == pl.Array(pl.Float32, 1280)
    vectors = np.stack(pd.read_parquet(output / "embeddings")["embedding"])  # type: ignore[arg-type]
    assert vectors.shape == (14, 1280)
    assert np.isfinite(vectors).all()


def test_the_terminal_shows_settings_counts_and_a_command_to_read_the_output(
    outputs: Callable[..., tuple[Path, Outcome]],
) -> None:
    output, outcome = outputs(EFFICIENTNET)
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("avex-batch 0.1.0 · esp_aves2_effnetb0_all · 16 kHz · window 2 s, hop 1 s · fp32")
    assert any(line.startswith("5 recordings, ") and "ignored: 1 .txt" in line for line in lines)
    assert any(
        line.startswith("done in ") and "5 of 5 recordings embedded and saved · 14 windows in " in line
        for line in lines
    )
    assert f"""  {sys.executable} -c "import pandas; print(pandas.read_parquet('{output}/embeddings'))\"""" in lines
    assert outcome.stderr == ""  # messages of Ray and avex are hidden


def test_run_json_and_report_json_are_stored(outputs: Callable[..., tuple[Path, Outcome]]) -> None:
    output, _ = outputs(EFFICIENTNET)
    run, report = (json.loads((output / name).read_text()) for name in ("run.json", "report.json"))
    assert run["settings"]["model"] == EFFICIENTNET
    assert run["settings"]["checkpoint_digest"].startswith("sha256:")
    assert {"avex", "torch", "ray", "soxr", "python"} <= run["versions"].keys()
    assert report["state"] == "complete"
    assert report["recordings"] == {
        "listed": 5, "already_done": 0, "embedded": 5, "failed": 0, "failed_before": 0, "changed": 0, "unchanged": 0,
        "balanced": True,
    }  # fmt: skip
    assert report["windows"] == {"expected": 14, "stored": 14, "repeated": 0}
    audio_s = 4.0 + 3.31 + 2.5 + 2.0 + 0.7
    assert report["audio_s"]["listed_estimate"] == pytest.approx(audio_s, rel=0.5)
    assert report["output"] == {
        "recordings": 5, "incomplete": 0, "failed": 0, "windows": 14, "repeated": 0,
        "shards": len(list((output / "embeddings").iterdir())), "audio_s": pytest.approx(audio_s),
    }  # fmt: skip
    (run,) = report["runs"]
    assert (run["state"], run["windows_encoded"], run["windows_written"]) == ("complete", 14, 14)
    assert run["audio_decoded_s"] == pytest.approx(audio_s)
    assert run["audio_encoded_s"] == run["audio_decoded_s"]  # overlapping windows count once
    for shares in (run["busy_s"], run["busy_share"]):
        assert {"decode", "encode", "write"} == shares.keys()
    assert 0 < run["first_window_after_s"] < run["wall_s"]
    timeline_s = run["timeline_s"]
    assert list(timeline_s.values()) == sorted(timeline_s.values())
    assert [step for step in timeline_s if not step.startswith(("first_", "last_"))] == [
        "imported", "listed", "ray", "planned", "embedded",
    ]  # fmt: skip
    assert timeline_s.keys() >= {"first_encoder", "first_audio", "first_window", "last_window", "last_shard"}


def test_the_same_command_again_embeds_only_new_recordings(embed: Embed, tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav", tone(2.0, 16_000), 16_000)
    command = (
        *("--input", tmp_path / "in", "--output", tmp_path / "out", "--model", EFFICIENTNET, "--actors", 1),
        *("--checkpoint", "random", "--window-s", 1),
    )
    assert embed(*command).code == 0
    again = embed(*command)
    assert again.code == 0
    assert "1 embedded before, 0 to do" in again.stdout
    write_audio(tmp_path / "in" / "b.wav", tone(1.0, 16_000), 16_000)
    more = embed(*command)
    assert "1 embedded before, 1 to do" in more.stdout
    files = pq.read_table(tmp_path / "out" / "embeddings")["file"].to_pylist()
    assert sorted(Path(file).name for file in files) == ["a.wav", "a.wav", "b.wav"]
    other = embed(*command[:-1], 0.5)
    assert other.code == 2
    assert "window_s was 1.0, is 0.5" in other.stderr


# Starting a separate Ray takes half a minute.
@pytest.mark.long
def test_one_core_is_enough(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav", tone(3.0, 16_000), 16_000)
    with ray_of(1) as address:
        outcome = run_embed(
            *("--input", tmp_path / "in", "--output", tmp_path / "out", "--model", EFFICIENTNET),
            *("--checkpoint", "random", "--window-s", 1, "--batch-size", 1),
            env={"RAY_ADDRESS": address},
        )
    assert outcome.code == 0, outcome.stderr
    assert len(pq.read_table(tmp_path / "out" / "embeddings")) == 3


RUN_IN_SHORT_LEGS = """
import sys
from embedding.planning import work_sizes
from jobs.embed import main

work_sizes.LEG_RECORDINGS = 2
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long  # tests/unit/planning tests the division into legs
def test_a_run_in_several_legs_counts_all_recordings(ray_address: str, tmp_path: Path) -> None:
    for number in range(3):
        write_audio(tmp_path / "in" / f"{number}.wav", tone(3.0, 16_000, seed=number), 16_000)
    (tmp_path / "in" / "9.wav").write_text("not audio")
    options = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--model", EFFICIENTNET, "--window-s", 1)
    options += ("--checkpoint", "random", "--actors", 1, "--max-failure-rate", 0.5)
    command = [sys.executable, "-c", RUN_IN_SHORT_LEGS, *map(str, options)]
    env = environment(RAY_ADDRESS=ray_address)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 of 4 recordings embedded and saved · 1 failed: " in done.stdout
    names = [path.stem.split("-") for path in (tmp_path / "out" / "embeddings").glob("*.parquet")]
    assert sorted(leg for _, leg, _ in names) == ["0", "1"]
    rows = pq.read_table(tmp_path / "out" / "embeddings").to_pylist()
    assert {(Path(row["file"]).name, row["window_index"]) for row in rows} == {
        (f"{number}.wav", index) for number in range(3) for index in range(3)
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["recordings"]["balanced"]
    assert report["runs"][-1]["done_again"] == {"decode_tasks": 0, "encoders": 0, "windows": 0}


@pytest.mark.long  # tests/unit/encoding tests the error, and how it travels
def test_weights_of_another_model_are_refused_in_one_line(
    embed: Embed, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    write_audio(tmp_path / "a.wav", tone(1.0, 16_000), 16_000)
    outcome = embed(
        *("--input", tmp_path / "a.wav", "--output", tmp_path / "out", "--model", BEATS, "--actors", 1),
        *("--checkpoint", checkpoints[EFFICIENTNET]),
    )
    assert outcome.code == 2
    assert len(outcome.stderr.splitlines()) == 1
    assert "does not fit esp_aves2_sl_beats_all: 0 of" in outcome.stderr


def test_a_missing_gpu_is_refused(embed: Embed, tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(1.0, 16_000), 16_000)
    outcome = embed("--input", tmp_path, "--output", tmp_path / "out", "--checkpoint", "random", "--device", "cuda")
    assert outcome.code == 2
    assert outcome.stderr.startswith("avex-batch: --device: cuda needs a GPU, and Ray sees none")


def test_an_input_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").touch()
    outcome = run_embed("--input", tmp_path / "in", "--output", tmp_path / "out", env={})
    assert outcome.code == 2
    assert "no recording found" in outcome.stderr
    assert "ignored: 1 .txt" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_and_writes_nothing(archive: Path, tmp_path: Path) -> None:
    outcome = run_embed(
        *("--input", archive, "--output", tmp_path / "out", "--checkpoint", "random", "--dry-run"), env={}
    )
    assert outcome.code == 0
    assert "5 recordings" in outcome.stdout
    assert "dry run, nothing written: about 1" in outcome.stdout  # 12.5 s of audio
    assert not (tmp_path / "out").exists()
