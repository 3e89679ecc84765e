"""Searches of an output, as a user runs them."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from embedding.errors import RequestError
from embedding.output.store import embeddings_schema
from embedding.search.nearest_windows import find_nearest, merge_hits
from embedding.search.search import search_shards
from jobs.search import main
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, Outcome, environment, run_embed
from tests.support.models import EFFICIENTNET
from tests.support.shards import write_output

Search = Callable[..., Outcome]
FREQUENCIES_HZ = {"low": 300.0, "middle": 1500.0, "high": 5000.0}


def run_search(address: str, *arguments: object) -> Outcome:
    command = [sys.executable, "-m", "jobs.search", *map(str, arguments)]
    env = environment(RAY_ADDRESS=address)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def search(ray_address: str) -> Search:
    return partial(run_search, ray_address)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 5 s of noise; each has another tone in its third second."""
    folder = tmp_path_factory.mktemp("archive")
    for seed, (name, hz) in enumerate(FREQUENCIES_HZ.items()):
        noise = 0.01 * np.random.default_rng(seed).standard_normal(5 * 48_000)
        noise[2 * 48_000 : 3 * 48_000] += tone(1.0, 48_000, hz, seed=seed)
        write_audio(folder / f"{name}.wav", np.stack([noise, noise], axis=1), 48_000)
    return folder


@pytest.fixture(scope="module")
def output(archive: Path, tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Path:
    folder = tmp_path_factory.mktemp("output")
    done = run_embed(
        *("--input", archive, "--output", folder, "--model", EFFICIENTNET, "--checkpoint", "random"),
        *("--window-s", 1, "--shard-rows", 4, "--batch-size", 4, "--actors", 1, "--layers", 3),
        env={"RAY_ADDRESS": ray_address},
    )
    assert done.code == 0, done.stderr
    return folder


def hits_of(outcome: Outcome) -> list[dict]:
    """Return the hits of a search with ``--json``."""
    assert (outcome.code, outcome.stderr) == (0, "")
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def score_all(output: Path, query: np.ndarray, column: str = "embedding") -> pa.Table:
    """Return all windows with their cosine by NumPy, the nearest first."""
    table = pq.read_table(output / "embeddings")
    vectors = np.stack(table[column].to_numpy()).astype(np.float64)
    scores = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    return table.append_column("score", pa.array(scores)).sort_by([("score", "descending")])


def test_windows_nearest_to_a_stored_window_are_those_of_numpy(search: Search, archive: Path, output: Path) -> None:
    table = pq.read_table(output / "embeddings").to_pylist()
    query = next(row for row in table if row["file"].endswith("low.wav") and row["window_index"] == 2)
    found = hits_of(search(output, "--like", archive / "low.wav", "--at", 2.5, "--k", 6, "--json"))
    expected = score_all(output, np.array(query["embedding"], np.float64)).to_pylist()
    assert (expected[0]["file"], expected[0]["window_index"]) == (query["file"], 2)
    assert len(found) == 6
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected[1:7]], abs=1e-6)
    assert {(row["file"], row["window_index"]) for row in found[:3]} <= {
        (row["file"], row["window_index"]) for row in expected[1:8]
    }
    assert set(found[0]) == {*embeddings_schema(1).names, "score"} - {"embedding"}


