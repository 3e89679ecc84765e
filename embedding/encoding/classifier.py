"""Unpooled features to labels: the classifier that a checkpoint brings, on the features there are already."""

import torch
from safetensors import safe_open
from torch import nn

from embedding.encoding.checkpoints import RANDOM_SEED, Checkpoint
from embedding.encoding.label_map import Labels, refuse_misfit
from embedding.encoding.models import Model, tensors_only
from embedding.encoding.token_pooling import pool


class Classifier(nn.Module):
    """The last layer of avex's supervised models: linear, on features pooled as they were in training."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, model: Model, checkpoint: Checkpoint, labels: Labels) -> None:
        """Read its weights.

        Raises:
            RequestError: the checkpoint has none, or none that fits.
        """
        super().__init__()
        self._pooling, self._k = model.traits.classified, labels.k
        weight, bias = _weights(model, checkpoint, labels)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: torch.Tensor, padded: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The k most likely labels, the likeliest first: their numbers and scores, both ``[batch, k]``.

        A score is the sigmoid of an output. The models are trained with several labels at once (avex's own metrics
        read them so, avex/metrics/beans_metrics.py), so scores of a window do not add up to 1.
        """
        logits = nn.functional.linear(pool(features, self._pooling, padded), self.weight, self.bias)
        scores, numbers = logits.topk(self._k)
        return numbers, scores.sigmoid()


def _weights(model: Model, checkpoint: Checkpoint, labels: Labels) -> tuple[torch.Tensor, torch.Tensor]:
    n_labels, name = len(labels.names), model.traits.classifier
    if checkpoint.path is None:
        random = torch.Generator().manual_seed(RANDOM_SEED)
        return torch.randn(n_labels, model.traits.dim, generator=random), torch.zeros(n_labels)
    with tensors_only(checkpoint) as path, safe_open(path, "pt") as tensors:
        refuse_misfit(model, checkpoint.uri, tensors, n_labels)
        return tensors.get_tensor(f"{name}.weight").float(), tensors.get_tensor(f"{name}.bias").float()
