"""What a model's inner layers give, caught by avex's own hooks in the pass that gives the features.

The module runs as avex made it: the arranged ones of ``optimized.py`` and ``openvino_graph.py`` have
other layers inside.
"""

from collections.abc import Sequence
from typing import Any

import torch


class Layered:
    """A module of avex of which some layers are heard."""

    def __init__(self, module: Any, layers: Sequence[int], dtype: torch.dtype) -> None:
        """``layers``: numbers of avex's ``get_model_layers()``."""
        self.names: list[str] = module.register_hooks_for_layers(list(layers))
        self._module = module
        self._dtype = dtype
        # extract_embeddings calls forward, and gives back only what the hooks caught.
        self._forward = module.forward
        module.forward = self._remember
        self._features: torch.Tensor | None = None

    def __call__(self, windows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Unpooled features of ``windows`` (``[batch, length]``), and by its name those of each layer.

        Both are tokens ``[batch, tokens, dim]`` or maps ``[batch, dim, freq, time]``.
        """
        with torch.autocast(windows.device.type, self._dtype, enabled=self._dtype != torch.float32):
            caught = self._module.extract_embeddings(windows, aggregation="none")
        features, self._features = self._features, None
        assert features is not None
        if features.dim() == 3 and len(windows) == features.shape[1] > 1:
            # BEATs' layers have tokens before windows. avex turns them round where the first number is not that of the
            # windows (avex 1.4.0, extract_embeddings): where both are the same, it takes one for the other.
            # Halves, because a half is a size that other micro-batches have, too.
            half = len(windows) // 2
            parts = [self(windows[:half]), self(windows[half:])]
            joined = {name: torch.cat([layers[name] for _, layers in parts]) for name in self.names}
            return torch.cat([features for features, _ in parts]), joined
        caught = caught if isinstance(caught, list) else [caught]
        return features, dict(zip(self.names, caught, strict=True))

    def _remember(self, *arguments: Any) -> torch.Tensor:
        features = self._features = self._forward(*arguments)
        return features
