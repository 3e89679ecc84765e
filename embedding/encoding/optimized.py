"""Models optimised for inference: they compute what avex's modules compute, with fewer passes over memory.

A GPU executes these modules; a CPU executes the graphs that ``openvino_graph.py`` builds from them. EAT is in
``optimized_eat.py``.

The weights are read from avex's modules by attribute names that are not part of avex's public interface.
``tests/unit/encoding/test_optimized.py`` compares the results with avex's modules, and fails if a name or an order of
steps changes. Figures of each step: docs/decisions.md, "Encoder".
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from embedding.encoding.flex_attention import Heads, fused_attention, masked_attention
from embedding.encoding.optimized_eat import OptimizedEat, has_known_front_end

# Unpooled features (tokens [batch, tokens, dim] or a map [batch, dim, freq, time]), and the mask of tokens that are
# padding ([batch, tokens]; None without a mask of the windows).
Features = tuple[torch.Tensor, torch.Tensor | None]


def optimized_class(
    module: Any, architecture: str
) -> "type[OptimizedBeats | OptimizedEfficientNet | OptimizedEat | UnoptimizedModel]":
    """Return the class that optimises one of avex's modules for inference.

    Args:
        module: avex's module, as returned by ``models.load``.
        architecture: avex's name of the architecture: ``beats``, ``efficientnet`` or ``eat_hf``.

    Returns:
        A class that is constructed from ``module`` and the type of matrix products (float32, bfloat16 or float16). Its
        instances take windows ``[batch, length]`` and the mask of their padding (or None), and return ``Features``.
    """
    if architecture == "efficientnet":
        return OptimizedEfficientNet
    if architecture == "beats" and _has_published_options(module.backbone.cfg):
        return OptimizedBeats
    if architecture == "eat_hf" and has_known_front_end(module.audio_processor):
        return OptimizedEat
    return UnoptimizedModel


class UnoptimizedModel(nn.Module):
    """An avex module that runs unchanged."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self._dtype = dtype

    def forward(self, windows: torch.Tensor, padding: torch.Tensor | None) -> Features:
        """Compute unpooled features; see ``optimized_class``."""
        with torch.autocast(windows.device.type, self._dtype, enabled=self._dtype != torch.float32):
            if padding is None:
                return self.module(windows), None
            # avex's wrapper drops the backbone's token mask, which the mean over tokens needs.
            return self.module.backbone(self.module.process_audio(windows), padding)


# --- EfficientNet -----------------------------------------------------------------------------------------------


class OptimizedEfficientNet(nn.Module):
    """EfficientNet with batch norms folded into the preceding convolutions, channels last, and one input channel.

    avex passes three equal input channels.
    """

    window: torch.Tensor
    mel: torch.Tensor

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.processor = module.audio_processor
        assert (self.processor.representation, self.processor.normalize) == ("mel_spectrogram", True)
        self.register_buffer("window", self.processor._get_window())
        self.register_buffer("mel", self.processor.mel_basis.fb)
        self.features = module.model.features
        _fold_batch_norms(self.features)
        _take_one_channel(self.features[0])
        self.features.to(dtype=dtype, memory_format=torch.channels_last)
        self._dtype = dtype

    def forward(self, windows: torch.Tensor, padding: torch.Tensor | None) -> Features:
        """Compute unpooled features; see ``optimized_class``."""
        x = self.spectrum(windows).to(self._dtype, memory_format=torch.channels_last)
        return self.features(x), None

    def spectrum(self, windows: torch.Tensor) -> torch.Tensor:
        """Compute the log mel spectra of avex's processor, scaled to 0 to 1 in each window.

        Args:
            windows: ``[batch, length]`` float32.

        Returns:
            ``[batch, 1, mels, frames]`` float32.
        """
        processor = self.processor
        frames = torch.stft(
            windows,
            n_fft=processor.n_fft,
            hop_length=processor.hop_length,
            win_length=processor.win_length,
            window=self.window,
            center=processor.center,
            return_complex=True,
        )
        parts = torch.view_as_real(frames.transpose(1, 2))
        # abs() ** 2 computes a root and squares it, which takes three times as long.
        power = parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])
        mel = torch.log(power @ self.mel + 1e-6).transpose(1, 2)
        low, high = mel.amin((-2, -1), keepdim=True), mel.amax((-2, -1), keepdim=True)
        return ((mel - low) / (high - low + 1e-8))[:, None]


