"""Pooling of a window's features to one vector."""

import torch


def pool(features: torch.Tensor, pooling: str, padded: torch.Tensor | None = None) -> torch.Tensor:
    """Pool the features of each window to one vector.

    Args:
        features: Tokens ``[batch, tokens, dim]`` or a map ``[batch, dim, freq, time]``.
        pooling: ``mean``, ``max``, or ``cls`` for the first token.
        padded: ``[batch, tokens]``, true for tokens that are padding and are left out; or None.

    Returns:
        ``[batch, dim]``.
    """
    tokens = features.flatten(2).transpose(1, 2) if features.dim() == 4 else features
    if pooling == "cls":
        return tokens[:, 0]
    if padded is None:
        return tokens.amax(1) if pooling == "max" else tokens.mean(1)
    padded = padded[..., None]
    if pooling == "max":
        return tokens.masked_fill(padded, float("-inf")).amax(1)
    return tokens.masked_fill(padded, 0).sum(1) / (~padded).sum(1)
