"""Isolated decoding: the same events as in this process, and a failure for a recording that ends its process."""

import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding.decoding.isolated import TRIES
from embedding.schema.failures import Failure
from tests.support.audio import tone, write_audio
from tests.support.decoding import RATE_HZ, SECOND, EventRecord, decode, recordings_of, samples_of, write_truncated
from tests.support.isolated_decoding import (
    FAIL_BY_NAME,
    FAIL_DURING_READ,
    run_isolated,
    use_program,
    window_keys,
    write_recordings,
)


@pytest.fixture
def failing_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(tmp_path / "first-on-path", FAIL_BY_NAME, monkeypatch)


# --- the same events as decoding in this process ----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_tables_and_events_equal_those_of_decoding_in_this_process(tmp_path: Path, batch_size: int) -> None:
    lengths_s = [2.5, 0.25, 7.1, 1, 4.999]
    files = [write_audio(tmp_path / f"{i}.wav", tone(s, RATE_HZ), RATE_HZ) for i, s in enumerate(lengths_s)]
    files.insert(1, tmp_path / "gone.wav")
    files.insert(4, write_truncated(tmp_path / "cut.flac", tone(5, RATE_HZ), 0.5))
    table = recordings_of(files).append_column(
        "stored", pa.array([[[0]], None, None, [[1, 3]], None, [[]], None], pa.list_(pa.list_(pa.int32())))
    )
    expected_record = EventRecord()
    expected = list(decode(table, [SECOND], batch_size, expected_record))
    tables, record = run_isolated([], batch_size=batch_size, table=table)
    assert len(tables) == len(expected)
    assert all(one.equals(other) for one, other in zip(tables, expected, strict=True))
    assert record.events == expected_record.events
    assert record.opened == expected_record.opened
    assert (record.audio_s, record.n_decoded) == (expected_record.audio_s, expected_record.n_decoded)


def test_audio_with_a_known_hash_is_unchanged(tmp_path: Path) -> None:
    files = write_recordings(tmp_path, ["a", "b"])
    (first,), _ = run_isolated(files, batch_size=100)
    hashes = pa.array([[first["audio_hash_16000"][0].as_py()], [17]], pa.list_(pa.int64()))
    tables, record = run_isolated([], table=recordings_of(files).append_column("known_hash", hashes))
    assert record.events == ["100 unchanged", "without windows"]
    assert window_keys(tables) == [("b", 0), ("b", 1), ("b", 2)]


def test_no_recordings_make_no_tables() -> None:
    tables, record = run_isolated([])
    assert (tables, record.events) == ([], [])


def test_output_of_a_library_does_not_mix_with_the_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exit_call = 'os._exit(int(os.environ["EXIT_CODE"]))'
    use_program(
        tmp_path / "first-on-path", FAIL_BY_NAME.replace(exit_call, "os.write(1, b'noise' * 1000)"), monkeypatch
    )
    tables, _ = run_isolated(write_recordings(tmp_path, ["exit"]))
    assert len(window_keys(tables)) == 3


# --- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("failing_by_name")
@pytest.mark.parametrize(
    "names",
    [
        ["segv", "a", "b"],
        ["a", "b", "segv"],
        ["a", "segv-1", "segv-2", "b", "c"],
        ["segv-1", "segv-2"],
        ["a", "b", "segv-1", "c", "d", "segv-2", "e"],
    ],
    ids=["first", "last", "adjacent", "all", "apart"],
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_recording_that_ends_its_process_fails_and_the_windows_of_others_come_once(
    tmp_path: Path, names: list[str], batch_size: int
) -> None:
    files = write_recordings(tmp_path, names)
    good = [file for file in files if "segv" not in file.name]
    tables, record = run_isolated(files, batch_size=batch_size)
    crashes = {file.name: "crash" for file in files if file not in good}
    assert {name: kind for name, (kind, _) in record.failures.items()} == crashes
    assert [type(event) for event in record.events].count(Failure) == len(crashes)
    assert record.events.count("without windows") == len(crashes)
    for kind, message in record.failures.values():
        assert (kind, message) == ("crash", "the process that read it died of SIGSEGV, 3 times in a row")
    assert record.n_decoded == len(good)
    ids = dict(recordings_of(files).select(["file", "file_id"]).to_pandas().itertuples(index=False))
    assert {event.file_id for event in record.events if isinstance(event, Failure)} == {
        ids[str(tmp_path / name)] for name in crashes
    }
    expected = list(decode(recordings_of(good), [SECOND], batch_size, EventRecord()))
    assert [len(table) for table in tables] == [len(table) for table in expected]
    for one, other in zip(tables, expected, strict=True):
        assert one.drop_columns("file_id").equals(other.drop_columns("file_id"))


@pytest.mark.usefixtures("failing_by_name")
def test_a_recording_is_tried_a_limited_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: starts.append(1) or popen(*a, **k))
    run_isolated(write_recordings(tmp_path, ["a", "segv", "b"]))
    assert len(starts) == TRIES + 1


@pytest.mark.usefixtures("failing_by_name")
def test_a_recording_that_takes_all_memory_ends_only_its_own_process(tmp_path: Path) -> None:
    tables, record = run_isolated(write_recordings(tmp_path, ["a", "endless", "b"]))
    assert record.failures == {
        "endless.wav": ("crash", "the process that read it needed more than 4 GiB, 3 times in a row")
    }
    assert [name for name, _ in window_keys(tables)] == ["a"] * 3 + ["b"] * 3


