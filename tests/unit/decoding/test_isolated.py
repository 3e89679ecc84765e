"""Decoding in a process of its own: the same tables, and what kills that process becomes a failure row.

A folder in front of the module path holds a ``sitecustomize.py`` that makes soundfile misbehave for some names. It is
read by the processes apart alone; in this one soundfile stays what it is.
"""

import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import pyarrow as pa
import pytest

from embedding.decoding import isolated
from embedding.decoding.events import Opened, Windows
from embedding.decoding.isolated import TRIES
from embedding.schema.failures import Failure
from embedding.schema.windows import WindowSpec
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT
from tests.support.decoding import RATE_HZ, SECOND, EventRecord, decode, recordings_of, write_truncated

MISBEHAVIOUR = """
import soundfile

_init = soundfile.SoundFile.__init__

def segfault():
    import os, signal
    os.kill(os.getpid(), signal.SIGSEGV)

def allocate():
    import numpy
    kept = []
    while True:
        kept.append(numpy.empty(1 << 28, numpy.uint8))

def stumble():
    raise ZeroDivisionError("a bug")

def exit():
    import os
    os._exit(int(os.environ["EXIT_CODE"]))

def init(self, file, *arguments, **options):
    for word, act in {"segv": segfault, "endless": allocate, "stumble": stumble, "exit": exit}.items():
        if word in str(getattr(file, "name", file)):
            act()
    _init(self, file, *arguments, **options)

soundfile.SoundFile.__init__ = init
"""

# Kills while a long recording is read, when some of its windows have been sent; later ones are sent at once.
IN_MID_READ = """
import os, signal
import embedding.decoding.decode
from embedding.decoding import audio

embedding.decoding.decode.WHOLE_RECORDING_S = 1
audio.BLOCK_SAMPLES = 4_000
_blocks = audio.Recording._mono_blocks

def blocks(self, block_frames):
    n = 0
    for block in _blocks(self, block_frames):
        n += len(block)
        if n > {die_after} and "segv" in self._file.name:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield block

audio.Recording._mono_blocks = blocks
"""


def put_in_front(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(program)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_front(tmp_path / "in-front", MISBEHAVIOUR, monkeypatch)


def recordings(folder: Path, names: Iterable[str], duration_s: float = 2.5) -> list[Path]:
    return [
        write_audio(folder / f"{name}.wav", tone(duration_s, RATE_HZ, seed=at), RATE_HZ)
        for at, name in enumerate(names)
    ]


def run_isolated(
    files: Iterable[Path], spec: WindowSpec = SECOND, batch_size: int = 4, table: pa.Table | None = None
) -> tuple[list[pa.Table], EventRecord]:
    record = EventRecord()
    table = recordings_of(files) if table is None else table
    return list(decode(table, [spec], batch_size, record, isolated=True)), record


def keys(tables: list[pa.Table]) -> list[tuple[str, int]]:
    return [
        (Path(file).stem, index)
        for table in tables
        for file, index in zip(table["file"].to_pylist(), table["window_index"].to_pylist(), strict=True)
    ]


# --- as in the open ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_tables_and_what_is_told_are_those_of_decoding_in_the_open(tmp_path: Path, batch_size: int) -> None:
    lengths_s = [2.5, 0.25, 7.1, 1, 4.999]
    files = [write_audio(tmp_path / f"{at}.wav", tone(s, RATE_HZ), RATE_HZ) for at, s in enumerate(lengths_s)]
    files.insert(1, tmp_path / "gone.wav")
    files.insert(4, write_truncated(tmp_path / "cut.flac", tone(5, RATE_HZ), 0.5))
    table = recordings_of(files).append_column(
        "stored", pa.array([[[0]], None, None, [[1, 3]], None, [[]], None], pa.list_(pa.list_(pa.int32())))
    )
    here = EventRecord()
    expected = list(decode(table, [SECOND], batch_size, here))
    tables, record = run_isolated([], batch_size=batch_size, table=table)
    assert len(tables) == len(expected)
    assert all(one.equals(other) for one, other in zip(tables, expected, strict=True))
    assert record.events == here.events
    assert record.opened == here.opened
    assert (record.audio_s, record.n_decoded) == (here.audio_s, here.n_decoded)


def test_audio_that_is_known_is_told_as_unchanged(tmp_path: Path) -> None:
    files = recordings(tmp_path, ["a", "b"])
    (first,), _ = run_isolated(files, batch_size=100)
    known = pa.array([[first["audio_hash_16000"][0].as_py()], [17]], pa.list_(pa.int64()))
    tables, record = run_isolated([], table=recordings_of(files).append_column("known_hash", known))
    assert record.events == ["100 unchanged", "without windows"]
    assert keys(tables) == [("b", 0), ("b", 1), ("b", 2)]


def test_no_recordings_are_no_tables() -> None:
    tables, record = run_isolated([])
    assert (tables, record.events) == ([], [])


def test_what_a_library_prints_does_not_get_between_the_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quits = 'os._exit(int(os.environ["EXIT_CODE"]))'
    put_in_front(tmp_path / "in-front", MISBEHAVIOUR.replace(quits, "os.write(1, b'noise' * 1000)"), monkeypatch)
    tables, _ = run_isolated(recordings(tmp_path, ["exit"]))
    assert len(keys(tables)) == 3


# --- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("misbehaving")
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
def test_what_kills_its_reader_is_set_aside_and_all_others_come_out_once(
    tmp_path: Path, names: list[str], batch_size: int
) -> None:
    files = recordings(tmp_path, names)
    good = [file for file in files if "segv" not in file.name]
    tables, record = run_isolated(files, batch_size=batch_size)
    bad = {file.name: "crash" for file in files if file not in good}
    assert {name: kind for name, (kind, _) in record.failures.items()} == bad
    assert [type(event) for event in record.events].count(Failure) == len(bad)
    assert record.events.count("without windows") == len(bad)
    for kind, message in record.failures.values():
        assert (kind, message) == ("crash", "the process that read it died of SIGSEGV, 3 times in a row")
    assert record.n_decoded == len(good)
    ids = dict(recordings_of(files).select(["file", "file_id"]).to_pandas().itertuples(index=False))
    assert {e.file_id for e in record.events if isinstance(e, Failure)} == {ids[str(tmp_path / name)] for name in bad}
    expected = list(decode(recordings_of(good), [SECOND], batch_size, EventRecord()))
    assert [len(table) for table in tables] == [len(table) for table in expected]
    for one, other in zip(tables, expected, strict=True):
        assert one.drop_columns("file_id").equals(other.drop_columns("file_id"))


@pytest.mark.usefixtures("misbehaving")
def test_a_recording_is_tried_a_bounded_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: begun.append(1) or popen(*a, **k))
    run_isolated(recordings(tmp_path, ["a", "segv", "b"]))
    assert len(begun) == TRIES + 1


