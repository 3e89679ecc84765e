"""Optimised models as OpenVINO graphs, which a CPU executes. A GPU executes the modules of ``optimized.py``.

OpenVINO computes activations, norms and sums while the preceding products are still in the cache; torch passes over
memory again for each of them. Figures: docs/decisions.md, "Encoder".
"""

from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino import opset13 as ops
from torch import nn

from embedding.encoding.graph_model import GraphModel
from embedding.encoding.optimized import Features, OptimizedBeats, OptimizedEfficientNet

# Node of an OpenVINO graph; OpenVINO's Python package has no types.
Node = Any
# In the target of a reshape: the length of this axis stays the same.
KEPT = 0
# Values of a map's row that are added to each other first.
ROW_PART = 16


class OpenvinoModel:
    """A module of ``optimized.py`` that OpenVINO executes, with the same call signature."""

    def __init__(self, module: OptimizedBeats | OptimizedEfficientNet, precision: str, n_threads: int) -> None:
        """Build the graph.

        Args:
            module: The module, in float32.
            precision: ``fp32``, or ``bf16``, which a CPU without bfloat16 products ignores.
            n_threads: Number of threads.
        """
        self._module = module
        self._graph = GraphModel(self._spectra, build_graph(module), precision, n_threads)

    def __call__(self, windows: torch.Tensor, padding: torch.Tensor | None) -> Features:
        """Compute the features of windows; see ``optimized.optimized_class``."""
        if padding is not None:  # with --mask-padding, for the last windows of recordings
            return self._module(windows, padding)
        return torch.from_numpy(self._graph(windows.numpy()).copy()), None

    def _spectra(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._module.spectrum(torch.from_numpy(windows)).numpy()


def build_graph(module: OptimizedBeats | OptimizedEfficientNet) -> ov.Model:
    """Build the graph that computes a module's features from spectra of any number and length of windows.

    Args:
        module: The module, in float32.

    Returns:
        The graph, from float32 spectra as returned by ``module.spectrum`` to unpooled features.
    """
    spectrum = ops.parameter(ov.PartialShape([-1, 1, -1, -1]), np.float32)
    features = _beats(module, spectrum) if isinstance(module, OptimizedBeats) else _apply(module.features, spectrum)
    return ov.Model([features], [spectrum])  # pyright: ignore[reportGeneralTypeIssues] — missing in OpenVINO's stubs


# --- EfficientNet -----------------------------------------------------------------------------------------------


def _apply(module: Any, x: Node) -> Node:
    """Add the nodes of one of torchvision's modules to the graph of ``x``.

    Raises:
        TypeError: torchvision's EfficientNets have no module of this type.
    """
    # Imported here, because BEATs does not need torchvision, whose import takes a second.
    from torchvision.models.efficientnet import MBConv
    from torchvision.ops import SqueezeExcitation

    match module:
        case nn.Sequential():  # also Conv2dNormActivation
            for child in module:
                x = _apply(child, x)
            return x
        case MBConv():
            y = _apply(module.block, x)
            return ops.add(x, y) if module.use_res_connect else y
        case SqueezeExcitation():
            scale = ops.swish(_convolution(module.fc1, _mean_of_map(x)))
            return ops.multiply(x, ops.sigmoid(_convolution(module.fc2, scale)))
        case nn.Conv2d():
            return _convolution(module, x)
        case nn.SiLU():
            return ops.swish(x)
        case nn.Identity():
            return x
    raise TypeError(f"no graph for {type(module).__name__}")


def _mean_of_map(x: Node) -> Node:
    """Add the nodes of the mean over the last two axes of ``x``, rounded as torch rounds it.

    On CPUs without AVX-512, OpenVINO adds the values of a map one by one, in float32. The rounding errors of thousands
    of nearly equal values, as of silence, have one direction: vectors had errors of 2.4e-4. Here parts of rows are
    added first, then rows, then columns, at no cost. Two means would not do, because OpenVINO merges them. Figures:
    docs/decisions.md, "Mean of a map".
    """
    # Zeros complete the last part of a row, and count in its mean.
    part_means = ops.avg_pool(x, [1, ROW_PART], [0, 0], [0, ROW_PART - 1], [1, ROW_PART], exclude_pad=False)
    row_sums = ops.reduce_sum(part_means, [3], keep_dims=True)
    row_length = ops.convert(ops.gather(ops.shape_of(x), _axis(3), _axis(0)), "f32")
    return ops.multiply(ops.reduce_mean(row_sums, [2], keep_dims=True), ops.divide(_number(ROW_PART), row_length))


# --- BEATs ------------------------------------------------------------------------------------------------------


def _beats(module: OptimizedBeats, spectrum: Node) -> Node:
    """Add the nodes that turn spectra ``[batch, 1, frames, mels]`` into tokens ``[batch, tokens, dim]``."""
    patches = _convolution(module.patches, spectrum)
    x = _transposed(_reshaped(patches, KEPT, KEPT, -1), 0, 2, 1)
    x = _linear(module.projection, _norm(module.patch_norm, x))
    x = _norm(module.norm, ops.add(x, _positions(module.positions, x)))
    bias = _position_bias(module.bias_by_distance, x)
    for layer in module.layers:
        x = _layer(layer, x, bias)
    return x


def _position_bias(bias_by_distance: torch.Tensor, x: Node) -> Node:
    """Add the nodes of ``OptimizedBeats.position_bias`` for the tokens of ``x``; a constant once their number is."""
    max_distance = bias_by_distance.shape[1] // 2
    n_tokens = ops.gather(ops.shape_of(x), _axis(1), _axis(0))
    positions = ops.range(_axis(0), n_tokens, _axis(1), output_type="i64")
    distances = ops.subtract(ops.unsqueeze(positions, _axis(0)), ops.unsqueeze(positions, _axis(1)))
    distances = ops.add(ops.clamp(distances, -max_distance, max_distance), _axis(max_distance))
    return ops.gather(_constant(bias_by_distance[None]), distances, _axis(2))


def _positions(module: Any, x: Node) -> Node:
    image = ops.unsqueeze(_transposed(x, 0, 2, 1), _axis(2))  # [batch, dim, 1, tokens]
    # The kernel is even: with one token less of padding at the end, the number of tokens stays the same.
    y = _convolution(module.convolution, image, less_padding_at_end=(0, 1))
    return _transposed(ops.squeeze(ops.gelu(y, "erf"), _axis(2)), 0, 2, 1)


def _layer(module: Any, x: Node, bias: Node) -> Node:
    attended = _linear(module.out, _attend(module, _linear(module.qkvg, x), bias))
    x = _norm(module.attention_norm, ops.add(attended, ops.multiply(x, _number(module.residual))))
    hidden = ops.gelu(_linear(module.widen, x), "erf")
    return _norm(module.norm, ops.add(_linear(module.narrow, hidden), ops.multiply(x, _number(module.residual))))


def _attend(module: Any, qkvg: Node, bias: Node) -> Node:
    n_heads = module.n_heads
    dim = module.out.in_features
    parts = ops.variadic_split(qkvg, _axis(2), [dim, dim, dim, 2 * n_heads]).outputs()
    by_head = [_transposed(_reshaped(part, KEPT, KEPT, n_heads, -1), 0, 2, 1, 3) for part in parts]
    q, k, v, gates = by_head
    gate_a, gate_b = ops.split(ops.sigmoid(gates), _axis(3), 2).outputs()
    gate = ops.multiply(gate_a, ops.subtract(ops.multiply(gate_b, _constant(module.gate_scale)), _number(1)))
    mask = ops.multiply(ops.add(gate, _number(2)), bias)
    attended = ops.scaled_dot_product_attention(q, k, v, mask, _number(module.scale))
    return _reshaped(_transposed(attended, 0, 2, 1, 3), KEPT, KEPT, dim)


# --- nodes that both architectures use --------------------------------------------------------------------------


def _convolution(module: Any, x: Node, less_padding_at_end: tuple[int, int] = (0, 0)) -> Node:
    """Add a convolution, optionally with less padding at the end of each axis than at its start."""
    before = list(module.padding)
    after = [n - less for n, less in zip(before, less_padding_at_end, strict=True)]
    weight, geometry = module.weight, (list(module.stride), before, after, list(module.dilation))
    if module.groups > 1:
        by_group = weight.reshape(module.groups, -1, *weight.shape[1:])
        y = ops.group_convolution(x, _constant(by_group), *geometry)
    else:
        y = ops.convolution(x, _constant(weight), *geometry)
    return y if module.bias is None else ops.add(y, _constant(module.bias.reshape(1, -1, 1, 1)))


def _linear(module: nn.Linear, x: Node) -> Node:
    y = ops.matmul(x, _constant(module.weight), transpose_a=False, transpose_b=True)
    return ops.add(y, _constant(module.bias))


def _norm(module: nn.LayerNorm, x: Node) -> Node:
    y = ops.mvn(x, ops.constant([-1], dtype=np.int64), normalize_variance=True, eps=module.eps, eps_mode="inside_sqrt")
    return ops.add(ops.multiply(y, _constant(module.weight)), _constant(module.bias))


def _reshaped(x: Node, *shape: int) -> Node:
    return ops.reshape(x, list(shape), special_zero=True)


def _transposed(x: Node, *order: int) -> Node:
    return ops.transpose(x, list(order))


def _constant(tensor: torch.Tensor) -> Node:
    """Return a constant that shares the tensor's memory, because BEATs' weights are 360 MB."""
    return ov.op.Constant(tensor.detach().contiguous().numpy(), shared_memory=True)


def _number(value: float) -> Node:
    return ops.constant(value, dtype=np.float32)


def _axis(axis: int) -> Node:
    return ops.constant(axis, dtype=np.int64)
