"""A soak under random faults: no window is lost, no window is stored twice, and the driver does not grow.

``AVEX_BATCH_SOAK_S=1800 pytest -s -m long tests/faults/test_soak.py -k AVEX`` runs half an hour; the default
is an hour.
``AVEX_BATCH_SOAK_RECORDINGS`` changes the number of recordings, ``AVEX_BATCH_SOAK_SEED`` the order of the faults.
"""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.file_systems import small_file_system
from tests.support.kills import Job
from tests.support.soak import OPTIONS, Archive, Record, Soak

SOAK_S = float(os.environ.get("AVEX_BATCH_SOAK_S", "3600"))
RECORDINGS_PER_S = 100_000 / 3600  # without faults a run takes a quarter of the time
VECTOR_BYTES = 6_000

# The driver grows by what Ray Data keeps of finished tasks, 0.3 kB a recording. At 250 recordings a second, without
# faults on two cores, the growth was 80 KiB a second at first and less later (measured 2026-11-25).
MOST_BYTES_PER_S = 128 * 1024
MOST_HANDLES_PER_S = 0.05


@pytest.mark.long
@pytest.mark.parametrize(
    "length_s", [pytest.param(60.0, id="a minute"), pytest.param(SOAK_S, id="set by AVEX_BATCH_SOAK_S")]
)
def test_random_faults_lose_no_window_and_repeat_none(length_s: float, tmp_path: Path) -> None:
    seed = int(os.environ.get("AVEX_BATCH_SOAK_SEED", "1"))
    n_recordings = int(os.environ.get("AVEX_BATCH_SOAK_RECORDINGS", length_s * RECORDINGS_PER_S))
    archive = Archive(tmp_path / "in", n_recordings, min(2_000, n_recordings // 8), random.Random(seed))
    expected = embed_sounds(archive, tmp_path / "sounds")
    size_mb = 64 + 3 * n_recordings * 2 * VECTOR_BYTES // 1_000_000
    with small_file_system(tmp_path / "disk", f"{size_mb}m") as disk:
        shard_rows = max(64, n_recordings * 2 // 256)
        job = Job(archive.folder, disk / "out", {"PYTHONFAULTHANDLER": "1"}, shard_rows, OPTIONS)
        soak = Soak(job, archive, disk, length_s, random.Random(seed))
        soak.run()
        soak.finish()
        print(summarise(soak.record))  # noqa: T201
        assert not soak.record.hangs
        assert not soak.record.tracebacks
        assert not soak.record.unexplained
        assert_complete(job.output, archive, expected)
        assert_flat(soak.record)
    shutil.rmtree(tmp_path)  # gigabytes that pytest would keep


def embed_sounds(archive: Archive, folder: Path) -> list[np.ndarray]:
    """Return the vectors of each sound, ``[windows, dim]``, from a run without faults."""
    paths = [folder / "in" / f"{sound:04d}.wav" for sound in range(len(archive.sounds))]
    paths[0].parent.mkdir(parents=True)
    for path, content in zip(paths, archive.sounds, strict=True):
        path.write_bytes(content)
    job = Job(folder / "in", folder / "out", shard_rows=4_096, options=OPTIONS)
    job.finish()
    table = pq.read_table(job.output / "embeddings").sort_by([("file", "ascending"), ("window_index", "ascending")])
    vectors = np.stack(table["embedding"].to_numpy())
    ends = np.cumsum([archive.n_windows(sound) for sound in range(len(paths))])
    assert ends[-1] == len(vectors)
    return np.split(vectors, ends[:-1])


def assert_complete(output: Path, archive: Archive, expected: list[np.ndarray]) -> None:
    """Check that an output has every window of the present recordings once, with its vector, and a complete report."""
    columns = ["file", "file_id", "window_index", "n_windows", "embedding"]
    table = pq.read_table(output / "embeddings", columns=columns)
    rows = table.drop_columns("embedding").to_pandas()
    repeated = rows[rows.duplicated(["file", "window_index"])]
    assert repeated.empty, f"{len(repeated)} windows are stored twice: {repeated.head()}"
    sounds = {str(path): sound for path, sound in archive.contents.items()}
    removed = set(map(str, archive.removed))
    assert set(rows["file"]) <= sounds.keys() | removed
    rows = rows[rows["file"].isin(list(sounds))].sort_values(["file", "window_index"])
    keys = list(zip(rows["file"], rows["window_index"], rows["n_windows"], strict=True))
    expected_keys = []
    for name, sound in sorted(sounds.items()):
        n = archive.n_windows(sound)
        expected_keys += [(name, index, n) for index in range(n)]
    lost = set(expected_keys) - set(keys)
    assert not lost, f"{len(lost)} windows are lost: {sorted(lost)[:3]}"
    assert keys == expected_keys
    vectors = np.stack(table["embedding"].combine_chunks().take(rows.index.to_numpy()).to_numpy(zero_copy_only=False))
    expected_vectors = np.concatenate([expected[sound] for _, sound in sorted(sounds.items())])
    assert np.allclose(vectors, expected_vectors, rtol=0, atol=1e-6 * np.abs(expected_vectors).max())
    assert not [path for path in output.rglob("*") if path.name.startswith((".tmp-", "claim.json"))]
    report = json.loads((output / "report.json").read_text())
    assert report["state"] == "complete"
    assert report["recordings"]["listed"] == len(sounds)
    assert (report["recordings"]["failed"], report["recordings"]["balanced"]) == (0, True)
    assert report["windows"] == {"expected": len(keys), "stored": len(keys), "repeated": 0}
    assert report["output"]["windows"] == len(table)


def assert_flat(record: Record) -> None:
    """Check that memory and open handles of the driver hardly grow."""
    for sampled_s, bytes_per_s, handles_per_s in record.slopes(least_s=60.0):
        assert bytes_per_s < MOST_BYTES_PER_S, f"{bytes_per_s / 1024:.0f} KiB a second over {sampled_s:.0f} s"
        assert handles_per_s < MOST_HANDLES_PER_S, f"{handles_per_s:.3f} handles a second over {sampled_s:.0f} s"


def summarise(record: Record) -> str:
    """Return the record of a soak as text for the terminal."""
    lines = [f"{record.n_attempts} attempts, {len(record.hangs)} hangs, {len(record.tracebacks)} tracebacks"]
    lines += [f"  {n:,} × {fault}" for fault, n in record.faults.most_common()]
    lines += [f"  {n:,} × ended: {end}" for end, n in record.ends.most_common()]
    lines += [
        f"  driver over {sampled_s:.0f} s: {bytes_per_s / 1024:+.1f} KiB and {handles_per_s:+.4f} handles a second"
        for sampled_s, bytes_per_s, handles_per_s in record.slopes(least_s=30.0)
    ]
    lines += [*record.hangs, *record.tracebacks, *record.unexplained]
    return "\n".join(lines)