def test_vectors_of_an_inner_layer_are_compared(
    search: Search, archive: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(output / "embeddings")
    (layer,) = set(table.column_names) - set(embeddings_schema(1).names)
    query = next(row for row in table.to_pylist() if row["file"].endswith("low.wav") and row["window_index"] == 2)
    expected = [row["score"] for row in score_all(output, np.array(query[layer], np.float64), layer).to_pylist()]
    with_embedding = [row["score"] for row in score_all(output, np.array(query["embedding"], np.float64)).to_pylist()]
    assert np.abs(np.subtract(expected, with_embedding)).max() > 1e-2  # otherwise the wrong column would do
    options = ("--layer", layer, "--k", 14, "--json")
    found = hits_of(search(output, "--like", archive / "low.wav", "--at", 2.5, *options))
    assert [row["score"] for row in found] == pytest.approx(expected[1:], abs=1e-6)
    audio, rate_hz = sf.read(archive / "low.wav")
    sf.write(tmp_path / "call.wav", audio[2 * rate_hz : 3 * rate_hz], rate_hz)
    found = hits_of(search(output, "--clip", tmp_path / "call.wav", *options))
    assert (found[0]["file"], found[0]["window_index"]) == (query["file"], 2)
    assert [row["score"] for row in found] == pytest.approx(expected[:14], abs=1e-3)
    assert main([str(output), "--like", str(archive / "low.wav"), "--layer", layer[:-1]]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert f"has no vectors of {layer[:-1]!r} (did you mean {layer!r}?)" in stderr


def test_a_clip_finds_its_own_recording_and_hits_are_saved_as_clips(
    search: Search, archive: Path, output: Path, tmp_path: Path
) -> None:
    audio, rate_hz = sf.read(archive / "high.wav")
    sf.write(tmp_path / "call.wav", audio[2 * rate_hz : 3 * rate_hz], rate_hz)
    done = search(output, "--clip", tmp_path / "call.wav", "--k", 3, "--save-clips", tmp_path / "clips")
    assert (done.code, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    rank, score, times, file = first.split()
    assert (rank, times, file) == ("1", "0:02.0–0:03.0", str(archive / "high.wav"))
    assert float(score) > 0.99
    assert last == f"3 clips in {tmp_path / 'clips'}"
    clips = sorted((tmp_path / "clips").iterdir())
    assert [clip.name[:3] for clip in clips] == ["001", "002", "003"]
    assert clips[0].name.endswith("_high_2.0s.wav")
    saved, saved_rate_hz = sf.read(clips[0])
    assert saved_rate_hz == rate_hz
    assert np.allclose(saved, audio[2 * rate_hz : 3 * rate_hz], atol=1e-4)


def test_no_clip_is_saved_of_a_recording_that_has_changed(
    search: Search, output: Path, archive: Path, tmp_path: Path
) -> None:
    path = archive / "middle.wav"
    audio, rate_hz = sf.read(path)
    try:
        sf.write(path, audio[: 2 * rate_hz], rate_hz)
        done = search(output, "--like", archive / "low.wav", "--at", 1, "--k", 14, "--save-clips", tmp_path / "clips")
    finally:
        sf.write(path, audio, rate_hz)
    assert done.code == 1
    assert done.stderr.startswith("avex-batch: 3 of 14 clips could not be cut out: ")
    assert "middle.wav: the recording has changed since it was embedded" in done.stderr
    assert len(list((tmp_path / "clips").iterdir())) == 11


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "search for either --clip FILE or --like FILE --at SECONDS"),
        (("--clip", "a", "--like", "b"), "search for either --clip FILE or --like FILE --at SECONDS"),
        (("--like", "/nowhere.wav"), "--like: no window of /nowhere.wav is stored"),
        (
            ("--like", "{archive}/low.wav", "--at", "7"),
            "--at: no window holds 7 s of {archive}/low.wav, whose windows",
        ),
        (
            ("--like", "{archive}/low.wav", "--k", "0"),
            "--k: expected a whole number of at least 1 and at most 1,000,000, got '0'",
        ),
        (("--clip", "{archive}/text.txt"), "--clip: {archive}/text.txt: corrupt: "),
        (("--clip", "{archive}"), "--clip: {archive} is not one recording"),
        (("--clip", "{archive}/none.wav"), "--clip: {archive}/none.wav does not exist"),
        (
            ("--like", "a", "--save-clips", "{archive}/text.txt"),
            "--save-clips: cannot make {archive}/text.txt: File exi",
        ),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_in_one_line(
    arguments: tuple[str, ...], reason: str, search: Search, archive: Path, output: Path
) -> None:
    (archive / "text.txt").write_text("not audio")
    done = search(output, *(argument.format(archive=archive) for argument in arguments))
    assert done.code == 2
    assert done.stderr.startswith(f"avex-batch: {reason.format(archive=archive)}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("s3://bucket/hits", "--save-clips: s3://bucket/hits is no folder on this machine: "),
        ("http://host/hits", "--save-clips: http:// is not supported"),
        ("", "--save-clips: expected a path"),
        ("{cwd}/file", "--save-clips: cannot make {cwd}/file: File exists"),
        ("{cwd}/closed", "--save-clips: cannot write into {cwd}/closed"),
    ],
)
def test_a_folder_that_cannot_take_clips_is_refused_before_the_search(
    folder: str, reason: str, unprivileged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unprivileged)
    (unprivileged / "file").write_text("")
    (unprivileged / "closed").mkdir(mode=0o555)
    assert main([str(unprivileged), "--like", "/a.wav", "--save-clips", folder.format(cwd=unprivileged)]) == 2
    assert capsys.readouterr().err.startswith(f"avex-batch: {reason.format(cwd=unprivileged)}")
    assert sorted(path.name for path in unprivileged.iterdir()) == ["closed", "file"]


def test_an_output_without_embeddings_is_refused(search: Search, tmp_path: Path) -> None:
    done = search(tmp_path, "--like", "/a.wav")
    assert done.code == 2
    assert "holds no embeddings: write them with jobs.embed" in done.stderr


def test_an_empty_clip_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path), "--clip", ""]) == 2
    assert capsys.readouterr().err.startswith("avex-batch: --clip: expected a path")


def test_a_shard_with_vectors_of_another_length_is_named(tmp_path: Path) -> None:
    write_output(str(tmp_path), {"/a/1.wav": np.ones((2, 4), np.float32)}, {}, n_shards=1)
    shard = f"{tmp_path}/embeddings/s0.parquet"
    with pytest.raises(
        RequestError, match=f"{shard} holds vectors of 4 numbers, but those of the query have 5: delete"
    ):
        search_shards(pa.table({"uri": [shard]}), "embedding", np.ones((1, 5), np.float32), 1)


@given(n=st.integers(1, 40), k=st.integers(1, 50), n_shards=st.integers(1, 5), seed=st.integers(0, 999))
def test_merged_hits_of_shards_are_the_nearest_of_all_windows(n: int, k: int, n_shards: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    vectors[rng.random(n) < 0.2] = 0  # near to no query
    query = rng.standard_normal((2, 4)).astype(np.float32)
    number = np.arange(n)
    columns = {
        "file": [f"{i:02d}.wav" for i in number],
        "file_id": number,
        "window_index": number,
        "n_windows": number,
        "start_time": number * 1.0,
        "end_time": number * 1.0,
        "sample_rate": number,
        "channels": number,
        "duration": number * 1.0,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4),
    }
    table = pa.table(columns).cast(embeddings_schema(4))
    parts = [table.take(pa.array(at)) for at in np.array_split(rng.permutation(n), n_shards) if len(at)]
    hits = merge_hits([find_nearest(part, query, k) for part in parts], k)
    with np.errstate(invalid="ignore"):
        scores = (vectors @ query.T / np.linalg.norm(query, axis=1) / np.linalg.norm(vectors, axis=1)[:, None]).max(1)
    scores = np.sort(np.where(np.isfinite(scores), scores, -1))[::-1]
    assert np.allclose(hits["score"].to_numpy(), scores[:k], atol=1e-6)