@pytest.mark.usefixtures("misbehaving")
def test_memory_without_end_ends_the_process_apart_and_not_the_machine(tmp_path: Path) -> None:
    tables, record = run_isolated(recordings(tmp_path, ["a", "endless", "b"]))
    assert record.failures == {
        "endless.wav": ("crash", "the process that read it needed more than 4 GiB, 3 times in a row")
    }
    assert [name for name, _ in keys(tables)] == ["a"] * 3 + ["b"] * 3


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_ends_in_silence_is_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setenv("EXIT_CODE", str(code))
    tables, record = run_isolated(recordings(tmp_path, ["exit", "b"]))
    assert record.failures["exit.wav"][1] == f"the process that read it ended with exit code {code}, 3 times in a row"
    assert [name for name, _ in keys(tables)] == ["b"] * 3


def test_a_death_after_everything_is_told_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_front(tmp_path / "in-front", "import atexit, os\natexit.register(os.abort)", monkeypatch)
    tables, record = run_isolated(recordings(tmp_path, ["a", "b"]))
    assert [len(table) for table in tables] == [4, 2]
    assert (record.n_decoded, record.events) == (2, [])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("die_after_s", [2.1, 4.5])
def test_windows_that_came_before_a_death_do_not_come_twice_and_those_behind_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, die_after_s: float
) -> None:
    """Of a long recording windows leave before it is read to its end."""
    put_in_front(tmp_path / "in-front", IN_MID_READ.format(die_after=round(die_after_s * RATE_HZ)), monkeypatch)
    files = recordings(tmp_path, ["a", "segv", "b", "c"], 6.5)
    tables, record = run_isolated(files, batch_size=batch_size)
    came = keys(tables)
    assert len(came) == len(set(came))
    for name in "abc":
        assert [key for key in came if key[0] == name] == [(name, at) for at in range(7)]
    killer = [at for name, at in came if name == "segv"]
    assert killer == list(range(len(killer)))
    assert len(killer) <= die_after_s
    assert {name: kind for name, (kind, _) in record.failures.items()} == {"segv.wav": "crash"}
    assert (record.n_decoded, record.audio_s) == (3, 3 * 6.5)


def test_a_death_that_does_not_happen_again_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's choice, say: each recording kills its process once, in its middle."""
    mark = tmp_path / "died-"
    note = f"open({str(mark)!r} + self._file.name[-5], 'a')"
    once = f"{note}.tell() == 0 and {note}.write('x')"
    program = IN_MID_READ.format(die_after=3 * RATE_HZ).replace('"segv" in self._file.name', once)
    put_in_front(tmp_path / "in-front", program, monkeypatch)
    files = [*recordings(tmp_path, ["a", "b"], 6.5), write_truncated(tmp_path / "c.wav", tone(12, RATE_HZ), 0.5)]
    tables, record = run_isolated(files, batch_size=2)
    assert sorted(path.name for path in tmp_path.glob("died-*")) == ["died-a", "died-b", "died-c"]
    assert keys(tables) == [(name, at) for name, n in (("a", 7), ("b", 7), ("c", 6)) for at in range(n)]
    assert [len(table) for table in tables] == [2] * 10
    assert record.n_decoded == 3
    assert [type(event) for event in record.events] == [Failure]
    assert {kind for kind, _ in record.failures.values()} == {"truncated"}


