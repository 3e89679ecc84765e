"""Bounded memory for recordings of any length: peak resident memory of a process that decodes them."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.support.audio import tone
from tests.support.commands import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak memory of one program")

SOURCE_HZ = 48_000
WORKER_MB = 700
# The sound repeats every 10 s, so that each window of 5 s equals the window before the previous one.
PATTERN = (tone(10, SOURCE_HZ) * 2**15).astype(np.int16)

PROGRAM = """
import json, re, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from embedding.decoding.decode import decode
from embedding.decoding.events import Failed, Windows
from embedding.schema.recordings import PendingRecording
from embedding.schema.windows import WindowSpec

files = sys.argv[1:]
recordings = [PendingRecording(file, at, 0, frozenset([0])) for at, file in enumerate(files)]
failures = []

n_windows, n_different, pair = 0, 0, None
for event in decode(recordings, [WindowSpec(16_000, 80_000, 80_000, "pad")], 16):
    if isinstance(event, Failed):
        failures.append((event.failure.kind, event.failure.message))
    if not isinstance(event, Windows):
        continue
    table = event.table
    windows = table["window_16000"].combine_chunks().flatten().to_numpy().reshape(-1, 2, 80_000)
    if pair is None:
        pair = windows[1].copy()  # not the first pair, because there is no audio before the first window
    n_different += int((np.abs(windows - pair).max(axis=(1, 2)) > 1e-4).sum())
    n_windows += len(table)
    last = table.slice(len(table) - 1).drop(["window_16000"]).to_pylist()[0]
# The peak of getrusage is inherited from the parent process, which has loaded torch.
peak_mb = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
result = {"peak_mb": peak_mb, "n_windows": n_windows, "n_different": n_different, "last": last, "failures": failures}
print(json.dumps(result))
"""


def decode_alone(*paths: Path) -> dict:
    """Decode ``paths`` in a separate process, and return the values that it measured."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    print(paths[0].name, len(paths), {name: measured[name] for name in ("peak_mb", "n_windows")})  # noqa: T201
    return measured


def patterns(duration_s: int) -> Iterator[np.ndarray]:
    for _ in range(duration_s // 10):
        yield PATTERN


def write_long(path: Path, duration_s: int, subtype: str) -> Path:
    level = 0.0 if path.suffix == ".flac" else None  # the fastest compression
    with sf.SoundFile(path, "w", SOURCE_HZ, 1, subtype=subtype, compression_level=level) as file:
        for block in patterns(duration_s):
            file.write(block)
    return path


def write_wrapped_wav(path: Path, duration_s: int) -> Path:
    """Write a 16-bit WAV above 4 GiB whose stated length has wrapped around at 32 bits."""
    header = BytesIO()
    sf.write(header, PATTERN[:0], SOURCE_HZ, format="WAV", subtype="PCM_16")
    n_bytes = duration_s * SOURCE_HZ * 2
    with path.open("wb") as file:
        file.write(header.getvalue()[:-4] + struct.pack("<I", n_bytes % 2**32))
        for block in patterns(duration_s):
            file.write(block.astype("<i2").tobytes())
    return path


def check(measured: dict, duration_s: int) -> None:
    assert measured["failures"] == []
    assert measured["n_windows"] == duration_s // 5
    assert measured["n_different"] <= 2, "only the first and the last windows have silence beside them"
    assert measured["last"]["window_index"] == duration_s // 5 - 1
    assert measured["last"]["end_time"] == measured["last"]["duration"] == duration_s
    assert measured["peak_mb"] < WORKER_MB


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "PCM_U8"), ("a.flac", "PCM_16")])
def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path: Path, name: str, subtype: str) -> None:
    short = decode_alone(write_long(tmp_path / f"short-{name}", 15 * 60, subtype))
    long = decode_alone(write_long(tmp_path / f"long-{name}", 40 * 60, subtype))
    check(short, 15 * 60)
    check(long, 40 * 60)
    # The difference of 25 min is 96 MB of samples at the model's rate.
    assert long["peak_mb"] - short["peak_mb"] < 20


def test_memory_does_not_grow_with_the_number_of_recordings(tmp_path: Path) -> None:
    path = write_long(tmp_path / "a.wav", 9 * 60, "PCM_16")  # short enough to be decoded whole: 35 MB
    one, many = decode_alone(path), decode_alone(*[path] * 8)
    assert many["n_windows"] == 8 * one["n_windows"]
    assert many["peak_mb"] - one["peak_mb"] < 40


@pytest.mark.long
@pytest.mark.parametrize("form", ["8-bit wav", "16-bit rf64", "16-bit wav, wrapped", "flac"])
def test_a_recording_of_24_hours_is_decoded_in_bounded_memory(tmp_path: Path, form: str) -> None:
    duration_s = 24 * 3600
    match form:
        case "8-bit wav":
            path = write_long(tmp_path / "a.wav", duration_s, "PCM_U8")
        case "16-bit rf64":
            path = write_long(tmp_path / "a.rf64", duration_s, "PCM_16")
        case "16-bit wav, wrapped":
            path = write_wrapped_wav(tmp_path / "a.wav", duration_s)
        case _:
            path = write_long(tmp_path / "a.flac", duration_s, "PCM_16")
    try:
        check(decode_alone(path), duration_s)
    finally:
        path.unlink()
