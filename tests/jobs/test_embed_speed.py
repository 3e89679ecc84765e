"""``--speed``: ultrasound as the model can hear it, with the times of the recording."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import embedding
from tests.support.audio import tone, write_audio
from tests.support.commands import Outcome
from tests.support.models import EFFICIENTNET

Embed = Callable[..., Outcome]
OPTIONS = ("--model", EFFICIENTNET, "--checkpoint", "random", "--actors", 1)


def rows(output: Path) -> list[tuple[float, float, float]]:
    table = pq.read_table(output / "embeddings").sort_by("start_time")
    return list(zip(*(table[name].to_pylist() for name in ("start_time", "end_time", "duration")), strict=True))


def vectors(output: Path) -> np.ndarray:
    return np.stack(pq.read_table(output / "embeddings").sort_by("start_time")["embedding"].to_numpy())


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """2.5 s at 384 kHz, with a bat's 40 kHz."""
    return tone(2.5, 384_000, 40_000.0)


def test_ultrasound_is_heard_as_the_same_samples_at_a_tenth_of_the_rate(
    samples: np.ndarray, embed: Embed, tmp_path: Path
) -> None:
    write_audio(tmp_path / "fast" / "bat.wav", samples, 384_000)
    write_audio(tmp_path / "slow" / "bat.wav", samples, 38_400)
    done = embed("--input", tmp_path / "fast", "--output", tmp_path / "a", *OPTIONS, "--window-s", 1, "--speed", 0.1)
    assert done.code == 0, done.stderr
    assert "16 kHz · window 1 s, hop 1 s · speed 0.1" in done.stdout
    assert embed("--input", tmp_path / "slow", "--output", tmp_path / "b", *OPTIONS, "--window-s", 10).code == 0
    assert rows(tmp_path / "a") == pytest.approx(np.array([(0, 1, 2.5), (1, 2, 2.5), (2, 2.5, 2.5)]))
    assert rows(tmp_path / "b") == pytest.approx(np.array([(0, 10, 25), (10, 20, 25), (20, 25, 25)]))
    assert np.array_equal(vectors(tmp_path / "a"), vectors(tmp_path / "b"))


def test_the_models_own_length_is_what_it_hears(samples: np.ndarray, embed: Embed, tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "bat.wav", samples, 384_000)
    assert embed("--input", tmp_path / "in", "--output", tmp_path / "o", *OPTIONS, "--speed", 0.1).code == 0
    assert rows(tmp_path / "o")[0] == (0, 1, 2.5)  # ten seconds, ten times slower


def test_another_speed_is_refused_for_the_same_output(samples: np.ndarray, embed: Embed, tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "bat.wav", samples, 384_000)
    command = ("--input", tmp_path / "in", "--output", tmp_path / "o", *OPTIONS, "--window-s", 1)
    assert embed(*command, "--speed", 0.1).code == 0
    done = embed(*command)
    assert (done.code, "speed was 0.1, is None" in done.stderr) == (2, True)
    assert embed(*command, "--speed", 0.1).code == 0


def test_a_clip_is_heard_at_the_speed_of_the_output(
    samples: np.ndarray, embed: Embed, connection: None, tmp_path: Path
) -> None:
    path = write_audio(tmp_path / "in" / "bat.wav", samples[: 2 * 384_000], 384_000)
    command = ("--input", tmp_path / "in", "--output", tmp_path / "o", *OPTIONS, "--window-s", 1)
    assert embed(*command, "--speed", 0.1).code == 0
    hits = embedding.open_output(tmp_path / "o").search(clip=path, k=1).to_pylist()
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "fast", "1e9"])
def test_speeds_that_make_no_sense_are_one_line(embed: Embed, tmp_path: Path, speed: str) -> None:
    done = embed("--input", tmp_path, "--output", tmp_path / "o", *OPTIONS, f"--speed={speed}")
    assert (done.code, "--speed" in done.stderr) == (2, True)
    assert len(done.stderr.splitlines()) == 1
