"""Hits as files that can be listened to."""

from pathlib import Path
from typing import Any

import soundfile as sf

from embedding import storage


def save(hit: dict[str, Any], rank: int, folder: Path) -> Path:
    """Cut a hit (a row of HITS) out of its recording, at the rate and with the channels it has; the file's path.

    Raises:
        OSError: the recording cannot be read, or nothing written.
        soundfile.LibsndfileError: it is not what it was.
    """
    name = Path(hit["file"]).stem
    path = folder / f"{rank:03d}_{hit['score']:.3f}_{name}_{hit['start_time']:.1f}s.wav"
    with storage.open_stream(hit["file"]) as stream, sf.SoundFile(stream) as source:
        start, stop = (round(hit[edge] * source.samplerate) for edge in ("start_time", "end_time"))
        source.seek(min(start, source.frames))
        audio = source.read(stop - start, dtype="float32", always_2d=True)
    sf.write(path, audio, hit["sample_rate"])
    return path
