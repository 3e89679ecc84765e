"""EAT optimised for inference: the spectra of a batch are computed together, on the device of the windows.

avex's processor copies the windows to the CPU and computes one spectrum after the other, 2.4 ms each (avex 1.4.0,
avex/models/eat/audio_processor.py), which limits any GPU to 420 windows/s.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Defaults of torchaudio.compliance.kaldi.fbank, which avex's processor does not change.
FRAME_MS = 25.0
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
MIN_ENERGY = torch.finfo(torch.float32).eps


def has_known_front_end(processor: Any) -> bool:
    """Return True if ``OptimizedEat`` can compute the spectra of a processor. It can for every published EAT.

    Args:
        processor: The ``audio_processor`` of avex's module.

    Returns:
        False for a window function other than Hann's, and for a processor that normalises each spectrum by the
        spectrum's own mean and deviation. avex does the latter if the configured mean is 0 and the deviation is 1.
    """
    has_own_statistics = (processor.norm_mean, processor.norm_std) == (0.0, 1.0)
    return processor.window_type == "hanning" and not has_own_statistics


class OptimizedEat(nn.Module):
    """EAT with a batched front end. The backbone, which is code from the hub, runs unchanged."""

    window: torch.Tensor
    mel: torch.Tensor

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        """Take the backbone and the settings of the processor from avex's module.

        Args:
            module: avex's EAT, whose ``audio_processor`` has a known front end.
            dtype: Type of the backbone's matrix products: float32, bfloat16 or float16.
        """
        from torchaudio.compliance import kaldi  # imported here, because other models do not need torchaudio

        super().__init__()
        processor = module.audio_processor
        assert has_known_front_end(processor)
        self._n_frames = processor.target_length
        self._hop = int(processor.sample_rate * processor.frame_shift_ms * 0.001)
        length = int(processor.sample_rate * FRAME_MS * 0.001)
        self._n_fft = 1 << (length - 1).bit_length()
        self._mean, self._deviation = processor.norm_mean, processor.norm_std
        self.register_buffer("window", torch.hann_window(length, periodic=False))
        # The last four arguments: highest frequency (0 is half the sample rate), limits and factor of no warping.
        bank, _ = kaldi.get_mel_banks(
            processor.n_mels, self._n_fft, processor.sample_rate, LOWEST_HZ, 0.0, 100.0, -500.0, 1.0
        )
        # The highest frequency of the transform belongs to no mel band.
        self.register_buffer("mel", functional.pad(bank, (0, 1)).T.contiguous())
        self.backbone = module.backbone
        self._dtype = dtype

    def forward(self, windows: torch.Tensor, padding: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        """Compute unpooled features.

        Args:
            windows: ``[batch, length]`` float32, samples between -1 and 1 at 16 kHz, at least one frame (400).
            padding: Ignored, because EAT has no padding mask.

        Returns:
            Tokens ``[batch, tokens, dim]``, the first of which is the CLS token, and None for the mask.
        """
        spectra = self.spectrum(windows)
        with torch.autocast(windows.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self.backbone.extract_features(spectra), None

    def spectrum(self, windows: torch.Tensor) -> torch.Tensor:
        """Compute the normalised log mel spectra of avex's processor.

        The steps and their order are those of ``torchaudio.compliance.kaldi.fbank``. Another order would change the
        rounding errors of weak frequencies beside strong ones.

        Args:
            windows: ``[batch, length]`` float32.

        Returns:
            ``[batch, 1, frames, mels]`` float32. Frames are 25 ms long, one every 10 ms. There are always 1,024 frames:
            further frames are dropped, missing ones are zeros before the normalisation.
        """
        windows = windows - windows.mean(-1, keepdim=True)
        length = len(self.window)
        # Samples after the last used frame are dropped: a longer window costs no more than a window of 10.26 s.
        frames = windows[:, : length + (self._n_frames - 1) * self._hop].unfold(-1, length, self._hop)
        frames = frames - frames.mean(-1, keepdim=True)
        previous = functional.pad(frames, (1, 0), mode="replicate")[..., :-1]
        frames = (frames - PREEMPHASIS * previous) * self.window
        parts = torch.view_as_real(torch.fft.rfft(frames, self._n_fft))
        power = parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])
        mel = (power @ self.mel).clamp_(min=MIN_ENERGY).log_()
        mel = functional.pad(mel, (0, 0, 0, self._n_frames - mel.shape[1]))
        return ((mel - self._mean) / (2 * self._deviation))[:, None]
