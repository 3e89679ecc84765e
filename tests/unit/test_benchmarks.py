"""Functions of the benchmarks: ratios, tables, archives, and the measurement of a command."""

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

import archive
import harness
import tables
import vectors
from alone import combined_rate


def test_a_spread_has_median_minimum_and_maximum() -> None:
    spread = tables.Spread.of([3.0, 1.0, 2.0, 10.0])
    assert (spread.median, spread.low, spread.high) == (2.5, 1.0, 10.0)
    assert spread.text() == "2.5 (1.0–10.0)"
    assert tables.Spread.of([1.234]).text(".2f") == "1.23"


def test_ratios_are_computed_per_round() -> None:
    """A round on a machine of half the speed does not change the ratio."""
    assert tables.ratios([10.0, 20.0, 14.0], [5.0, 10.0, 7.0]) == tables.Spread(2.0, 2.0, 2.0, 3)


def test_slopes_exclude_the_common_time() -> None:
    assert tables.slopes([12.0, 13.0], [22.0, 33.0], difference=10.0) == [1.0, 2.0]
    with pytest.raises(ValueError, match="no longer than the short one"):
        tables.slopes([12.0], [11.0], difference=10.0)


def test_combined_rate_of_both_stages_on_the_same_cores() -> None:
    assert combined_rate(100.0, 300.0) == pytest.approx(75.0)


def test_a_table_aligns_numbers_right() -> None:
    text = tables.markdown(["", "wall s"], [["this job", "12.0 (11.0–13.0)"], ["a loop", "–"]])
    assert text.splitlines() == [
        "|  | wall s |",
        "| --- | ---: |",
        "| this job | 12.0 (11.0–13.0) |",
        "| a loop | – |",
    ]


def test_each_round_starts_with_another_task() -> None:
    order: list[str] = []
    tasks = {name: lambda name=name: order.append(name) for name in "abc"}
    results = harness.run_rounds(tasks, 3)
    assert "".join(order) == "abcbcacab"
    assert {name: len(values) for name, values in results.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_measurement_of_a_command_includes_its_child_processes(tmp_path: Path) -> None:
    """A child with 100 MB and 2 s of CPU time outlives its parent; the measurement waits for it and counts it."""
    child = "import time; b = bytearray(100_000_000); t = time.process_time()\nwhile time.process_time() - t < 2: pass"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(0.6)"
    output = tmp_path / "old"
    output.mkdir()
    began = time.perf_counter()
    measurement = harness.measure(harness.Command("a name", [sys.executable, "-c", parent], output))
    assert not output.exists()
    assert 0.5 < measurement.wall_s <= time.perf_counter() - began
    assert measurement.cpu_s > 1.9
    assert measurement.peak_mb[harness.HELPERS] > 90
    assert measurement.peak_mb[harness.DRIVER] < 90


def test_the_error_of_a_failed_command_has_its_last_lines() -> None:
    command = harness.Command("a name", [sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"])
    with pytest.raises(harness.CommandError, match=r"a name: exit code 3[\s\S]*what went wrong"):
        harness.measure(command)


@pytest.mark.parametrize(
    ("cmdline", "role"),
    [
        (["ray::IDLE"], harness.WORKERS),
        (["python", "site-packages/ray/_private/workers/default_worker.py", "--node-ip-address=…"], harness.WORKERS),
        (["site-packages/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=…"], harness.RAY),
        (["python", "-c", "from multiprocessing.spawn import spawn_main"], harness.HELPERS),
    ],
)
def test_roles_of_processes(cmdline: list[str], role: str) -> None:
    assert harness.role_of(cmdline) == role


FORMATS = [("wav", 16_000), ("flac", 48_000), ("mp3", 44_100), ("opus", 48_000), ("vorbis", 44_100)]


@pytest.mark.parametrize(("name", "rate_hz"), FORMATS)
def test_archives_are_readable_written_once_and_their_recordings_differ(
    tmp_path: Path, name: str, rate_hz: int
) -> None:
    spec = archive.Archive(name, rate_hz, 2, 3.0)
    folder = archive.make_archive(spec, tmp_path)
    paths = [spec.path(folder, index) for index in range(2)]
    audio = [sf.read(path, dtype="float32") for path in paths]
    assert all(rate == rate_hz for _, rate in audio)
    assert all(len(samples) >= 3 * rate_hz for samples, _ in audio)  # MP3 adds padding
    assert not np.allclose(audio[0][0][:rate_hz], audio[1][0][:rate_hz])
    before = [path.stat().st_mtime_ns for path in paths]
    assert archive.make_archive(spec, tmp_path) == folder
    assert before == [path.stat().st_mtime_ns for path in paths]
    linked = archive.first_recordings(folder, 1)
    assert [path.read_bytes() for path in linked.rglob("*.*")] == [paths[0].read_bytes()]


def test_archives_are_deterministic_and_compress_like_field_recordings(tmp_path: Path) -> None:
    spec = archive.Archive("flac", 48_000, 1, 10.0)
    files = [spec.path(archive.make_archive(spec, tmp_path / name), 0) for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert 0.5 < files[0].stat().st_size / (10 * 48_000 * 2) < 0.65


def test_opus_refuses_44_khz(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="44100"):
        archive.make_archive(archive.Archive("opus", 44_100, 1, 1.0), tmp_path)


def write_vectors(path: Path, indices: list[int], values: np.ndarray) -> Path:
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    pq.write_table(pa.table({"file": ["a"] * len(indices), "window_index": indices, "embedding": embedding}), path)
    return path


def test_vectors_are_compared_window_by_window(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    reference = write_vectors(tmp_path / "reference", [0, 1, 2], values)
    assert vectors.checked_error(write_vectors(tmp_path / "same", [2, 0, 1], values[[2, 0, 1]]), reference) == 0
    other = values.copy()
    other[1] *= 1.001
    with pytest.raises(ValueError, match=r"differ from reference's by 1.0e-03"):
        vectors.checked_error(write_vectors(tmp_path / "other", [0, 1, 2], other), reference)
    with pytest.raises(ValueError, match="different windows: 2 and 3"):
        vectors.checked_error(write_vectors(tmp_path / "fewer", [0, 1], values[:2]), reference)