def _fold_batch_norms(features: nn.Module) -> None:
    for block in features.modules():
        if isinstance(block, nn.Sequential):
            for i in range(len(block) - 1):
                convolution, norm = block[i], block[i + 1]
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    block[i], block[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()


def _take_one_channel(stem: Any) -> None:
    """Add up the weights of the three input channels, because avex passes the same spectrogram to all of them."""
    weight = stem[0].weight.sum(1, keepdim=True)
    stem[0].weight, stem[0].in_channels = nn.Parameter(weight, requires_grad=False), 1


# --- BEATs ------------------------------------------------------------------------------------------------------


def _has_published_options(cfg: Any) -> bool:
    """Return True if a backbone's configuration has the options of every published BEATs."""
    gated = cfg.relative_position_embedding and cfg.gru_rel_pos
    return bool(gated and cfg.deep_norm and not cfg.layer_norm_first and cfg.activation_fn == "gelu")


class OptimizedBeats(nn.Module):
    """BEATs with one projection for queries, keys, values and gates, and with position bias and casts computed once.

    Sums and norms are computed in float32, matrix products in ``dtype``.
    """

    bias_by_distance: torch.Tensor

    def __init__(self, module: Any, dtype: torch.dtype, fused_bias: bool = False) -> None:
        """Take the weights of ``module``, whose own tensors change.

        Args:
            module: avex's BEATs with the options of the published models.
            dtype: Type of matrix products: float32, bfloat16 or float16.
            fused_bias: Compute the gated position bias inside the attention kernel
                (``flex_attention.fused_attention``) instead of writing it to memory in each layer. Off by default,
                because it was never measured on a GPU.
        """
        super().__init__()
        backbone = module.backbone
        self.fbank_mean, self.fbank_std = backbone.fbank_mean, backbone.fbank_std
        self.fbank = backbone.fbank
        self.patches = backbone.patch_embedding.to(dtype)
        self.patch_norm = backbone.layer_norm
        self.projection = backbone.post_extract_proj.to(dtype)
        self.positions = _PositionConvolution(backbone.encoder.pos_conv[0], dtype)
        self.norm = backbone.encoder.layer_norm
        self.layers = nn.ModuleList(_Layer(layer, dtype, fused_bias) for layer in backbone.encoder.layers)
        # The first layer holds the table of biases.
        self.register_buffer("bias_by_distance", _bias_by_distance(backbone.encoder.layers[0].self_attn).to(dtype))
        self._bias: torch.Tensor | None = None
        self._dtype = dtype

    def forward(self, windows: torch.Tensor, padding: torch.Tensor | None) -> Features:
        """Compute unpooled features; see ``optimized_class``."""
        spectrum = self.spectrum(windows)
        x = self.patches(spectrum.to(self._dtype)).flatten(2).transpose(1, 2).float()
        x = self.projection(self.patch_norm(x).to(self._dtype))
        padded = None
        if padding is not None:
            padded = _all_in_pieces(_all_in_pieces(padding, spectrum.shape[2]), x.shape[1])
            x = x.masked_fill(padded[..., None], 0)
        x = self.norm(x.float() + self.positions(x))
        bias = self.position_bias(x.shape[1])
        for layer in self.layers:
            x = layer(x, bias, padded)
        return x, padded

    def spectrum(self, windows: torch.Tensor) -> torch.Tensor:
        """Compute the log mel spectra, scaled as in the model's training.

        Args:
            windows: ``[batch, length]`` float32.

        Returns:
            ``[batch, 1, frames, mels]`` float32.
        """
        return ((self.fbank(windows * 2**15) - self.fbank_mean) / (2 * self.fbank_std))[:, None]

    def position_bias(self, n_tokens: int) -> torch.Tensor:
        """Return the position bias ``[heads, tokens, tokens]``, queries before keys, of windows with ``n_tokens``."""
        bias = self._bias
        if bias is None or bias.shape[1] != n_tokens or bias.device != self.bias_by_distance.device:
            max_distance = self.bias_by_distance.shape[1] // 2
            positions = torch.arange(n_tokens, device=self.bias_by_distance.device)
            distances = (positions - positions[:, None]).clamp(-max_distance, max_distance)
            bias = self._bias = self.bias_by_distance[:, distances + max_distance]
        return bias


def _bias_by_distance(attention: Any) -> torch.Tensor:
    """Compute the bias ``[heads, distances]`` of keys by their distance from the query, from far before to far after.

    Keys beyond the last distance have the bias of the last distance. avex computes the distances on the CPU in each
    pass (avex 1.4.0, ``compute_bias``), and a GPU would wait for their copy.
    """
    n = attention.max_distance + 1
    before, after = attention.compute_bias(n, 1)[:, :, 0], attention.compute_bias(1, n)[:, 0]
    return torch.cat([before.flip(1), after[:, 1:]], dim=1)


class _Layer(nn.Module):
    """Transformer layer: attention with a gated relative position bias, then feed-forward, each followed by a norm."""

    gate_scale: torch.Tensor

    def __init__(self, layer: Any, dtype: torch.dtype, fused_bias: bool) -> None:
        super().__init__()
        attention = layer.self_attn
        self._attention = fused_attention if fused_bias else masked_attention
        self.qkvg = _projection(attention).to(dtype)
        self.register_buffer("gate_scale", attention.grep_a.view(1, -1, 1, 1).to(dtype))
        self.out = attention.out_proj.to(dtype)
        self.attention_norm = layer.self_attn_layer_norm
        self.widen, self.narrow = layer.fc1.to(dtype), layer.fc2.to(dtype)
        self.norm = layer.final_layer_norm
        self.n_heads, self.scale = attention.num_heads, attention.scaling
        self.residual = layer.deep_norm_alpha
        self._dtype = dtype

    def forward(self, x: torch.Tensor, bias: torch.Tensor, padded: torch.Tensor | None) -> torch.Tensor:
        """Compute the layer.

        Args:
            x: Tokens, ``[batch, tokens, dim]`` float32; the result has the same shape.
            bias: ``[heads, tokens, tokens]``, without the gates.
            padded: ``[batch, tokens]``, true for tokens that are padding; or None.
        """
        attended = self.out(self._attend(self.qkvg(x.to(self._dtype)), bias, padded))
        x = self.attention_norm(torch.add(attended, x, alpha=self.residual))
        hidden = functional.gelu(self.widen(x.to(self._dtype)))
        return self.norm(torch.add(self.narrow(hidden), x, alpha=self.residual))

    def _attend(self, qkvg: torch.Tensor, bias: torch.Tensor, padded: torch.Tensor | None) -> torch.Tensor:
        batch, n_tokens, width = qkvg.shape
        n_gates = 2 * self.n_heads
        qkv, gates = qkvg.split([width - n_gates, n_gates], dim=-1)
        q, k, v = qkv.view(batch, n_tokens, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        gate_a, gate_b = gates.sigmoid().view(batch, n_tokens, self.n_heads, 2).transpose(1, 2).split(1, dim=-1)
        gate = (gate_a * (gate_b * self.gate_scale - 1) + 2).squeeze(-1)
        attended = self._attention(Heads(q, k, v, gate), bias, padded, self.scale)
        return attended.transpose(1, 2).reshape(batch, n_tokens, -1)


def _projection(attention: Any) -> nn.Linear:
    """Build one projection to queries, keys, values and the two gates of each head, which are linear in the query.

    avex projects each head's query to eight numbers and adds them up in groups of four. That is a separate matrix
    product over a tensor that is not contiguous: a fifth of all time with more than one window in bfloat16 (measured
    2026-11-21).
    """
    weight, bias = (
        torch.cat([getattr(linear, name) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)])
        for name in ("weight", "bias")
    )
    n_heads, dim = attention.num_heads, attention.embed_dim
    gate = attention.grep_linear.weight.view(2, 4, -1).sum(1)  # [2, head_dim]
    query_weight, query_bias = weight[:dim].view(n_heads, -1, dim), bias[:dim].view(n_heads, -1)
    gate_weight = (gate @ query_weight).flatten(0, 1)  # [heads · 2, dim]
    gate_bias = (query_bias @ gate.T + attention.grep_linear.bias.view(2, 4).sum(1)).flatten()
    joined = nn.Linear(dim, 3 * dim + 2 * n_heads, device="meta")
    joined.weight = nn.Parameter(torch.cat([weight, gate_weight]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([bias, gate_bias]), requires_grad=False)
    return joined


class _PositionConvolution(nn.Module):
    """Convolution over tokens as a two-dimensional one with channels last: half the time of ``Conv1d`` on CPUs.

    The weight norm is computed once.
    """

    def __init__(self, convolution: nn.Conv1d, dtype: torch.dtype) -> None:
        super().__init__()
        n_in, n_out, (kernel,) = convolution.in_channels, convolution.out_channels, convolution.kernel_size
        self.convolution = nn.Conv2d(
            *(n_in, n_out, (1, kernel)), padding=(0, kernel // 2), groups=convolution.groups, device="meta"
        )
        assert convolution.bias is not None
        self.convolution.weight = nn.Parameter(convolution.weight[:, :, None].detach(), requires_grad=False)
        self.convolution.bias = nn.Parameter(convolution.bias.detach(), requires_grad=False)
        self.convolution.to(dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the convolution of ``[batch, tokens, dim]``; the result has the same shape."""
        image = x.transpose(1, 2)[:, :, None]  # [batch, dim, 1, tokens], channels last in memory
        y = self.convolution(image)
        return functional.gelu(y[:, :, 0, : x.shape[1]]).transpose(1, 2)


def _all_in_pieces(padding: torch.Tensor, n: int) -> torch.Tensor:
    """Reduce ``[batch, many]`` to ``[batch, n]``: true where an entire piece is true; a remainder is dropped."""
    whole = padding.shape[1] - padding.shape[1] % n
    return padding[:, :whole].reshape(len(padding), n, -1).all(-1)