@pytest.mark.usefixtures("failing_by_name")
@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_ends_without_a_message_is_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("EXIT_CODE", str(code))
    tables, record = run_isolated(write_recordings(tmp_path, ["exit", "b"]))
    assert record.failures["exit.wav"][1] == f"the process that read it ended with exit code {code}, 3 times in a row"
    assert [name for name, _ in window_keys(tables)] == ["b"] * 3


def test_a_death_after_the_last_message_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(tmp_path / "first-on-path", "import atexit, os\natexit.register(os.abort)", monkeypatch)
    tables, record = run_isolated(write_recordings(tmp_path, ["a", "b"]))
    assert [len(table) for table in tables] == [4, 2]
    assert (record.n_decoded, record.events) == (2, [])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("die_after_s", [2.1, 4.5])
def test_windows_before_a_death_come_once_and_windows_after_it_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, die_after_s: float
) -> None:
    """Windows of a long recording are sent before the recording is read to its end."""
    use_program(
        tmp_path / "first-on-path", FAIL_DURING_READ.format(die_after=round(die_after_s * RATE_HZ)), monkeypatch
    )
    files = write_recordings(tmp_path, ["a", "segv", "b", "c"], 6.5)
    tables, record = run_isolated(files, batch_size=batch_size)
    keys = window_keys(tables)
    assert len(keys) == len(set(keys))
    for name in "abc":
        assert [key for key in keys if key[0] == name] == [(name, index) for index in range(7)]
    indices = [index for name, index in keys if name == "segv"]
    assert indices == list(range(len(indices)))
    assert len(indices) <= die_after_s
    assert {name: kind for name, (kind, _) in record.failures.items()} == {"segv.wav": "crash"}
    assert (record.n_decoded, record.audio_s) == (3, 3 * 6.5)


def test_a_death_that_happens_once_changes_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each recording ends its process once, for example because the kernel chose the process."""
    prefix = tmp_path / "died-"
    marker = f"open({str(prefix)!r} + self._file.name[-5], 'a')"
    once = f"{marker}.tell() == 0 and {marker}.write('x')"
    program = FAIL_DURING_READ.format(die_after=3 * RATE_HZ).replace('"segv" in self._file.name', once)
    use_program(tmp_path / "first-on-path", program, monkeypatch)
    files = [*write_recordings(tmp_path, ["a", "b"], 6.5), write_truncated(tmp_path / "c.wav", tone(12, RATE_HZ), 0.5)]
    tables, record = run_isolated(files, batch_size=2)
    assert sorted(path.name for path in tmp_path.glob("died-*")) == ["died-a", "died-b", "died-c"]
    assert window_keys(tables) == [(name, index) for name, n in (("a", 7), ("b", 7), ("c", 6)) for index in range(n)]
    assert [len(table) for table in tables] == [2] * 10
    assert record.n_decoded == 3
    assert [type(event) for event in record.events] == [Failure]
    assert {kind for kind, _ in record.failures.values()} == {"truncated"}


FAIL_AT_CLOSE = """
import os, soundfile

_close = soundfile.SoundFile.close

def close(self):
    if {dies}:
        os.abort()
    _close(self)

soundfile.SoundFile.close = close
"""


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_events_of_a_recording_before_its_death_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, *, always: bool
) -> None:
    """The windows and the failure of a truncated recording are sent; then closing the file ends the process."""
    path = tmp_path / "died"
    marker = f"open({str(path)!r}, 'a')"
    dies = "'cut' in self.name" + ("" if always else f" and {marker}.tell() == 0 and {marker}.write('x')")
    use_program(tmp_path / "first-on-path", FAIL_AT_CLOSE.format(dies=dies), monkeypatch)
    a, b = write_recordings(tmp_path, ["a", "b"], 2.0)
    cut = write_truncated(tmp_path / "cut.wav", tone(4, RATE_HZ), 0.5)
    tables, record = run_isolated([a, cut, b], batch_size=batch_size)
    assert window_keys(tables) == [(name, index) for name in ("a", "cut", "b") for index in range(2)]
    assert len(tables) == 6 // batch_size
    kinds = [event.kind for event in record.events if isinstance(event, Failure)]
    assert kinds == (["truncated", "crash"] if always else ["truncated"])
    assert record.opened == [str(a), str(cut), str(b)]
    assert record.n_decoded == (2 if always else 3)


def test_a_death_does_not_change_the_samples_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(tmp_path / "first-on-path", FAIL_DURING_READ.format(die_after=2 * RATE_HZ), monkeypatch)
    files = write_recordings(tmp_path, ["a", "segv", "b"], 5.0)
    tables, _ = run_isolated(files, batch_size=3)
    for name in ("a", "b"):
        own = pa.concat_tables(tables).filter(pa.array([name == key for key, _ in window_keys(tables)]))
        (alone,) = decode(recordings_of([tmp_path / f"{name}.wav"]), [SECOND], 100, EventRecord())
        assert len(own) == 5
        np.testing.assert_array_equal(samples_of(own), samples_of(alone))
