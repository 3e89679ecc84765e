"""EAT arranged for inference: the spectra of a whole batch at once, on the device of its windows.

avex's own processor moves the windows to the CPU and computes their spectra one after the other, 2.4 ms each
(avex 1.4.0, avex/models/eat/audio_processor.py): with it no GPU gets more than 420 windows/s.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Defaults of torchaudio.compliance.kaldi.fbank, which avex's processor leaves as they are.
FRAME_MS = 25.0
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
LEAST_ENERGY = torch.finfo(torch.float32).eps


def has_known_front_end(processor: Any) -> bool:
    """Tell whether ``OptimizedEat`` can compute the spectra of this processor, as it can for every published EAT.

    Args:
        processor: the ``audio_processor`` of avex's module.

    Returns:
        False for another window function than Hann's, and for a processor that normalises each spectrum by its own mean
        and deviation, which avex does for a given mean of 0 and deviation of 1.
    """
    own_statistics = (processor.norm_mean, processor.norm_std) == (0.0, 1.0)
    return processor.window_type == "hanning" and not own_statistics


class OptimizedEat(nn.Module):
    """EAT with a batched front end; its backbone, which is code from the hub, runs as avex runs it."""

    window: torch.Tensor
    mel: torch.Tensor

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        """Take over the backbone and the settings of the processor.

        Args:
            module: avex's EAT, whose ``audio_processor`` has a known front end.
            dtype: float32, bfloat16 or float16; the type in which the backbone multiplies matrices.
        """
        from torchaudio.compliance import kaldi  # not above: the other models need no torchaudio of their own

        super().__init__()
        processor = module.audio_processor
        assert has_known_front_end(processor)
        self._n_frames = processor.target_length
        self._hop = int(processor.sample_rate * processor.frame_shift_ms * 0.001)
        length = int(processor.sample_rate * FRAME_MS * 0.001)
        self._n_fft = 1 << (length - 1).bit_length()
        self._mean, self._deviation = processor.norm_mean, processor.norm_std
        self.register_buffer("window", torch.hann_window(length, periodic=False))
        # The last four: up to half the sample rate, and no warping (its limits and its factor).
        bank, _ = kaldi.get_mel_banks(
            processor.n_mels, self._n_fft, processor.sample_rate, LOWEST_HZ, 0.0, 100.0, -500.0, 1.0
        )
        # The highest frequency of the transform belongs to no mel.
        self.register_buffer("mel", functional.pad(bank, (0, 1)).T.contiguous())
        self.backbone = module.backbone
        self._dtype = dtype

    def forward(self, windows: torch.Tensor, padding: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        """Compute unpooled features.

        Args:
            windows: ``[batch, length]`` float32, samples between -1 and 1 at 16 kHz, at least one frame (400).
            padding: ignored; EAT takes no padding mask.

        Returns:
            Tokens ``[batch, tokens, dim]``, the first of which is the CLS token, and None for the mask.
        """
        picture = self.spectrum(windows)
        with torch.autocast(windows.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self.backbone.extract_features(picture), None

    def spectrum(self, windows: torch.Tensor) -> torch.Tensor:
        """Compute the normalised log mel spectra that avex's processor computes.

        The steps and their order are those of ``torchaudio.compliance.kaldi.fbank``. In another order weak frequencies
        beside strong ones would have other rounding errors.

        Args:
            windows: ``[batch, length]`` float32.

        Returns:
            ``[batch, 1, frames, mels]`` float32. Frames are 25 ms long, one every 10 ms; always 1,024: more are cut
            off, fewer are filled up with zeros before they are normalised.
        """
        windows = windows - windows.mean(-1, keepdim=True)
        length = len(self.window)
        # No sample behind the last frame that counts: a long window costs no more than one of 10.26 s.
        frames = windows[:, : length + (self._n_frames - 1) * self._hop].unfold(-1, length, self._hop)
        frames = frames - frames.mean(-1, keepdim=True)
        before = functional.pad(frames, (1, 0), mode="replicate")[..., :-1]
        frames = (frames - PREEMPHASIS * before) * self.window
        parts = torch.view_as_real(torch.fft.rfft(frames, self._n_fft))
        power = parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])
        mel = (power @ self.mel).clamp_(min=LEAST_ENERGY).log_()
        mel = functional.pad(mel, (0, 0, 0, self._n_frames - mel.shape[1]))
        return ((mel - self._mean) / (2 * self._deviation))[:, None]