AT_ITS_END = """
import os, soundfile

_close = soundfile.SoundFile.close

def close(self):
    if {dies}:
        os.abort()
    _close(self)

soundfile.SoundFile.close = close
"""


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_was_told_of_a_recording_before_its_death_is_not_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, *, again: bool
) -> None:
    """Its windows have come, and that it is truncated has been told; then closing it kills the process."""
    mark = tmp_path / "died"
    note = f"open({str(mark)!r}, 'a')"
    dies = "'cut' in self.name" + ("" if again else f" and {note}.tell() == 0 and {note}.write('x')")
    put_in_front(tmp_path / "in-front", AT_ITS_END.format(dies=dies), monkeypatch)
    a, b = recordings(tmp_path, ["a", "b"], 2.0)
    cut = write_truncated(tmp_path / "cut.wav", tone(4, RATE_HZ), 0.5)
    tables, record = run_isolated([a, cut, b], batch_size=batch_size)
    assert keys(tables) == [(name, at) for name in ("a", "cut", "b") for at in range(2)]
    assert len(tables) == 6 // batch_size
    told = [event.kind for event in record.events if isinstance(event, Failure)]
    assert told == (["truncated", "crash"] if again else ["truncated"])
    assert record.opened == [str(a), str(cut), str(b)]
    assert record.n_decoded == (2 if again else 3)


# --- its own faults ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("misbehaving")
def test_a_bug_is_raised_here_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="isolated decoding failed") as caught:
        run_isolated(recordings(tmp_path, ["a", "stumble"]))
    assert "ZeroDivisionError: a bug" in str(caught.value)
    assert "Traceback" in str(caught.value)
    assert "in stumble" in str(caught.value)


def test_a_process_that_cannot_even_begin_is_nobody_s_recording_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_front(tmp_path / "in-front", "import os\nos._exit(5)", monkeypatch)
    table = pa.concat_tables([recordings_of(recordings(tmp_path, ["a"]))] * 20_000)  # more than a pipe holds
    with pytest.raises(RuntimeError, match="ended with exit code 5 before it opened a recording"):
        run_isolated([], table=table)


def test_a_machine_s_own_limit_of_memory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch system's ``ulimit -v``, say."""
    limit = 3 << 30
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))"
    put_in_front(tmp_path / "in-front", program, monkeypatch)
    assert resource.getrlimit(resource.RLIMIT_AS)[1] != limit
    tables, _ = run_isolated(recordings(tmp_path, ["a"]))
    assert len(keys(tables)) == 3


def test_a_message_that_was_cut_off_is_the_end(tmp_path: Path) -> None:
    (table,), _ = run_isolated(recordings(tmp_path, ["a"]))
    events = [Opened("a"), Windows(table.drop_columns("window_16000"))]
    stream = b"".join(map(pickle.dumps, events))
    n_first = len(pickle.dumps(events[0]))
    for n_bytes in range(len(stream)):
        assert list(isolated._messages(BytesIO(stream[:n_bytes]))) == (events[:1] if n_bytes >= n_first else [])


# --- nobody listens ---------------------------------------------------------------------------------------------------


def children() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children()
        if "embedding.decoding.isolated" in " ".join(process.cmdline())
    ]


def test_a_process_that_is_not_listened_to_any_more_ends(tmp_path: Path) -> None:
    tables = decode(recordings_of(recordings(tmp_path, "ab", 30.0)), [SECOND], 1, isolated=True)
    next(tables)
    (child,) = children()
    cast(Generator[pa.Table, None, None], tables).close()
    assert not child.is_running()
    assert children() == []


def test_no_process_is_left_behind_when_its_listener_is_killed(tmp_path: Path) -> None:
    files = recordings(tmp_path, "abc", 60.0)
    program = (
        "import sys, psutil\n"
        "from tests.unit.decoding.test_isolated import SECOND, decode, recordings_of\n"
        "tables = decode(recordings_of(sys.argv[1:]), [SECOND], 1, isolated=True)\n"
        "next(tables)\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, files)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as listener:
        assert listener.stdout is not None
        said = listener.stdout.readline()
        assert said, "the listener ended before it had heard anything"
        child = psutil.Process(int(said))
        listener.kill()
    until = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "it goes on with nobody listening"
        time.sleep(0.05)


def test_vectors_are_not_disturbed_by_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples too, to the bit."""
    put_in_front(tmp_path / "in-front", IN_MID_READ.format(die_after=2 * RATE_HZ), monkeypatch)
    files = recordings(tmp_path, ["a", "segv", "b"], 5.0)
    tables, _ = run_isolated(files, batch_size=3)
    for name in ("a", "b"):
        own = pa.concat_tables(tables).filter(pa.array([name == key for key, _ in keys(tables)]))
        samples = own["window_16000"].combine_chunks().flatten().to_numpy().reshape(5, RATE_HZ)
        (alone,) = decode(recordings_of([tmp_path / f"{name}.wav"]), [SECOND], 100, EventRecord())
        np.testing.assert_array_equal(
            samples, alone["window_16000"].combine_chunks().flatten().to_numpy().reshape(5, -1)
        )
