"""Facts that recorders write into their files: each source as the recorder writes it, and anything else."""

import io
import struct
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from embedding.decoding.audio import open_recording
from embedding.decoding.recorder_chunks import MOST_CHUNKS, WANTED_CHUNKS, read_chunks
from embedding.decoding.recorder_facts import (
    find_recorder_facts,
    parse_audiomoth_comment,
    parse_bext,
    parse_guano,
    parse_ixml,
)
from embedding.schema.recording_facts import RecordingFacts

GUANO = (
    "GUANO|Version: 1.0\nMake: Wildlife Acoustics\nModel: SM4BAT\nSerial: S4U01234\n"
    "Timestamp: 2025-05-03 03:13:00+02:00\n"
    "Loc Position: 47.37 8.54\nTemperature Int: 12.5\nWA|Song Meter|Battery Voltage: 6.1\nWA|Gain: 12 dB\n"
)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def wav(*chunks: bytes, after: tuple[bytes, ...] = (), form: bytes = b"RIFF", audio: bytes = b"\1\0" * 801) -> bytes:
    fmt = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16))
    body = b"WAVE" + b"".join(chunks) + fmt + chunk(b"data", audio) + b"".join(after)
    return form + struct.pack("<I", len(body)) + body


def comment_of(text: str) -> RecordingFacts | None:
    return parse_audiomoth_comment(text)


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        (
            "Recorded at 10:25:00 01/03/2017 by AudioMoth 0FE081F80FE081F0 at gain setting 2 "
            "while battery state was 4.5V",
            RecordingFacts(
                "audiomoth",
                datetime(2017, 3, 1, 10, 25),
                None,
                None,
                None,
                "AudioMoth 0FE081F80FE081F0",
                "gain setting 2",
                None,
                4.5,
            ),
        ),
        (
            "Recorded at 20:30:00 11/05/2020 (UTC) by AudioMoth 244B at medium gain setting "
            "while battery state was 4.7V and temperature was 12.3C.",
            RecordingFacts(
                "audiomoth", datetime(2020, 5, 11, 20, 30), 0, None, None, "AudioMoth 244B", "medium", 12.3, 4.7
            ),
        ),
        (
            "Recorded at 20:30:00 11/05/2020 (UTC-5) by AudioMoth 244B at low-medium gain while battery was 4.0V and "
            "temperature was -2.1C.",
            RecordingFacts(
                "audiomoth", datetime(2020, 5, 11, 20, 30), -300, None, None, "AudioMoth 244B", "low-medium", -2.1, 4.0
            ),
        ),
        (
            "Recorded at 00:00:00.500 01/01/2024 (UTC+5:30) during deployment 0123456789ABCDEF using external "
            "microphone at high gain while battery was less than 2.5V and temperature was 1.0C.",
            RecordingFacts("audiomoth", datetime(2024, 1, 1), 330, None, None, None, "high", 1.0, None),
        ),
    ],
)
def test_each_form_of_audiomoths_comment_is_read(comment: str, expected: RecordingFacts) -> None:
    assert comment_of(comment) == expected


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "recorded at dawn",
        "Recorded at 25:00:00 32/13/2020 by me",
        "Recorded at 10:25:00 01/03/1970 (UTC) at medium gain",
    ],
)
def test_a_comment_without_a_plausible_time_gives_none(comment: str) -> None:
    facts = comment_of(comment)
    assert facts is None or facts.recorded_at is None


def test_a_guano_chunk_is_read() -> None:
    assert parse_guano(GUANO.encode()) == RecordingFacts(
        "guano", datetime(2025, 5, 3, 3, 13), 120, 47.37, 8.54, "Wildlife Acoustics SM4BAT S4U01234", "12 dB", 12.5, 6.1
    )


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Timestamp: 2025-05-03", "recorded_at"),  # a date alone
        ("Timestamp: 1970-01-01T00:00:00", "recorded_at"),  # a clock that was not set
        ("Loc Position: 0.0 0.0", "latitude"),  # a receiver without a fix
        ("Loc Position: 91.0 8.0", "latitude"),
        ("Loc Position: 47.0", "latitude"),
        ("Temperature Int: warm", "temperature_c"),
        ("Temperature Int: 1e5", "temperature_c"),
    ],
)
def test_an_impossible_value_is_unknown(line: str, name: str) -> None:
    facts = parse_guano(f"{line}\nModel: M".encode())
    assert facts is not None
    assert getattr(facts, name) is None
    assert facts.recorder == "M"


def test_ixml_and_bext_are_read() -> None:
    bext = struct.pack("<256s32s32s10s8s8x", b"a", b"ZOOM H5", b"", b"2025-05-03", b"03:13:00").ljust(602, b"\0")
    assert parse_bext(bext) == RecordingFacts("bext", datetime(2025, 5, 3, 3, 13), recorder="ZOOM H5")
    xml = (
        b"<?xml version='1.0' encoding='UTF-8'?><BWFXML><LOCATION>"
        b"<LOCATION_GPS>47.3, 8.5</LOCATION_GPS></LOCATION><BEXT>"
        b"<BWF_ORIGINATOR>MixPre</BWF_ORIGINATOR><BWF_ORIGINATION_DATE>2025-05-03</BWF_ORIGINATION_DATE>"
        b"<BWF_ORIGINATION_TIME>03-13-00</BWF_ORIGINATION_TIME></BEXT></BWFXML>\0\0"
    )
    assert parse_ixml(xml) == RecordingFacts("ixml", datetime(2025, 5, 3, 3, 13), None, 47.3, 8.5, "MixPre")


