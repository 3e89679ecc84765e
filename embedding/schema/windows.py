"""Window arithmetic in integer samples. Pure functions over NumPy arrays.

Window ``i`` of a recording starts at ``i * hop`` samples. With ``tail="pad"`` there is a window for every start inside
the audio, and the last window is padded with zeros; with ``tail="drop"`` only windows that lie inside the audio count.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding.errors import RequestError

# A window is an Arrow list, whose length has 31 bits.
MOST_SAMPLES = 2**31 - 1
# A thousand windows per second of audio are 3.6 million per hour. The index of a window has 31 bits, too: 24 days.
SHORTEST_HOP_S = 0.001


@dataclass(frozen=True)
class WindowSpec:
    """The length and the hop of windows.

    Attributes:
        rate_hz: Sample rate of the audio.
        length: Samples of a window.
        hop: Samples from the start of one window to the start of the next.
        tail: ``pad`` or ``drop``.
    """

    rate_hz: int
    length: int
    hop: int
    tail: str

    @classmethod
    def from_seconds(cls, rate_hz: int, window_s: float, hop_s: float | None, tail: str) -> "WindowSpec":
        """Return the windows with the nearest whole number of samples.

        Args:
            rate_hz: Sample rate of the audio.
            window_s: Length of a window in seconds.
            hop_s: Hop in seconds; None: the length.
            tail: ``pad`` or ``drop``.

        Raises:
            RequestError: A length is below one sample or above MOST_SAMPLES, or the hop is below SHORTEST_HOP_S.
        """
        if hop_s is not None and hop_s < SHORTEST_HOP_S:
            raise RequestError(
                f"--hop-s: {hop_s:g} s would make more than {1 / SHORTEST_HOP_S:,.0f} windows of each second of audio; "
                f"use at least {SHORTEST_HOP_S:g} s"
            )
        for option, seconds in (("--window-s", window_s), ("--hop-s", hop_s)):
            if seconds is not None and seconds > MOST_SAMPLES / rate_hz:
                most_s = MOST_SAMPLES // rate_hz
                raise RequestError(f"{option}: {seconds:g} s is more than {most_s:,} s, the most at {rate_hz} Hz")
        length = round(window_s * rate_hz)
        hop = length if hop_s is None else round(hop_s * rate_hz)
        for option, seconds, samples in (("--window-s", window_s, length), ("--hop-s", hop_s, hop)):
            if samples < 1:
                raise RequestError(f"{option}: {seconds} s is less than one sample at {rate_hz} Hz")
        return cls(rate_hz, length, hop, tail)

    @property
    def n_bytes(self) -> int:
        """Bytes of a window's samples in memory."""
        return 4 * self.length

    def count(self, n_samples: int) -> int:
        """Return the number of windows of a recording of ``n_samples``."""
        if self.tail == "drop":
            return 0 if n_samples < self.length else (n_samples - self.length) // self.hop + 1
        return -(-n_samples // self.hop)

    def estimate_count(self, duration_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the number of windows of recordings whose durations are estimates, ``[recordings]``.

        An estimate that exceeds a whole number of windows by less than 2 % of a hop does not add a window.
        """
        slack = 0.02 * self.hop
        n_samples = np.asarray(duration_s * self.rate_hz)
        if self.tail == "drop":
            whole = np.floor((n_samples - self.length + slack) / self.hop) + 1
            return np.where(n_samples + slack < self.length, 0, whole).astype(np.int64)
        return np.where(n_samples > 0, np.maximum(np.ceil((n_samples - slack) / self.hop), 1), 0).astype(np.int64)

    def times(self, index: NDArray[np.integer], duration_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return start and end of windows of a recording in seconds.

        Args:
            index: Indices of the windows, ``[windows]``.
            duration_s: Seconds of audio in the recording; no window ends later.

        Returns:
            Starts and ends, ``[windows]`` each.
        """
        start_s = np.asarray(index, dtype=np.int64) * self.hop / self.rate_hz
        return start_s, np.minimum(start_s + self.length / self.rate_hz, duration_s)

    def covered_s(self, start_s: NDArray[np.float64], duration_s: NDArray[np.float64]) -> float:
        """Return the seconds of audio that windows cover; each window counts up to the start of the next window.

        Args:
            start_s: Starts of the windows, ``[windows]``.
            duration_s: Seconds of audio in their recordings, ``[windows]``.
        """
        return float((np.minimum(start_s + self.hop / self.rate_hz, duration_s) - start_s).sum())

    def audio_samples(self, start_s: NDArray[np.float64], end_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the number of samples of each window that are audio and not padding, ``[windows]``.

        Args:
            start_s: Starts of the windows, ``[windows]``.
            end_s: Ends of their audio, ``[windows]``.
        """
        # Times are rounded by less than 1e-5 samples (for 24 days); the fraction of a sample at the end of a recording
        # is larger (from 44.1 to 16 kHz a multiple of 1/441).
        return np.clip(np.ceil((end_s - start_s) * self.rate_hz - 1e-5), 1, self.length).astype(np.int64)
