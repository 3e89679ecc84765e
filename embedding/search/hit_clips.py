"""Hits as files that can be listened to."""

from pathlib import Path
from typing import Any

import soundfile as sf

from embedding import storage

# A recording may end in a fraction of a sample of the model's rate.
MISSING_FRAMES = 64
# Of a file name; most disks take 255 bytes.
STEM_CHARACTERS = 50


def save(hit: dict[str, Any], rank: int, folder: Path) -> Path:
    """Cut a hit (a row of HITS) out of its recording, at the rate and with the channels it has; the file's path.

    Raises:
        OSError: the recording cannot be read, or nothing written.
        soundfile.LibsndfileError: it is not what it was.
    """
    name = Path(hit["file"]).stem[:STEM_CHARACTERS]
    path = folder / f"{rank:03d}_{hit['score']:.3f}_{name}_{hit['start_time']:.1f}s.wav"
    with storage.open_stream(hit["file"]) as stream, sf.SoundFile(stream) as source:
        start, stop = (round(hit[edge] * source.samplerate) for edge in ("start_time", "end_time"))
        if source.samplerate != hit["sample_rate"] or start >= source.frames:
            raise OSError("it has changed since it was embedded")
        source.seek(start)
        audio = source.read(stop - start, dtype="float32", always_2d=True)
        if len(audio) < stop - start - MISSING_FRAMES:
            raise OSError("it has become shorter since it was embedded")
    with storage.replacing(path) as new:
        sf.write(new, audio, hit["sample_rate"])
    return path
