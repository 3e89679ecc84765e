"""Recordings of phones and videos: formats that libsndfile does not read, decoded as exactly as their codecs allow."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.decoding import pyav_sound
from embedding.decoding.audio import open_recording
from embedding.decoding.audio_faults import AudioFault
from embedding.decoding.headers import ByteView
from embedding.listing import entries
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT
from tests.support.phones import FORMATS, write_with_pyav

RATE_HZ = 48_000


def decoded(source: str | io.BytesIO, rate_hz: int = RATE_HZ) -> np.ndarray:
    with open_recording(source) as recording:
        return np.concatenate([block for (block,) in recording.blocks(rate_hz)])


def sound(seconds: float = 3.0) -> np.ndarray:
    """Return a sound with a beginning and an end that can be found in time: a tone that grows, with a click in it."""
    samples = 0.3 * tone(seconds, RATE_HZ, 440.0) * np.linspace(0.2, 1, int(seconds * RATE_HZ), dtype=np.float32)
    return samples.astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("place", ["path", "stream"])
def test_a_recording_is_decoded_in_time_and_length(tmp_path: Path, name: str, place: str) -> None:
    codec, error = FORMATS[name]
    samples, path = sound(), tmp_path / f"a.{name}"
    write_with_pyav(path, samples, RATE_HZ, codec)
    found = decoded(str(path) if place == "path" else io.BytesIO(path.read_bytes()))
    # Encoders fill their last packet, and some containers do not say by how much; those without an edit list keep the
    # encoder's delay.
    shortest = len(samples) - (2048 if codec == "wmav2" else 1)  # FFmpeg's encoder drops what fills no packet
    assert shortest <= len(found) <= len(samples) + 5_000
    n = len(samples) - 8_000
    lags = range(2_200) if codec in ("aac", "wmav2", "libopus") else range(1)
    best = min(np.abs(found[lag : lag + n] - samples[:n]).mean() for lag in lags if lag + n <= len(found))
    assert best < error / 3


def test_stereo_is_averaged_and_the_rate_is_the_files_own(tmp_path: Path) -> None:
    left, right = sound(), -0.5 * sound()
    write_with_pyav(tmp_path / "a.mkv", np.column_stack([left, right]), RATE_HZ, "flac")
    with open_recording(str(tmp_path / "a.mkv")) as recording:
        assert (recording.channels, recording.sample_rate) == (2, RATE_HZ)
        found = np.concatenate([block for (block,) in recording.blocks(RATE_HZ)])
    assert np.abs(found - (left + right) / 2).max() < 1e-4


def test_the_sound_of_a_video_is_read(tmp_path: Path) -> None:
    samples = sound()
    write_with_pyav(tmp_path / "a.mkv", samples, RATE_HZ, "flac", has_video=True)
    assert np.abs(decoded(str(tmp_path / "a.mkv"))[: len(samples)] - samples).max() < 1e-4


def test_a_video_without_sound_is_empty(tmp_path: Path) -> None:
    import av

    container: Any
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=5)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for packet in video.encode(av.VideoFrame(32, 32, "yuv420p")):
            container.mux(packet)
        for packet in video.encode():
            container.mux(packet)
    with pytest.raises(AudioFault) as fault:
        decoded(str(tmp_path / "a.mp4"))
    assert (fault.value.kind, str(fault.value)) == ("empty", "the file has no sound")


def kept_and_fault(content: bytes) -> tuple[int, AudioFault | None]:
    """Return the number of samples that are decoded, and the fault after them."""
    n = 0
    try:
        with open_recording(io.BytesIO(content)) as recording:
            for (block,) in recording.blocks(RATE_HZ):
                n += len(block)
    except AudioFault as fault:
        return n, fault
    return n, None


@pytest.mark.parametrize("name", ["m4a", "alac.m4a", "mkv", "webm", "wma", "ts", "avi"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_file_that_is_cut_short_keeps_what_is_there(tmp_path: Path, name: str, share: float) -> None:
    samples = sound(6.0)
    write_with_pyav(tmp_path / f"a.{name}", samples, RATE_HZ, FORMATS[name][0])
    content = (tmp_path / f"a.{name}").read_bytes()
    n, fault = kept_and_fault(content[: int(share * len(content))])
    assert n < 0.9 * len(samples)
    if name == "ts":  # states no length: its end is where it ends
        return
    assert fault is not None
    assert fault.kind == ("truncated" if n else "corrupt")


@pytest.mark.parametrize("name", ["m4a", "mkv", "webm", "wma"])
def test_bytes_that_are_damaged_end_the_recording_or_change_it(tmp_path: Path, name: str) -> None:
    write_with_pyav(tmp_path / f"a.{name}", sound(), RATE_HZ, FORMATS[name][0])
    content = bytearray((tmp_path / f"a.{name}").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content)
        for at in rng.integers(0, len(damaged), 20):
            damaged[at] = rng.integers(0, 256)
        n, fault = kept_and_fault(bytes(damaged))
        assert n <= 70 * RATE_HZ
        if fault is not None:
            assert fault.kind in ("corrupt", "truncated", "nonfinite", "empty")
            assert "\n" not in str(fault)


def test_a_sound_whose_rate_or_channels_change_ends_there(tmp_path: Path) -> None:
    stereo, mono = np.column_stack([sound(), sound()]), sound()
    write_with_pyav(tmp_path / "stereo.aac", stereo, 44_100, "aac")
    write_with_pyav(tmp_path / "mono.aac", mono, 22_050, "aac")
    first, second = ((tmp_path / f"{name}.aac").read_bytes() for name in ("stereo", "mono"))
    for content in (first + second, second + first):
        n, fault = kept_and_fault(content)
        assert n > 0
        assert fault is None or fault.kind == "truncated"


def test_a_lost_connection_is_an_error_of_the_storage(tmp_path: Path) -> None:
    class Lost(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 60_000:
                raise ConnectionResetError(104, "Connection reset by peer")
            return super().read(size)

    write_with_pyav(tmp_path / "a.mkv", sound(20.0), RATE_HZ, "flac")
    with pytest.raises(ConnectionResetError):
        decoded(Lost((tmp_path / "a.mkv").read_bytes()))  # type: ignore[arg-type] — a stream


def test_without_the_extra_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_with_pyav(tmp_path / "a.m4a", sound(), RATE_HZ, "aac")
    find_spec = pyav_sound.find_spec
    monkeypatch.setattr(pyav_sound, "find_spec", lambda name: None if name == "av" else find_spec(name))
    with pytest.raises(AudioFault, match=r"needs a package that is not installed: .*pip install"):
        decoded(str(tmp_path / "a.m4a"))


def test_names_count_as_recordings_where_the_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries.audio_suffixes.cache_clear()
    assert {".m4a", ".mp4", ".webm", ".wma", ".wav"} <= entries.audio_suffixes()
    monkeypatch.setattr(entries, "find_spec", lambda _: None)
    entries.audio_suffixes.cache_clear()
    assert not {".m4a", ".mp4"} & entries.audio_suffixes()
    monkeypatch.undo()
    entries.audio_suffixes.cache_clear()


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "aiff"])
def test_formats_of_libsndfile_stay_with_it(tmp_path: Path, suffix: str) -> None:
    path = write_audio(tmp_path / f"a.{suffix}", tone(1.0, RATE_HZ), RATE_HZ)
    with path.open("rb") as stream:
        assert not pyav_sound.is_pyav_format(ByteView(stream))


@pytest.mark.long  # 90 s; the other tests read packet by packet, too
def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """Two hours, of which each sample would take four bytes: 1.4 GB."""
    import av

    container: Any
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=RATE_HZ)
        stream.layout = "mono"
        block = np.ascontiguousarray(0.1 * tone(60.0, RATE_HZ).reshape(1, -1))
        resampler = av.AudioResampler(stream.format, "mono", RATE_HZ, 1024)
        for minute in range(120):
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, minute * 60 * RATE_HZ
            for converted in resampler.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode())
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from embedding.decoding.audio import open_recording\n"
        "n = 0\n"
        "with open_recording(sys.argv[1]) as recording:\n"
        "    for (block,) in recording.blocks(16_000):\n"
        "        n += len(block)\n"
        # Not ru_maxrss, which begins with the memory of the process that has started this one.
        "print(n, re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.m4a"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    n, kilobytes = map(int, done.stdout.split())
    assert n == pytest.approx(7_200 * 16_000, abs=2_000)
    assert kilobytes < 400_000
