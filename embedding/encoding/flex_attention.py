"""Attention with BEATs' gated position bias, in two forms with equal results.

The score of query ``i`` and key ``j`` is increased by ``gate[i] · bias[i, j]``. The bias is the same for all windows
and layers, the gate is not. ``masked_attention`` writes the product of gate and bias to memory in each layer,
``[batch, heads, tokens, tokens]``. ``fused_attention`` computes the product in the kernel that computes the scores.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

# Types of devices on which the fused form is compiled. On CPUs, in tests, the fused form runs uncompiled: torch's cache
# of kernels ignores the number of threads for which a kernel was compiled, which corrupts memory (torch 2.11).
COMPILED_ON = ("cuda",)
# torch compiles a function for at most 8 shapes (torch._dynamo.config.recompile_limit, torch 2.11) and raises at the
# next shape.
MAX_SHAPES = 8

_NEGATIVE_INFINITY = float("-inf")
_compiled_shapes: dict[Callable[..., Any], set[tuple[Any, ...]]] = {}


class Heads(NamedTuple):
    """Projections of the tokens of a batch by the heads of one layer.

    Attributes:
        query: ``[batch, heads, tokens, head_dim]``.
        key: Same shape as ``query``.
        value: Same shape as ``query``.
        gate: ``[batch, heads, tokens]``, factor of the biases of each query.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    gate: torch.Tensor


def masked_attention(heads: Heads, bias: torch.Tensor, padded: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Compute attention with the gated bias as a mask in memory: 1.5 MB per window of 5 s and layer in bfloat16.

    Args:
        heads: Queries, keys, values and gates.
        bias: ``[heads, tokens, tokens]``, queries before keys.
        padded: ``[batch, tokens]``, true for keys that are padding; or None.
        scale: Factor of the scores before the bias is added.

    Returns:
        ``[batch, heads, tokens, head_dim]``.
    """
    mask = heads.gate[..., None] * bias
    if padded is not None:
        mask = mask.masked_fill(padded[:, None, None], _NEGATIVE_INFINITY)
    return functional.scaled_dot_product_attention(*heads[:3], attn_mask=mask, scale=scale)


def fused_attention(heads: Heads, bias: torch.Tensor, padded: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Compute attention with the gated bias inside the kernel (FlexAttention). Never measured on a GPU.

    On a GPU a kernel is compiled at the first use of each shape, separately with and without padding. After eight
    shapes ``masked_attention`` computes any further shape.

    Args:
        heads: Queries, keys, values and gates.
        bias: ``[heads, tokens, tokens]``, queries before keys.
        padded: ``[batch, tokens]``, true for keys that are padding; or None.
        scale: Factor of the scores before the bias is added.

    Returns:
        ``[batch, heads, tokens, head_dim]``.
    """
    query = heads.query
    attend, inputs = (_gated, ()) if padded is None else (_gated_and_padded, (padded,))
    if query.device.type in COMPILED_ON:
        if not _may_compile(attend, (*query.shape, query.dtype, query.device)):
            return masked_attention(heads, bias, padded, scale)
        return _compiled(attend)(heads, bias, scale, *inputs)
    with warnings.catch_warnings():
        # The warning is correct: uncompiled, FlexAttention writes all scores to memory. Only tests run this on a CPU.
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile", UserWarning)
        return attend(heads, bias, scale, *inputs)


def _may_compile(attend: Callable[..., Any], shape: tuple[Any, ...]) -> bool:
    """Return True if torch has compiled this shape or may still compile it; torch counts per function and process."""
    shapes = _compiled_shapes.setdefault(attend, set())
    if len(shapes) < MAX_SHAPES:
        shapes.add(shape)
    return shape in shapes


@functools.cache
def _compiled(attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return torch.compile(attend, dynamic=False, fullgraph=True)


def _gated(heads: Heads, bias: torch.Tensor, scale: float) -> torch.Tensor:
    gate = heads.gate

    def add_bias(score: torch.Tensor, b: Any, h: Any, i: Any, j: Any) -> torch.Tensor:
        return score + gate[b, h, i] * bias[h, i, j]

    return _attend(heads, add_bias, scale)


def _gated_and_padded(heads: Heads, bias: torch.Tensor, scale: float, padded: torch.Tensor) -> torch.Tensor:
    gate = heads.gate

    def add_bias(score: torch.Tensor, b: Any, h: Any, i: Any, j: Any) -> torch.Tensor:
        return torch.where(padded[b, j], _NEGATIVE_INFINITY, score + gate[b, h, i] * bias[h, i, j])

    return _attend(heads, add_bias, scale)


def _attend(heads: Heads, add_bias: Callable[..., torch.Tensor], scale: float) -> torch.Tensor:
    attended = flex_attention(*heads[:3], score_mod=add_bias, scale=scale)
    assert isinstance(attended, torch.Tensor)  # a tuple only if auxiliary results are requested
    return attended
