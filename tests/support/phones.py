"""Recordings as phones and cameras write them, encoded by PyAV."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

# Codec, and the most that decoded samples may differ from the original, of formats that PyAV reads and libsndfile not.
FORMATS = {
    "m4a": ("aac", 0.1),
    "alac.m4a": ("alac", 1e-4),
    "mp4": ("aac", 0.1),
    "mov": ("pcm_s16le", 1e-4),
    "mkv": ("flac", 1e-4),
    "webm": ("libopus", 0.1),
    "wma": ("wmav2", 0.1),
    "aac": ("aac", 0.1),
    "avi": ("pcm_s16le", 1e-4),
    "ts": ("aac", 0.1),
}


def write_with_pyav(path: Path, samples: np.ndarray, rate_hz: int, codec: str, *, has_video: bool = False) -> None:
    """Encode samples, ``[frames]`` or ``[frames, channels]``, in the container that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = samples.reshape(len(samples), -1)
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    options = {"movflags": "faststart"} if path.suffix in (".m4a", ".mp4", ".mov") else {}
    container: Any
    with av.open(str(path), "w", options=options) as container:
        video: Any = None
        if has_video:
            video = container.add_stream("mpeg4", rate=5)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        stream = container.add_stream(codec, rate=rate_hz)
        stream.layout, stream.bit_rate = layout, 128_000
        stream.time_base = Fraction(1, rate_hz)
        if has_video:
            for number in range(max(1, 5 * len(samples) // rate_hz)):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 255, np.uint8), format="rgb24")
                for packet in video.encode(picture):
                    container.mux(packet)
            for packet in video.encode():
                container.mux(packet)
        resampler = av.AudioResampler(stream.format, layout, rate_hz, stream.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.astype(np.float32).reshape(1, -1)), format="flt", layout=layout
        )
        frame.sample_rate, frame.pts = rate_hz, 0
        for converted in [*resampler.resample(frame), *resampler.resample(None)]:
            for packet in stream.encode(converted):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
