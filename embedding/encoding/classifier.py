"""Predictions of labels: a checkpoint's classifier, applied to the features that the encoder has already computed."""

import torch
from safetensors import safe_open
from torch import nn

from embedding.encoding.checkpoints import RANDOM_SEED, Checkpoint
from embedding.encoding.label_map import LabelMap, check_classifier
from embedding.encoding.models import Model
from embedding.encoding.safe_tensors import as_safetensors
from embedding.encoding.token_pooling import pool


class Classifier(nn.Module):
    """Last layer of avex's supervised models: linear, on features pooled in the same way as in training."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, model: Model, checkpoint: Checkpoint, label_map: LabelMap) -> None:
        """Read the weights of the classifier.

        Args:
            model: The model whose features are classified.
            checkpoint: Weights of the model and of the classifier.
            label_map: Labels of the classifier's outputs.

        Raises:
            RequestError: The checkpoint has no classifier, or one that does not match the model or the label map.
        """
        super().__init__()
        self._pooling, self._k = model.traits.classifier_pooling, label_map.k
        weight, bias = _weights(model, checkpoint, label_map)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: torch.Tensor, padded: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the k most likely labels of each window, the most likely first.

        A score is the sigmoid of an output. The models are trained on several labels per window (avex's own metrics
        read the outputs in the same way, avex/metrics/beans_metrics.py), so the scores of a window do not add up to 1.

        Args:
            features: Unpooled features as for ``token_pooling.pool``.
            padded: ``[batch, tokens]``, true where a token is padding; or None.

        Returns:
            Numbers of the labels and their scores, both ``[batch, k]``.
        """
        logits = nn.functional.linear(pool(features, self._pooling, padded), self.weight, self.bias)
        scores, numbers = logits.topk(self._k)
        return numbers, scores.sigmoid()


def _weights(model: Model, checkpoint: Checkpoint, label_map: LabelMap) -> tuple[torch.Tensor, torch.Tensor]:
    n_labels, name = len(label_map.names), model.traits.classifier
    if checkpoint.path is None:
        random = torch.Generator().manual_seed(RANDOM_SEED)
        return torch.randn(n_labels, model.traits.dim, generator=random), torch.zeros(n_labels)
    with as_safetensors(checkpoint) as path, safe_open(path, "pt") as tensors:
        check_classifier(model, checkpoint.uri, tensors, n_labels)
        return tensors.get_tensor(f"{name}.weight").float(), tensors.get_tensor(f"{name}.bias").float()
