"""Decoding of recordings to tables of windows, failures and other events. No Ray."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf

from embedding.decoding import decode as stage
from embedding.schema.batches import windows_schema
from embedding.schema.failures import Failure
from embedding.schema.windows import WindowSpec
from tests.support.audio import tone, write_audio
from tests.support.decoding import (
    RATE_HZ,
    SECOND,
    EventRecord,
    decode,
    hash_of,
    of_file,
    recordings_of,
    run,
    samples_of,
    with_known_hashes,
    write_truncated,
)

# --- tables -----------------------------------------------------------------------------------------------------------


def test_windows_hold_the_audio_between_their_start_and_end(tmp_path: Path) -> None:
    audio = tone(3.25, RATE_HZ)
    path = write_audio(tmp_path / "a.wav", audio, RATE_HZ, subtype="FLOAT")
    spec = WindowSpec.from_seconds(RATE_HZ, 1.0, 0.5, "pad")
    (table,), record = run([path], spec, batch_size=100)
    assert table["start_time"].to_pylist() == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert table["end_time"].to_pylist() == [1, 1.5, 2, 2.5, 3, 3.25, 3.25]
    for row, window in zip(table.to_pylist(), samples_of(table), strict=True):
        start, end = round(row["start_time"] * RATE_HZ), round(row["end_time"] * RATE_HZ)
        np.testing.assert_array_equal(window[: end - start], audio[start:end])
        np.testing.assert_array_equal(window[end - start :], 0)
    assert table["window_index"].to_pylist() == list(range(7))
    assert set(table["n_windows"].to_pylist()) == {7}
    assert set(table["duration"].to_pylist()) == {3.25}
    assert (record.events, record.audio_s) == ([], 3.25)


def test_rows_describe_the_recording_and_not_the_resampled_audio(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", tone(1.5, 44_100, channels=2), 44_100)
    (table,), _ = run([path])
    row = table.slice(1).drop(["window_16000", "audio_hash_16000", "recorder_facts", "targets"]).to_pylist()[0]
    assert row == {
        "file": str(path),
        "file_id": 100,
        "window_index": 1,
        "n_windows": 2,
        "start_time": 1.0,
        "end_time": 1.5,
        "sample_rate": 44_100,
        "channels": 2,
        "duration": 1.5,
    }


def test_columns_have_plain_arrow_types(tmp_path: Path) -> None:
    tables, _ = run([write_audio(tmp_path / "a.wav", tone(2, RATE_HZ), RATE_HZ)])
    schema = tables[0].schema
    assert schema == windows_schema([SECOND])
    assert schema.field("window_16000").type == pa.list_(pa.float32(), RATE_HZ)
    assert schema.field("audio_hash_16000").type == pa.int64()
    assert not any(isinstance(field.type, pa.BaseExtensionType) for field in schema)
    assert not tables[0]["window_16000"].null_count


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1_000])
@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_every_table_but_the_last_has_a_full_batch_of_rows(tmp_path: Path, batch_size: int, tail: str) -> None:
    lengths_s = [2.5, 0.25, 7.1, 1, 4.999]
    files = [
        write_audio(tmp_path / f"{i}.wav", tone(s, RATE_HZ, seed=i), RATE_HZ, subtype="FLOAT")
        for i, s in enumerate(lengths_s)
    ]
    spec = WindowSpec(RATE_HZ, RATE_HZ, RATE_HZ // 2, tail)
    tables, _ = run(files, spec, batch_size)
    assert all(len(table) == batch_size for table in tables[:-1])
    assert 0 < len(tables[-1]) <= batch_size
    # Windows do not depend on the size of the tables.
    (one_table,), _ = run(files, spec, 10_000)
    whole = pa.concat_tables(tables)
    assert whole.drop(["window_16000"]).equals(one_table.drop(["window_16000"]))
    np.testing.assert_array_equal(samples_of(whole), samples_of(one_table))
    n_windows = [spec.count(round(s * RATE_HZ)) for s in lengths_s]
    assert whole["n_windows"].to_pylist() == [n for n in n_windows for _ in range(n)]


def test_a_table_does_not_change_after_it_is_yielded(tmp_path: Path) -> None:
    files = [write_audio(tmp_path / f"{i}.wav", tone(4, RATE_HZ, seed=i), RATE_HZ, subtype="FLOAT") for i in range(3)]
    yielded = []
    for table in decode(recordings_of(files), [SECOND], 2, EventRecord()):
        yielded.append((table, samples_of(table).copy()))
    for table, samples in yielded:
        np.testing.assert_array_equal(samples_of(table), samples)


def test_no_recordings_make_no_tables() -> None:
    tables, record = run([])
    assert (tables, record.events) == ([], [])


def test_windows_that_are_stored_already_are_left_out(tmp_path: Path) -> None:
    files = [write_audio(tmp_path / f"{i}.wav", tone(5, RATE_HZ, seed=i), RATE_HZ, subtype="FLOAT") for i in range(3)]
    recordings = recordings_of(files).append_column(
        "stored", pa.array([[[0, 3]], None, [[0, 1, 2, 3, 4]]], pa.list_(pa.list_(pa.int64())))
    )
    record = EventRecord()
    table = pa.concat_tables(decode(recordings, [SECOND], 2, record))
    assert of_file([table], files[0])["window_index"].to_pylist() == [1, 2, 4]
    assert of_file([table], files[0])["start_time"].to_pylist() == [1, 2, 4]
    assert of_file([table], files[1])["window_index"].to_pylist() == [0, 1, 2, 3, 4]
    assert len(of_file([table], files[2])) == 0
    assert set(table["n_windows"].to_pylist()) == {5}
    audio, _ = sf.read(files[0], dtype="float32")
    np.testing.assert_array_equal(samples_of(of_file([table], files[0])), audio.reshape(5, -1)[[1, 2, 4]])
    assert not record.failures, "a recording whose windows are all stored is no failure"


# --- short recordings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [1, 2, RATE_HZ - 1])
def test_a_recording_shorter_than_a_window_makes_one_padded_window(tmp_path: Path, n_samples: int) -> None:
    audio = tone(1, RATE_HZ)[:n_samples]
    path = write_audio(tmp_path / "a.wav", audio, RATE_HZ, subtype="FLOAT")
    (table,), _ = run([path])
    assert table["n_windows"].to_pylist() == [1]
    assert table["end_time"].to_pylist() == table["duration"].to_pylist() == [n_samples / RATE_HZ]
    np.testing.assert_array_equal(samples_of(table)[0], np.pad(audio, (0, RATE_HZ - n_samples)))


def test_a_single_sample_at_another_rate_makes_one_padded_window(tmp_path: Path) -> None:
    (table,), record = run([write_audio(tmp_path / "a.wav", tone(1, 48_000)[:1], 48_000)])
    assert (len(table), table["duration"].to_pylist(), record.failures) == (1, [1 / 48_000], {})


def test_a_recording_shorter_than_a_window_fails_when_tails_are_dropped(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", tone(0.5, RATE_HZ), RATE_HZ)
    tables, record = run([path], WindowSpec(RATE_HZ, RATE_HZ, RATE_HZ, "drop"))
    assert tables == []
    assert record.failures == {"a.wav": ("short", "0.500 s are less than a window of 1 s (--tail drop)")}


# --- bad recordings ---------------------------------------------------------------------------------------------------


def empty(path: Path) -> None:
    path.touch()


def header_only(path: Path) -> None:
    write_audio(path, tone(0, RATE_HZ), RATE_HZ)


def text(path: Path) -> None:
    path.write_text("not audio\n" * 100)


def implausible_rate(path: Path) -> None:
    content = write_audio(path, tone(1, RATE_HZ), RATE_HZ).read_bytes()
    path.write_bytes(content[:24] + struct.pack("<I", 1) + content[28:])


def truncated(path: Path) -> None:
    write_truncated(path, tone(5, RATE_HZ), 0.5)


def with_value(value: float, at_s: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        audio = tone(5, RATE_HZ)
        audio[round(at_s * RATE_HZ)] = value
        write_audio(path, audio, RATE_HZ, subtype="FLOAT")

    return write


def missing(path: Path) -> None:
    pass


def pipe(path: Path) -> None:
    os.mkfifo(path)


@dataclass
class BadRecording:
    """A recording that fails.

    Attributes:
        name: Name of the file.
        make: Writes the file.
        n_windows: Windows of a second that can be decoded.
        kind: Kind of the failure.
        message: A part of its message.
    """

    name: str
    make: Callable[[Path], None]
    n_windows: int
    kind: str
    message: str


BAD_RECORDINGS = [
    BadRecording("empty.wav", empty, 0, "empty", "the file has no bytes"),
    BadRecording("header.wav", header_only, 0, "empty", "a header, but no audio"),
    BadRecording("text.wav", text, 0, "corrupt", "not readable as audio: Format not recognised"),
    BadRecording("1hz.wav", implausible_rate, 0, "corrupt", "the header states 1 Hz, which no recorder writes"),
    BadRecording(
        "cut.flac", truncated, 3, "truncated", "s could be read, and are kept: the decoder stopped (flac decoder lost"
    ),
    BadRecording("cut.wav", truncated, 3, "truncated", "the header states 160000 bytes, the file has 79978 (50%)"),
    BadRecording("cut.mp3", truncated, 3, "truncated", "the header states 5.000 s"),
    BadRecording("cut.ogg", truncated, 2, "truncated", "the end mark of the Ogg stream is missing"),
    BadRecording(
        "nan.wav", with_value(np.nan, 2.25), 3, "nonfinite", "at 2.250 s; the audio before this sample is kept"
    ),
    BadRecording(
        "inf.wav", with_value(np.inf, 0), 0, "nonfinite", "a sample is NaN, infinite or above 1e+12 at 0.000 s"
    ),
    BadRecording("gone.wav", missing, 0, "io", "cannot be read: No such file or directory"),
    BadRecording("folder.wav", Path.mkdir, 0, "io", "cannot be read: Is a directory"),
    BadRecording("pipe.wav", pipe, 0, "io", "cannot be read: a pipe, a socket or a device, not a file"),
]


@pytest.mark.parametrize("bad", BAD_RECORDINGS, ids=lambda bad: bad.name)
def test_a_bad_recording_is_a_failure_and_its_good_part_is_kept(tmp_path: Path, bad: BadRecording) -> None:
    path = tmp_path / bad.name
    bad.make(path)
    tables, record = run([path])
    failure, *ends = record.events
    assert isinstance(failure, Failure)
    assert (failure.file, failure.file_id, failure.stage, failure.kind) == (str(path), 100, "decode", bad.kind)
    assert bad.message in failure.message
    assert "\n" not in failure.message
    assert ends == ([] if bad.n_windows else ["without windows"])
    assert sum(map(len, tables)) == bad.n_windows
    for table in tables:
        assert set(table["n_windows"].to_pylist()) == {bad.n_windows}
        assert table["end_time"].to_pylist()[-1] == table["duration"].to_pylist()[0] == record.audio_s
        assert np.isfinite(samples_of(table)).all()


def test_bad_recordings_do_not_change_the_windows_of_others(tmp_path: Path) -> None:
    good, files = [], []
    for i, bad in enumerate(BAD_RECORDINGS):
        bad.make(tmp_path / bad.name)
        good.append(write_audio(tmp_path / f"good-{i}.flac", tone(2.5, RATE_HZ, seed=i), RATE_HZ))
        files += [tmp_path / bad.name, good[-1]]
    tables, record = run(files, batch_size=4)
    assert {name: kind for name, (kind, _) in record.failures.items()} == {bad.name: bad.kind for bad in BAD_RECORDINGS}
    assert record.events.count("without windows") == sum(not bad.n_windows for bad in BAD_RECORDINGS)
    for path in good:
        (expected,), _ = run([path])
        found = of_file(tables, path)
        assert found["window_index"].to_pylist() == [0, 1, 2]
        np.testing.assert_array_equal(samples_of(found), samples_of(expected))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("tail", ["pad", "drop"])
@pytest.mark.parametrize("hop_s", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("kept_s", [4.0, 4.25])
def test_a_failure_is_yielded_before_the_last_window(tmp_path: Path, tail: str, hop_s: float, kept_s: float) -> None:
    """The order holds also where no audio follows the last window, at the end of a window or with dropped tails."""
    audio = tone(6, RATE_HZ)
    audio[round(kept_s * RATE_HZ)] = np.nan
    path = write_audio(tmp_path / "a.wav", audio, RATE_HZ, subtype="FLOAT")
    spec = WindowSpec.from_seconds(RATE_HZ, 1.0, hop_s, tail)
    record = EventRecord()
    for table in decode(recordings_of([path]), [spec], 1, record):
        record.events += [f"window {i}" for i in table["window_index"].to_pylist()]
    n_windows = spec.count(round(kept_s * RATE_HZ))
    position = next(i for i, event in enumerate(record.events) if isinstance(event, Failure))
    assert position < record.events.index(f"window {n_windows - 1}")
    assert f"window {n_windows}" not in record.events
    assert "without windows" not in record.events


def test_the_duration_is_that_of_the_decoded_audio_and_not_of_the_header(tmp_path: Path) -> None:
    path = write_truncated(tmp_path / "a.flac", tone(60, RATE_HZ), 0.5)
    (table,), record = run([path], batch_size=1_000)
    duration_s = record.audio_s
    assert 28 < duration_s < 31
    assert set(table["duration"].to_pylist()) == {duration_s}
    assert set(table["n_windows"].to_pylist()) == {len(table)} == {int(np.ceil(duration_s))}
    assert table["end_time"].to_pylist()[-1] == duration_s


def test_the_last_row_of_a_long_truncated_recording_has_the_decoded_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "WHOLE_RECORDING_S", 1)
    path = write_truncated(tmp_path / "a.flac", tone(60, RATE_HZ), 0.5)
    tables, record = run([path])
    last = tables[-1].slice(len(tables[-1]) - 1).to_pylist()[0]
    assert last["n_windows"] == last["window_index"] + 1 == sum(map(len, tables))
    assert last["end_time"] == last["duration"] == record.audio_s
    assert record.failures["a.flac"][0] == "truncated"


# --- audio with a known hash ------------------------------------------------------------------------------------------


def test_audio_with_a_known_hash_is_not_cut(tmp_path: Path) -> None:
    files = [write_audio(tmp_path / f"{i}.wav", tone(2.5, RATE_HZ, seed=i), RATE_HZ) for i in range(4)]
    hashes = [hash_of(files[0]), hash_of(files[0]), None, hash_of(files[3])]
    record = EventRecord()
    (table,) = decode(with_known_hashes(recordings_of(files), hashes), [SECOND], 100, record)
    assert set(table["file"].to_pylist()) == {str(files[1]), str(files[2])}
    assert record.events == ["100 unchanged", "without windows", "103 unchanged", "without windows"]
    assert record.audio_s == 5.0
    assert record.opened == [str(file) for file in files]


def test_the_audio_hash_depends_on_samples_rate_and_channels_but_not_on_name_or_tags(tmp_path: Path) -> None:
    audio = tone(2, RATE_HZ)
    expected = hash_of(write_audio(tmp_path / "a.wav", audio, RATE_HZ, subtype="FLOAT"))
    path = tmp_path / "tagged.wav"
    with sf.SoundFile(path, "w", RATE_HZ, 1, "FLOAT") as file:
        file.title = "other tags"
        file.write(audio)
    assert hash_of(path) == expected
    other = audio.copy()
    other[-1] += 0.25
    assert hash_of(write_audio(tmp_path / "b.wav", other, RATE_HZ, subtype="FLOAT")) != expected
    assert hash_of(write_audio(tmp_path / "c.wav", audio, RATE_HZ // 2, subtype="FLOAT")) != expected
    stereo = np.stack([audio, audio], axis=1)
    assert hash_of(write_audio(tmp_path / "d.wav", stereo, RATE_HZ, subtype="FLOAT")) != expected


@pytest.mark.usefixtures("either_way")
def test_the_last_windows_of_a_recording_have_its_hash(tmp_path: Path) -> None:
    good = write_audio(tmp_path / "a.wav", tone(3.5, RATE_HZ), RATE_HZ)
    tables, _ = run([good], batch_size=1)
    assert isinstance(tables[-1]["audio_hash_16000"][0].as_py(), int)
    assert {table["audio_hash_16000"][0].as_py() for table in tables} <= {
        None,
        tables[-1]["audio_hash_16000"][0].as_py(),
    }
    tables, _ = run([write_truncated(tmp_path / "b.wav", tone(3.5, RATE_HZ), 0.5)], batch_size=1)
    assert [table["audio_hash_16000"][0].as_py() for table in tables] == [None] * len(tables)


def test_a_recording_with_a_fault_never_counts_as_known(tmp_path: Path) -> None:
    path = write_truncated(tmp_path / "a.wav", tone(4, RATE_HZ), 0.5)
    record = EventRecord()
    tables = list(decode(with_known_hashes(recordings_of([path]), [0]), [SECOND], 100, record))
    assert sum(map(len, tables)) == 2
    assert record.failures["a.wav"][0] == "truncated"
    record = EventRecord()
    text(tmp_path / "b.wav")
    assert list(decode(with_known_hashes(recordings_of([tmp_path / "b.wav"]), [0]), [SECOND], 100, record)) == []
    assert {kind for kind, _ in record.failures.values()} == {"corrupt"}
    assert record.events.count("without windows") == 1


def test_windows_with_a_short_hop_are_copied_a_batch_at_a_time(tmp_path: Path) -> None:
    """Windows that overlap 500 times would take 500 times the memory of the audio, all at once."""
    path = write_audio(tmp_path / "a.wav", tone(4, RATE_HZ), RATE_HZ)
    spec = WindowSpec(RATE_HZ, RATE_HZ, 32, "pad")
    whole = pa.concat_tables(decode(recordings_of([path]), [spec], 64, EventRecord()))
    assert len(whole) == 2_000
    stored = pa.array([[list(range(0, 2_000, 3))]], pa.list_(pa.list_(pa.int32())))
    missing_windows = pa.concat_tables(
        decode(recordings_of([path]).append_column("stored", stored), [spec], 64, EventRecord())
    )
    assert missing_windows["window_index"].to_pylist() == [i for i in range(2_000) if i % 3]
    assert np.array_equal(samples_of(missing_windows), samples_of(whole)[np.arange(2_000) % 3 > 0])
