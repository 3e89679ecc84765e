"""Decoding in a process of its own, with decoders that fail on purpose.

A folder at the front of the module path holds a ``sitecustomize.py`` that makes soundfile fail for some names of files.
Only the processes of isolated decoding read it; in the process of the test soundfile does not change.
"""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from embedding.schema.windows import WindowSpec
from tests.support.audio import tone, write_audio
from tests.support.decoding import RATE_HZ, SECOND, EventRecord, decode, recordings_of

FAIL_BY_NAME = """
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

def raise_bug():
    raise ZeroDivisionError("a bug")

def exit():
    import os
    os._exit(int(os.environ["EXIT_CODE"]))

def init(self, file, *arguments, **options):
    for word, act in {"segv": segfault, "endless": allocate, "zerodivision": raise_bug, "exit": exit}.items():
        if word in str(getattr(file, "name", file)):
            act()
    _init(self, file, *arguments, **options)

soundfile.SoundFile.__init__ = init
"""

# Ends the process while a long recording is read, after some of its windows were sent; every window is sent at once.
FAIL_DURING_READ = """
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


def use_program(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each new Python process run ``program`` first; ``folder`` is created for it."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(program)
    monkeypatch.syspath_prepend(folder)


def write_recordings(folder: Path, names: Iterable[str], duration_s: float = 2.5) -> list[Path]:
    """Write a recording for each name, each with other audio."""
    return [
        write_audio(folder / f"{name}.wav", tone(duration_s, RATE_HZ, seed=seed), RATE_HZ)
        for seed, name in enumerate(names)
    ]


def run_isolated(
    files: Iterable[Path], spec: WindowSpec = SECOND, batch_size: int = 4, table: pa.Table | None = None
) -> tuple[list[pa.Table], EventRecord]:
    """Decode files, or a table of recordings, in a process of its own; return the tables and the other events."""
    record = EventRecord()
    table = recordings_of(files) if table is None else table
    return list(decode(table, [spec], batch_size, record, isolated=True)), record


def window_keys(tables: list[pa.Table]) -> list[tuple[str, int]]:
    """Return the name of the file and the index of each window, in order."""
    return [
        (Path(file).stem, index)
        for table in tables
        for file, index in zip(table["file"].to_pylist(), table["window_index"].to_pylist(), strict=True)
    ]
