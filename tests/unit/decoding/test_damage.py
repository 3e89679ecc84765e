"""Damaged recordings: the audio that is kept, and the kind of the fault."""

import re
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.decoding.audio import open_recording
from embedding.decoding.audio_faults import AudioFault
from tests.support.encoded_audio import (
    EIGHT_SECONDS,
    MINUTE,
    RATE_HZ,
    decode_audio,
    decode_from_disk_and_stream,
    decode_or_fault,
    encode_audio,
    encoded_minute,
    with_data_length,
    with_total_samples,
)

SIGNALLING_NAN = np.array([0x7FA0_0000], np.uint32).view(np.float32)[0]


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_truncated_uncompressed_recording_keeps_its_samples(container: str, subtype: str) -> None:
    content = encode_audio(EIGHT_SECONDS, RATE_HZ, container, subtype)
    cut = content[: len(content) // 2 - 1]
    decoded = decode_audio(cut)
    assert decoded.kind == "truncated"
    assert re.fullmatch(
        r"only [34]\.\d{3} s could be read, and are kept: the header states \d+ bytes, the file has \d+ \(50%\)",
        str(decoded.fault),
    )
    assert 3.99 * RATE_HZ < len(decoded.samples) <= 4 * RATE_HZ
    np.testing.assert_array_equal(decoded.samples, decode_audio(content).samples[: len(decoded.samples)])


def test_a_wav_whose_header_states_3_gb_is_truncated() -> None:
    decoded = decode_audio(with_data_length(encode_audio(EIGHT_SECONDS), 3_000_000_000))
    assert decoded.kind == "truncated"
    assert len(decoded.samples) == len(EIGHT_SECONDS)


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("MAT4", "PCM_16"), ("SDS", "PCM_16"), ("SVX", "PCM_16"), ("VOC", "PCM_16"), ("VOC", "ULAW")],
)
def test_a_truncated_recording_of_an_old_format_is_a_fault(container: str, subtype: str) -> None:
    content = encode_audio(EIGHT_SECONDS, RATE_HZ, container, subtype)
    assert decode_audio(content).fault is None
    decoded = decode_audio(content[: len(content) // 2])
    assert decoded.kind == "truncated"
    n_kept = len(EIGHT_SECONDS) // 2 - 100
    np.testing.assert_array_equal(decoded.samples[:n_kept], decode_audio(content).samples[:n_kept])


@pytest.mark.parametrize("length", [1 << 62, (1 << 63) + 1, (1 << 64) - 1])
@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "PCM_16"])
def test_a_w64_whose_header_states_years_ends_soon(subtype: str, length: int) -> None:
    content = encode_audio(EIGHT_SECONDS, RATE_HZ, "W64", subtype)
    position = content.index(b"data") + 16
    decoded = decode_or_fault(content[:position] + struct.pack("<Q", length) + content[position + 8 :])
    if isinstance(decoded, AudioFault):
        assert decoded.kind == "corrupt"
    else:
        assert len(decoded.samples) < len(EIGHT_SECONDS) + 1_000


def test_a_truncated_flac_keeps_every_sample_before_the_damage(tmp_path: Path) -> None:
    flac = encoded_minute("FLAC")
    path = tmp_path / "a.flac"
    for share in (0.3, 0.5, 0.9):
        path.write_bytes(flac[: int(len(flac) * share)])
        decoded = decode_from_disk_and_stream(path)
        assert decoded.kind == "truncated"
        assert str(decoded.fault).endswith("are kept: the decoder stopped (flac decoder lost sync)")
        assert len(decoded.samples) == pytest.approx(share * len(MINUTE), abs=2 * 4_096)  # two frames of FLAC
        np.testing.assert_array_equal(decoded.samples, decode_audio(flac).samples[: len(decoded.samples)])


def test_a_flac_with_a_flipped_bit_keeps_every_sample_before_the_bit() -> None:
    flac = bytearray(encoded_minute("FLAC"))
    whole = decode_audio(bytes(flac)).samples
    for share in (0.3, 0.5, 0.9):
        position = int(len(flac) * share)
        flac[position] ^= 0x10
        decoded = decode_audio(bytes(flac))
        flac[position] ^= 0x10
        assert decoded.kind == "truncated"
        assert len(decoded.samples) == pytest.approx(share * len(MINUTE), abs=2 * 4_096)
        np.testing.assert_array_equal(decoded.samples, whole[: len(decoded.samples)])


