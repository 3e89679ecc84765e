"""Searching an output, as a user does."""

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

from embedding.errors import RunError
from embedding.output.store import embeddings_schema
from embedding.search.nearest_windows import best, nearest
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
    """Recordings of 5 s of noise, each with a tone of its own in its third second."""
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


def rows(outcome: Outcome) -> list[dict]:
    assert (outcome.code, outcome.stderr) == (0, "")
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def cosines(output: Path, query: np.ndarray, column: str = "embedding") -> pa.Table:
    """Every window with its cosine, the nearest first: NumPy over all of them."""
    table = pq.read_table(output / "embeddings")
    vectors = np.stack(table[column].to_numpy()).astype(np.float64)
    scores = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    return table.append_column("score", pa.array(scores)).sort_by([("score", "descending")])


def test_the_nearest_to_a_stored_window_are_numpys(search: Search, archive: Path, output: Path) -> None:
    table = pq.read_table(output / "embeddings").to_pylist()
    own = next(row for row in table if row["file"].endswith("low.wav") and row["window_index"] == 2)
    found = rows(search(output, "--like", archive / "low.wav", "--at", 2.5, "--k", 6, "--json"))
    expected = cosines(output, np.array(own["embedding"], np.float64)).to_pylist()
    assert (expected[0]["file"], expected[0]["window_index"]) == (own["file"], 2)
    assert len(found) == 6
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected[1:7]], abs=1e-6)
    assert {(row["file"], row["window_index"]) for row in found[:3]} <= {
        (row["file"], row["window_index"]) for row in expected[1:8]
    }
    assert set(found[0]) == {*embeddings_schema(1).names, "score"} - {"embedding"}


def test_an_inner_layer_may_say_what_is_near(
    search: Search, archive: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(output / "embeddings")
    (layer,) = set(table.column_names) - set(embeddings_schema(1).names)
    own = next(row for row in table.to_pylist() if row["file"].endswith("low.wav") and row["window_index"] == 2)
    expected = [row["score"] for row in cosines(output, np.array(own[layer], np.float64), layer).to_pylist()]
    of_embedding = [row["score"] for row in cosines(output, np.array(own["embedding"], np.float64)).to_pylist()]
    assert np.abs(np.subtract(expected, of_embedding)).max() > 1e-2  # or the other column would do
    options = ("--layer", layer, "--k", 14, "--json")
    found = rows(search(output, "--like", archive / "low.wav", "--at", 2.5, *options))
    assert [row["score"] for row in found] == pytest.approx(expected[1:], abs=1e-6)
    audio, rate_hz = sf.read(archive / "low.wav")
    sf.write(tmp_path / "call.wav", audio[2 * rate_hz : 3 * rate_hz], rate_hz)
    found = rows(search(output, "--clip", tmp_path / "call.wav", *options))
    assert (found[0]["file"], found[0]["window_index"]) == (own["file"], 2)
    assert [row["score"] for row in found] == pytest.approx(expected[:14], abs=1e-3)
    assert main([str(output), "--like", str(archive / "low.wav"), "--layer", layer[:-1]]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"has no vectors of {layer[:-1]!r} (did you mean {layer!r}?)" in said


def test_a_clip_finds_where_it_came_from_and_is_cut_out(
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
    cut, cut_hz = sf.read(clips[0])
    assert cut_hz == rate_hz
    assert np.allclose(cut, audio[2 * rate_hz : 3 * rate_hz], atol=1e-4)


def test_a_recording_that_changed_since_is_not_cut_out(
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
    assert "middle.wav: it has changed since it was embedded" in done.stderr
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
def test_what_cannot_be_searched_for_is_refused_in_one_line(
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
        ("{here}/file", "--save-clips: cannot make {here}/file: File exists"),
        ("{here}/closed", "--save-clips: cannot write into {here}/closed"),
    ],
)
def test_where_clips_cannot_go_is_said_before_the_search(
    folder: str, reason: str, unprivileged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unprivileged)
    (unprivileged / "file").write_text("")
    (unprivileged / "closed").mkdir(mode=0o555)
    assert main([str(unprivileged), "--like", "/a.wav", "--save-clips", folder.format(here=unprivileged)]) == 2
    assert capsys.readouterr().err.startswith(f"avex-batch: {reason.format(here=unprivileged)}")
    assert sorted(path.name for path in unprivileged.iterdir()) == ["closed", "file"]


def test_where_there_are_no_embeddings_nothing_is_found(search: Search, tmp_path: Path) -> None:
    done = search(tmp_path, "--like", "/a.wav")
    assert done.code == 2
    assert "holds no embeddings: write them with jobs.embed" in done.stderr


def test_an_empty_clip_is_refused_by_its_own_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path), "--clip", ""]) == 2
    assert capsys.readouterr().err.startswith("avex-batch: --clip: expected a path")


def test_a_shard_of_vectors_of_another_length_is_named(tmp_path: Path) -> None:
    write_output(str(tmp_path), {"/a/1.wav": np.ones((2, 4), np.float32)}, {}, n_shards=1)
    shard = f"{tmp_path}/embeddings/s0.parquet"
    with pytest.raises(RunError, match=f"{shard} holds vectors of 4 numbers, and the query's has 5: delete it"):
        search_shards(pa.table({"uri": [shard]}), "embedding", np.ones((1, 5), np.float32), 1)


@given(n=st.integers(1, 40), k=st.integers(1, 50), n_shards=st.integers(1, 5), seed=st.integers(0, 999))
def test_the_best_of_shards_are_the_best_of_all(n: int, k: int, n_shards: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    vectors[rng.random(n) < 0.2] = 0  # near to nothing
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
    found = best([nearest(part, query, k) for part in parts], k)
    with np.errstate(invalid="ignore"):
        scores = (vectors @ query.T / np.linalg.norm(query, axis=1) / np.linalg.norm(vectors, axis=1)[:, None]).max(1)
    scores = np.sort(np.where(np.isfinite(scores), scores, -1))[::-1]
    assert np.allclose(found["score"].to_numpy(), scores[:k], atol=1e-6)
