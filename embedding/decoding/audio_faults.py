"""Faults of recordings: their kinds and their messages."""

# Full scale is 1, or 2³¹ where floats were written like integers. The power spectrum of a louder signal is infinite in
# float32.
MAX_AMPLITUDE = 1e12


class AudioFault(Exception):  # noqa: N818 — a fault of a recording, not an error of the program
    """A fault of a recording.

    Attributes:
        kind: ``empty`` (no audio), ``corrupt`` (not decodable from the start), ``truncated`` (less audio than recorded:
            less than the header states, only the audio before some damage, or a gap), ``nonfinite`` (NaN or infinite
            samples), ``short`` (less than one window, with ``--tail drop``).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def empty() -> AudioFault:
    """Return the fault of a recording without audio."""
    return AudioFault("empty", "the file has a header, but no audio")


def nonfinite(position_s: float) -> AudioFault:
    """Return the fault of a sample that is no number or too large, at a time."""
    kept = "; the audio before this sample is kept" if position_s else ""
    return AudioFault("nonfinite", f"a sample is NaN, infinite or above {MAX_AMPLITUDE:g} at {position_s:.3f} s{kept}")


def truncated(kept_s: float, why: str) -> AudioFault:
    """Return the fault of a recording of which ``kept_s`` seconds could be read; ``why`` is the reason."""
    if not kept_s:
        return AudioFault("corrupt", f"no audio could be read: {why}")
    return AudioFault("truncated", f"only {kept_s:.3f} s could be read, and are kept: {why}")
