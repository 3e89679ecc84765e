"""Estimates of the durations of recordings, from the headers of a sample."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from embedding.listing import audio_estimate
from embedding.listing.audio_estimate import DEFAULT_BYTES_PER_S, HEADER_BYTES, SAMPLE_SIZE, estimate_durations
from embedding.listing.entries import UNKNOWN_SIZE
from embedding.listing.listing import list_recordings
from embedding.schema.recordings import RECORDINGS
from embedding.storage import s3
from tests.support.audio import tone, write_audio


def test_the_estimate_for_one_format_is_proportional_to_bytes(tmp_path: Path) -> None:
    for i in range(50):
        write_audio(tmp_path / f"{i}.wav", tone(1 + i % 5, 8_000), 8_000)
    recordings = list_recordings([str(tmp_path)]).recordings
    assert estimate_durations(recordings).sum() == pytest.approx(150, rel=0.01)


def test_each_format_has_its_own_estimate(tmp_path: Path) -> None:
    for i in range(20):
        write_audio(tmp_path / f"{i}.WAV", tone(2, 48_000), 48_000)
        write_audio(tmp_path / f"{i}.ogg", tone(6, 16_000), 16_000)
    (tmp_path / "broken.flac").write_bytes(b"x" * 1000)
    recordings = list_recordings([str(tmp_path)]).recordings
    assert estimate_durations(recordings).sum() == pytest.approx(160, rel=0.02)


def test_recordings_that_cannot_be_read_count_as_common_wav() -> None:
    rows = [("/gone/a.wav", 10 * DEFAULT_BYTES_PER_S, 1), ("/gone/b.flac", 2 * DEFAULT_BYTES_PER_S, 2)]
    rows.append(("/gone/c.wav", UNKNOWN_SIZE, 3))
    recordings = pa.Table.from_pylist([dict(zip(RECORDINGS.names, row, strict=True)) for row in rows], RECORDINGS)
    assert estimate_durations(recordings).sum() == pytest.approx(12)
    assert estimate_durations(recordings.slice(0, 0)).sum() == 0


def test_only_the_headers_of_recordings_in_s3_are_read(
    tmp_path: Path, s3_api: Any, bucket: str, other_s3: pytest.MonkeyPatch
) -> None:
    path = write_audio(tmp_path / "a.wav", tone(30, 48_000), 48_000)
    assert path.stat().st_size > 4 * HEADER_BYTES
    for i in range(3):
        s3_api.upload_file(str(path), bucket, f"{i}.wav")
    recordings = list_recordings([f"s3://{bucket}"]).recordings
    ranges: list[str] = []
    client: Any = s3.client().s3
    client.meta.events.register(
        "before-parameter-build.s3.GetObject", lambda params, **_: ranges.append(params["Range"])
    )
    # In this process, where the client records the requests.
    other_s3.setattr(audio_estimate, "_read_rates_in_subprocess", audio_estimate._read_rates)
    assert estimate_durations(recordings).sum() == pytest.approx(90, rel=0.01)
    ends = [int(text.rpartition("-")[2]) for text in ranges]
    assert len(ends) == 3
    assert max(ends) < 2 * HEADER_BYTES


def test_a_listing_of_more_than_2_gib_of_names_is_sampled() -> None:
    n, length = 256, 1 << 16
    names = pa.array([f"/gone/{i:0{length}}.wav" for i in range(n)])
    batch = pa.record_batch([names, pa.array([DEFAULT_BYTES_PER_S] * n), pa.array(range(n))], RECORDINGS)
    recordings = pa.Table.from_batches([batch] * 130)  # the batches share their memory
    assert recordings["file"].nbytes > 1 << 31
    assert len(recordings) > SAMPLE_SIZE
    assert estimate_durations(recordings).sum() == pytest.approx(130 * n)


def test_a_recording_that_kills_its_reader_does_not_kill_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_audio(tmp_path / "kills its reader.wav", tone(3, 16_000), 16_000)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, soundfile\n"
        "soundfile.SoundFile.__init__ = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    n_bytes = path.stat().st_size
    assert estimate_durations(list_recordings([str(path)]).recordings).sum() == pytest.approx(
        n_bytes / DEFAULT_BYTES_PER_S
    )
