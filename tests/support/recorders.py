"""Recordings as recorders write them: audio with facts about it beside."""

import struct
from pathlib import Path

import numpy as np
import soundfile as sf


def guano(**fields: str) -> str:
    """Return the text of a GUANO chunk; names of fields have underscores for spaces."""
    return "GUANO|Version: 1.0\n" + "".join(f"{name.replace('_', ' ')}: {value}\n" for name, value in fields.items())


def add_chunk(path: Path, name: bytes, content: bytes) -> None:
    """Add a chunk at the end of a WAV."""
    wav = path.read_bytes()
    wav += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    path.write_bytes(wav[:4] + struct.pack("<I", len(wav) - 8) + wav[8:])


def write_with_guano(path: Path, samples: np.ndarray, rate_hz: int, **fields: str) -> None:
    """Write a WAV with a GUANO chunk behind its audio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, rate_hz)
    add_chunk(path, b"guan", guano(**fields).encode())