def test_entities_that_grow_without_end_are_refused() -> None:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 50}">' for n in range(1, 12))
    xml = f'<!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">{entities}]><x><LOCATION_GPS>&a11;</LOCATION_GPS></x>'
    assert parse_ixml(xml.encode()) is None


@pytest.mark.parametrize("form", [b"RIFF", b"RF64"])
@pytest.mark.parametrize("is_behind", [False, True])
def test_a_chunk_is_found_before_and_behind_the_audio(form: bytes, is_behind: bool) -> None:
    guano = chunk(b"guan", GUANO.encode() + b" ")  # of odd length
    content = wav(after=(guano,), form=form) if is_behind else wav(guano, form=form)
    assert read_chunks(io.BytesIO(content)) == {b"guan": GUANO.encode() + b" "}


def test_a_chunk_behind_the_audio_of_a_file_beyond_4_gib_is_found(tmp_path: Path) -> None:
    n_bytes = 5 << 30
    ds64 = chunk(b"ds64", struct.pack("<QQQI", n_bytes + 100, n_bytes, 0, 0))
    fmt = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16))
    with (tmp_path / "a.wav").open("w+b") as file:
        file.write(b"RF64\xff\xff\xff\xffWAVE" + ds64 + fmt + b"data\xff\xff\xff\xff")
        file.seek(n_bytes, 1)  # the file has a hole, no gigabytes
        file.write(chunk(b"guan", GUANO.encode()))
        assert read_chunks(file) == {b"guan": GUANO.encode()}


@pytest.mark.parametrize("length", [2**63 - 10, 2**62, 2**64 - 1])
def test_a_length_that_no_stream_can_seek_to_ends_the_search(tmp_path: Path, length: int) -> None:
    content = wav(chunk(b"ds64", struct.pack("<QQQI", length, length, 0, 0)), form=b"RF64")
    content = content.replace(b"data" + struct.pack("<I", 1602), b"data\xff\xff\xff\xff")
    (tmp_path / "a.wav").write_bytes(content)
    for stream in (io.BytesIO(content), (tmp_path / "a.wav").open("rb")):
        with stream:
            assert read_chunks(stream) == {}


def test_an_offset_that_no_zone_has_is_unknown() -> None:
    facts = parse_guano(b"Timestamp: 2025-05-03T03:13:00+23:30")
    assert facts is not None
    assert (facts.recorded_at, facts.utc_offset_min) == (datetime(2025, 5, 3, 3, 13), None)
    facts = comment_of("Recorded at 10:25:00 01/03/2017 (UTC+99) by AudioMoth 1 at medium gain")
    assert facts is not None
    assert facts.utc_offset_min is None


def test_a_file_of_empty_chunks_is_given_up() -> None:
    content = b"RIFF\0\0\0\0WAVE" + chunk(b"junk", b"") * (MOST_CHUNKS + 5) + chunk(b"guan", b"Model: M")
    assert read_chunks(io.BytesIO(content)) == {}


def test_a_chunk_that_is_too_long_is_not_read() -> None:
    assert read_chunks(io.BytesIO(wav(chunk(b"guan", b"a" * (WANTED_CHUNKS[b"guan"] + 1))))) == {}


def test_chunks_that_flac_kept_are_found(tmp_path: Path) -> None:
    """``flac --keep-foreign-metadata`` stores each chunk in a block of its own, of the application ``riff``."""
    sf.write(tmp_path / "a.flac", np.zeros(8000), 8000)
    content = (tmp_path / "a.flac").read_bytes()
    blocks = b""
    for kept in (b"RIFF\0\0\0\0WAVE", chunk(b"guan", GUANO.encode()), chunk(b"bext", b"short")[:-3]):
        blocks += bytes([2]) + (4 + len(kept)).to_bytes(3) + b"riff" + kept
    end = 4 + 4 + 34  # of the first block
    (tmp_path / "b.flac").write_bytes(content[:end] + blocks + content[end:])
    with (tmp_path / "b.flac").open("rb") as file:
        assert read_chunks(file) == {b"guan": GUANO.encode()}
    with open_recording(str(tmp_path / "b.flac")) as recording:
        assert recording.n_frames == 8000


def test_the_comment_of_a_flac_is_read(tmp_path: Path) -> None:
    with sf.SoundFile(tmp_path / "a.flac", "w", 8000, 1) as file:
        file.comment = "Recorded at 10:25:00 01/03/2017 (UTC) by AudioMoth 1 at medium gain while battery was 4.5V"
        file.write(np.zeros(8000))
    with open_recording(str(tmp_path / "a.flac")) as recording:
        assert comment_of(recording.comment) is not None


@given(st.sampled_from([*WANTED_CHUNKS, b"ICMT"]), st.binary(max_size=700), st.text(max_size=80))
def test_any_content_gives_facts_or_none(name: bytes, content: bytes, comment: str) -> None:
    chunks = {name: content, b"LIST": b"INFOICMT" + content}
    for facts in find_recorder_facts(chunks, comment):
        assert isinstance(facts, RecordingFacts)


@given(st.binary(max_size=300), st.integers(0, 40))
def test_any_file_gives_chunks_or_none(content: bytes, cut: int) -> None:
    for begin in (b"RIFF\0\0\0\0WAVE", b"RF64\0\0\0\0WAVE", b"fLaC", wav(chunk(b"guan", b"Model: M"))[:cut]):
        for name, found in read_chunks(io.BytesIO(begin + content)).items():
            assert len(found) <= WANTED_CHUNKS[name]
