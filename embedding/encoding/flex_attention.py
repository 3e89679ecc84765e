"""Attention with BEATs' gated position bias, in two forms that compute the same.

The bias that is added to the score of query ``i`` and key ``j`` is ``gate[i] · bias[i, j]``. The bias is the same in
all windows and layers, the gate is not. ``masked_attention`` writes the product of both to memory,
``[batch, heads, tokens, tokens]`` in each layer. ``fused_attention`` computes the product where it computes the scores.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

# Kinds of devices on which the fused form is compiled. On CPUs it runs uncompiled, for tests: torch's cache of kernels
# does not heed the number of threads that a kernel for CPUs was compiled for, and memory gets corrupted (torch 2.11).
COMPILED_ON = ("cuda",)
# torch compiles one function for 8 shapes at most (torch._dynamo.config.recompile_limit, torch 2.11) and raises at the
# next one.
MAX_SHAPES = 8

_NEGATIVE_INFINITY = float("-inf")
_shapes: dict[Callable[..., Any], set[tuple[Any, ...]]] = {}


class Heads(NamedTuple):
    """Projections of the tokens of a batch by the heads of one layer.

    Args:
        query: ``[batch, heads, tokens, head_dim]``; likewise ``key`` and ``value``.
        gate: ``[batch, heads, tokens]``, one number for each query, by which its biases are multiplied.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    gate: torch.Tensor


def masked_attention(heads: Heads, bias: torch.Tensor, padded: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Attend with the gated bias as a mask in memory, 1.5 MB for each window of 5 s and layer in bfloat16.

    Args:
        heads: queries, keys, values and gates.
        bias: ``[heads, tokens, tokens]``, queries before keys.
        padded: ``[batch, tokens]``, true for keys that are padding; or None.
        scale: factor of the scores before the bias is added.

    Returns:
        ``[batch, heads, tokens, head_dim]``.
    """
    mask = heads.gate[..., None] * bias
    if padded is not None:
        mask = mask.masked_fill(padded[:, None, None], _NEGATIVE_INFINITY)
    return functional.scaled_dot_product_attention(*heads[:3], attn_mask=mask, scale=scale)


def fused_attention(heads: Heads, bias: torch.Tensor, padded: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Attend with the gated bias inside the kernel (FlexAttention); never measured on a GPU.

    On a GPU a kernel is compiled for each shape, with and without padding, at its first use. ``masked_attention``
    computes further shapes once there are eight.

    Args:
        heads: queries, keys, values and gates.
        bias: ``[heads, tokens, tokens]``, queries before keys.
        padded: ``[batch, tokens]``, true for keys that are padding; or None.
        scale: factor of the scores before the bias is added.

    Returns:
        ``[batch, heads, tokens, head_dim]``.
    """
    query = heads.query
    attend, inputs = (_gated, ()) if padded is None else (_gated_and_padded, (padded,))
    if query.device.type in COMPILED_ON:
        if not _has_room(attend, (*query.shape, query.dtype, query.device)):
            return masked_attention(heads, bias, padded, scale)
        return _compiled(attend)(heads, bias, scale, *inputs)
    with warnings.catch_warnings():
        # True and meant so: uncompiled, it writes all scores to memory. Only tests on a CPU come here.
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile", UserWarning)
        return attend(heads, bias, scale, *inputs)


def _has_room(attend: Callable[..., Any], shape: tuple[Any, ...]) -> bool:
    """Tell whether torch has compiled this shape or may still do so; torch counts by function and process."""
    shapes = _shapes.setdefault(attend, set())
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
    assert isinstance(attended, torch.Tensor)  # a tuple only where more is asked for
    return attended
