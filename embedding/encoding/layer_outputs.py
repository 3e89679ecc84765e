"""Outputs of a model's inner layers, caught by avex's hooks in the forward pass that computes the features.

The model runs as avex builds it, because the models of ``optimized.py`` and ``openvino_graph.py`` have other layers.
"""

from collections.abc import Sequence
from typing import Any

import torch


class ModelWithLayerOutputs:
    """An avex model that also returns the outputs of some of its layers.

    Attributes:
        names: avex's names of the layers, in order.
    """

    def __init__(self, module: Any, layers: Sequence[int], dtype: torch.dtype) -> None:
        """Register avex's hooks.

        Args:
            module: avex's module.
            layers: Indices into avex's ``get_model_layers()``.
            dtype: Type of autocast; float32 for no autocast.
        """
        self.names: list[str] = module.register_hooks_for_layers(list(layers))
        self._module = module
        self._dtype = dtype
        # extract_embeddings calls forward, but returns only the outputs that the hooks catch.
        self._forward = module.forward
        module.forward = self._remember_features
        self._features: torch.Tensor | None = None

    def __call__(self, windows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute unpooled features of the model and of the layers.

        Args:
            windows: ``[batch, length]``.

        Returns:
            The model's features, and those of each layer by its name. Features are tokens ``[batch, tokens, dim]`` or
            maps ``[batch, dim, freq, time]``.
        """
        with torch.autocast(windows.device.type, self._dtype, enabled=self._dtype != torch.float32):
            outputs = self._module.extract_embeddings(windows, aggregation="none")
        features, self._features = self._features, None
        assert features is not None
        if features.dim() == 3 and len(windows) == features.shape[1] > 1:
            # BEATs' layers have tokens before windows. avex swaps both where the first dimension is not the number of
            # windows (avex 1.4.0, extract_embeddings), and so does not swap them where there are as many tokens as
            # windows. The batch is halved, because other micro-batches also have half the size.
            half = len(windows) // 2
            halves = [self(windows[:half]), self(windows[half:])]
            joined = {name: torch.cat([layers[name] for _, layers in halves]) for name in self.names}
            return torch.cat([features for features, _ in halves]), joined
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return features, dict(zip(self.names, outputs, strict=True))

    def _remember_features(self, *arguments: Any) -> torch.Tensor:
        features = self._features = self._forward(*arguments)
        return features
