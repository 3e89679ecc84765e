"""Audio clips of hits, cut out of their recordings."""

from pathlib import Path
from typing import Any

import soundfile as sf

from embedding import storage

# A clip may be shorter by these frames: a recording may end in a fraction of a sample at the model's rate.
MAX_MISSING_FRAMES = 64
# Length of a recording's name in the name of a clip; most disks take file names of 255 bytes.
MAX_NAME_CHARACTERS = 50


def save_clip(hit: dict[str, Any], rank: int, folder: Path) -> Path:
    """Cut a hit out of its recording, with the recording's sample rate and channels, into a WAV file.

    Args:
        hit: A row of HITS.
        rank: Place of the hit among all hits, from 1; it is part of the file's name.
        folder: Folder of the clips.

    Returns:
        The path of the clip.

    Raises:
        OSError: The recording cannot be read or has changed, or the clip cannot be written.
        soundfile.LibsndfileError: The recording is no audio file any more.
    """
    name = Path(hit["file"]).stem[:MAX_NAME_CHARACTERS]
    path = folder / f"{rank:03d}_{hit['score']:.3f}_{name}_{hit['start_time']:.1f}s.wav"
    with storage.open_stream(hit["file"]) as stream, sf.SoundFile(stream) as source:
        start, stop = (round(hit[edge] * source.samplerate) for edge in ("start_time", "end_time"))
        if source.samplerate != hit["sample_rate"] or start >= source.frames:
            raise OSError("the recording has changed since it was embedded")
        source.seek(start)
        audio = source.read(stop - start, dtype="float32", always_2d=True)
        if len(audio) < stop - start - MAX_MISSING_FRAMES:
            raise OSError("the recording has become shorter since it was embedded")
    with storage.replacing(path) as temporary:
        sf.write(temporary, audio, hit["sample_rate"])
    return path
