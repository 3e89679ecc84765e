"""Recordings that change before or during decoding: every window has audio of the file, or a failure has the reason."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.audio import tone, write_audio
from tests.support.decoding import RATE_HZ, SECOND, EventRecord, decode, recordings_of, samples_of

SECONDS = 20


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(1 << 16))


def replace(path: Path) -> None:
    other = write_audio(path.with_name(f"other{path.suffix}"), tone(3, RATE_HZ, seed=5), RATE_HZ)
    other.replace(path)


def overwrite(path: Path) -> None:
    """Replace bytes without a change of the size."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(range(256)) * 64)


CHANGES: list[Callable[[Path], None]] = [shrink, empty, grow, replace, overwrite, Path.unlink]


@pytest.fixture(params=["wav", "flac"])
def recording(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recording that is decoded as a stream, like a recording of hours."""
    monkeypatch.setattr("embedding.decoding.decode.WHOLE_RECORDING_S", 1)
    monkeypatch.setattr("embedding.decoding.audio.BLOCK_SAMPLES", 4_000)
    return write_audio(tmp_path / f"a.{request.param}", tone(SECONDS, RATE_HZ), RATE_HZ)


@pytest.mark.parametrize("change", CHANGES)
def test_a_recording_that_changes_after_the_listing_is_decoded_as_it_is_then(
    recording: Path, change: Callable[[Path], None]
) -> None:
    listed = recordings_of([recording])
    change(recording)
    record = EventRecord()
    tables = list(decode(listed, [SECOND], 4, record))
    kinds = [kind for kind, _ in record.failures.values()]
    expected = {shrink: ["truncated"], empty: ["empty"], Path.unlink: ["io"]}
    if change in expected:
        assert kinds == expected[change]
    elif change is replace:
        assert (sum(map(len, tables)), kinds) == (3, [])
    assert sum(map(len, tables)) <= SECONDS


@pytest.mark.parametrize("change", CHANGES)
def test_a_recording_that_changes_during_decoding_is_complete_or_truncated(
    recording: Path, change: Callable[[Path], None]
) -> None:
    record = EventRecord()
    whole = samples_of(pa.concat_tables(decode(recordings_of([recording]), [SECOND], 4, EventRecord())))
    tables = []
    for table in decode(recordings_of([recording]), [SECOND], 4, record):
        if not tables:
            change(recording)
        tables.append(table)
    windows = samples_of(pa.concat_tables(tables))
    assert np.array_equal(windows[:4], whole[:4])
    assert np.isfinite(windows).all()
    if change in (grow, replace, Path.unlink):  # the open file still has all its audio
        assert np.array_equal(windows, whole)
        assert not record.failures
    elif change in (shrink, empty):
        assert [kind for kind, _ in record.failures.values()] == ["truncated"]
        assert 4 <= len(windows) < SECONDS
