"""Log mel spectra of windows, computed with NumPy and SciPy as avex's models compute them with torch.

Encoders on CPUs do not import torch, which takes seconds and hundreds of megabytes. The constants (windows of the
transform, mel filters) are taken from avex's modules when ``graph_files.py`` writes a model's graph.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft

Array = NDArray[np.float32]

# Pre-emphasis, and the floor of energies before the logarithm, of Kaldi's ``compute-fbank-feats``
# (torchaudio.compliance.kaldi; avex/models/beats/beats.py, _BatchedFbank).
PRE_EMPHASIS = np.float32(0.97)
ENERGY_FLOOR = np.finfo(np.float32).eps
# Kaldi expects samples of 16 bits.
KALDI_SCALE = np.float32(2**15)
# avex/data/audio_utils.py, AudioProcessor._normalize.
LOG_OFFSET, RANGE_OFFSET = np.float32(1e-6), np.float32(1e-8)


class FrontEnd(Protocol):
    """The first step of a model: spectra of windows."""

    def __call__(self, windows: Array) -> Array:
        """Compute spectra.

        Args:
            windows: float32 ``[n, length]``.

        Returns:
            float32 ``[n, 1, height, width]``, the input of the model's graph.
        """
        ...


@dataclass(frozen=True)
class MelFilters:
    """Constants of a log mel spectrum.

    Attributes:
        window: Window of the Fourier transform, float32 ``[win_length]``.
        mel: Mel filters, float32 ``[n_fft // 2 + 1, n_mels]``.
        hop: Samples between the starts of two frames.
        n_fft: Length of the Fourier transform in samples; frames are padded with zeros at their end.
    """

    window: Array
    mel: Array
    hop: int
    n_fft: int

    def frames(self, samples: Array) -> Array:
        """Return a view of the frames of ``samples [length]``: ``[frames, win_length]``."""
        return sliding_window_view(samples, len(self.window))[:: self.hop]

    def energies(self, frames: Array) -> Array:
        """Return the energies ``[frames, n_mels]`` of frames that are multiplied by the window already."""
        parts = np.asarray(fft.rfft(frames, self.n_fft)).view(np.float32)  # real and imaginary parts in turn
        parts *= parts
        power: Array = parts[:, ::2] + parts[:, 1::2]
        return power @ self.mel


@dataclass(frozen=True)
class BeatsFrontEnd:
    """Front end of BEATs: Kaldi's log mel energies, scaled as in the model's training.

    Attributes:
        filters: Constants of the spectrum.
        mean: Mean of the energies in the model's training.
        std: Standard deviation of the energies in the model's training.
    """

    filters: MelFilters
    mean: float
    std: float

    def __call__(self, windows: Array) -> Array:
        """Compute spectra ``[n, 1, frames, mels]``; see ``FrontEnd``."""
        return np.stack([self._of_window(samples) for samples in windows])[:, None]

    def _of_window(self, samples: Array) -> Array:
        frames = self.filters.frames(samples * KALDI_SCALE)
        frames = frames - frames.mean(axis=1, keepdims=True)
        emphasised = frames * (1 - PRE_EMPHASIS)  # the first sample of a frame counts as its own predecessor
        emphasised[:, 1:] = frames[:, 1:] - PRE_EMPHASIS * frames[:, :-1]
        emphasised *= self.filters.window
        energies = np.log(np.maximum(self.filters.energies(emphasised), ENERGY_FLOOR))
        return (energies - np.float32(self.mean)) / np.float32(2 * self.std)


@dataclass(frozen=True)
class EfficientNetFrontEnd:
    """Front end of EfficientNet: log mel energies, scaled to 0 to 1 in each window.

    Attributes:
        filters: Constants of the spectrum.
        centered: Pad windows by reflection, so that the first frame is centred at the first sample.
    """

    filters: MelFilters
    centered: bool

    def __call__(self, windows: Array) -> Array:
        """Compute spectra ``[n, 1, mels, frames]``; see ``FrontEnd``."""
        return np.stack([self._of_window(samples) for samples in windows])[:, None]

    def _of_window(self, samples: Array) -> Array:
        if self.centered:
            samples = np.pad(samples, self.filters.n_fft // 2, mode="reflect")
        log_mel = np.log(self.filters.energies(self.filters.frames(samples) * self.filters.window) + LOG_OFFSET)
        low, high = log_mel.min(), log_mel.max()
        return ((log_mel - low) / (high - low + RANGE_OFFSET)).T