@pytest.mark.parametrize(("container", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_a_truncated_lossy_recording_keeps_the_decoded_audio(container: str, subtype: str | None) -> None:
    content = encoded_minute(container, subtype)
    decoded = decode_audio(content[: len(content) // 2])
    assert decoded.kind == "truncated"
    assert 27 * RATE_HZ < len(decoded.samples) < 31 * RATE_HZ
    whole = decode_audio(content).samples
    np.testing.assert_array_equal(decoded.samples, whole[: len(decoded.samples)])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_gap_in_an_ogg_recording_is_a_fault(subtype: str) -> None:
    content = bytearray(encoded_minute("OGG", subtype))
    content[len(content) // 2] ^= 0x10  # the decoder skips the page of this byte
    decoded = decode_audio(bytes(content))
    assert decoded.kind == "truncated"
    assert "a damaged part was skipped" in str(decoded.fault)
    assert len(decoded.samples) == pytest.approx(len(MINUTE), abs=2 * RATE_HZ)


@pytest.mark.parametrize("container", ["MP3", "FLAC", "WAV", "AIFF"])
def test_junk_after_the_stated_end_is_not_a_fault(container: str) -> None:
    content = encoded_minute(container)
    junk = np.random.default_rng(0).bytes(100_000)
    decoded = decode_audio(content + junk)
    assert decoded.fault is None
    np.testing.assert_array_equal(decoded.samples, decode_audio(content).samples)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.au", "a.snd", "a.raw", "a"])
def test_a_text_file_with_the_name_of_a_recording_is_corrupt(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("this is not audio, whatever its name\n" * 5_000)
    for source in (str(path), BytesIO(path.read_bytes())):
        with (
            pytest.raises(AudioFault, match=r"^not readable as audio: Format not recognised$") as error,
            open_recording(source),
        ):
            pass
        assert error.value.kind == "corrupt"


def test_a_flac_damaged_from_the_start_is_corrupt() -> None:
    flac = bytearray(encode_audio(EIGHT_SECONDS, RATE_HZ, "FLAC"))
    flac[200:] = bytes(len(flac) - 200)
    decoded = decode_audio(bytes(flac))
    assert decoded.kind == "corrupt"
    assert len(decoded.samples) == 0
    assert str(decoded.fault).startswith("no audio could be read: the decoder stopped (")


def test_a_file_without_bytes_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    for source in (str(tmp_path / "a.wav"), BytesIO()):
        with pytest.raises(AudioFault, match="no bytes") as error, open_recording(source):
            pass
        assert error.value.kind == "empty"


@pytest.mark.parametrize("container", ["WAV", "AIFF", "RF64", "OGG"])
def test_a_file_with_only_a_header_is_empty(container: str) -> None:
    with pytest.raises(AudioFault, match="a header, but no audio") as error:
        decode_audio(encode_audio(EIGHT_SECONDS[:0], RATE_HZ, container))
    assert error.value.kind == "empty"


def test_a_flac_of_unknown_length_without_audio_is_empty() -> None:
    flac = with_total_samples(encode_audio(EIGHT_SECONDS, RATE_HZ, "FLAC"), 0)
    header = flac[: flac.index(b"\xff\xf8", 42)]  # up to the first frame
    with pytest.raises(AudioFault, match="a header, but no audio") as error:
        decode_audio(header)
    assert error.value.kind == "empty"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_the_audio_before_a_nonfinite_sample_is_kept(value: float, subtype: str) -> None:
    samples = np.stack([EIGHT_SECONDS, EIGHT_SECONDS], axis=1)
    samples[3 * RATE_HZ, 1] = value
    decoded = decode_audio(encode_audio(samples, subtype=subtype))
    assert decoded.kind == "nonfinite"
    assert (
        str(decoded.fault)
        == "a sample is NaN, infinite or above 1e+12 at 3.000 s; the audio before this sample is kept"
    )
    np.testing.assert_array_equal(decoded.samples, EIGHT_SECONDS[: 3 * RATE_HZ])


@pytest.mark.parametrize("frame", [[np.inf, -np.inf], [3e38, 3e38], [SIGNALLING_NAN], [0.5, SIGNALLING_NAN]])
def test_nonfinite_samples_cause_no_warning(frame: list[float]) -> None:
    samples = np.tile(np.array(frame, np.float32), (100, 1))
    decoded = decode_audio(encode_audio(samples, subtype="FLOAT"))
    assert (decoded.kind, len(decoded.samples)) == ("nonfinite", 0)
    assert str(decoded.fault) == "a sample is NaN, infinite or above 1e+12 at 0.000 s"


def test_floats_in_the_range_of_integers_are_audio() -> None:
    samples = np.array([-(2**31), 2**31, 0, 1], np.float32)
    np.testing.assert_array_equal(decode_audio(encode_audio(samples, subtype="FLOAT")).samples, samples)


@pytest.mark.parametrize("rate_hz", [1, 49, 10_000_001, 2**31 - 1])
def test_a_rate_that_no_recorder_writes_is_corrupt(rate_hz: int) -> None:
    wav = encode_audio(EIGHT_SECONDS)
    with pytest.raises(AudioFault, match=f"the header states {rate_hz} Hz, which no recorder writes") as error:
        decode_audio(wav[:24] + struct.pack("<I", rate_hz) + wav[28:])
    assert error.value.kind == "corrupt"


FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("MP3", None),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("AIFF", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
]
SHARES = st.one_of(st.floats(0, 1), st.floats(0, 0.02))  # more often in the header, where damage has more effects


@settings(derandomize=True)  # this test is not a random search for bugs of libsndfile
@given(
    form=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(SHARES, st.binary(max_size=8), st.integers(0, 16)), max_size=3),
    end=st.floats(0, 1.5),
)
def test_every_damaged_recording_results_in_audio_or_a_fault(
    form: tuple[str, str | None], changes: list[tuple[float, bytes, int]], end: float
) -> None:
    content = encode_audio(EIGHT_SECONDS[:8_000], RATE_HZ, *form)
    for share, inserted, n_removed in changes:
        position = int(share * len(content))
        content = content[:position] + inserted + content[position + n_removed :]
    decoded = decode_or_fault(content[: int(end * len(content))])
    if isinstance(decoded, AudioFault):
        assert decoded.kind in {"empty", "corrupt"}
    else:
        assert np.isfinite(decoded.samples).all()
        assert decoded.kind in {None, "truncated", "corrupt", "nonfinite"}
