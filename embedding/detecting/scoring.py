"""Scores of windows: which windows reach the threshold of a class. Arrays only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

# Rows that are scored at a time: with 100 classes their scores are 6.5 MB, which caches hold.
CHUNK_ROWS = 16_384

Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Hits:
    """Windows that reach the threshold of a class, in the order of windows and classes.

    Attributes:
        window: ``[hits]``, numbers of the windows.
        label: ``[hits]``, numbers of the classes.
        score: ``[hits]``, probabilities.
    """

    window: NDArray[np.int64]
    label: NDArray[np.int64]
    score: Floats32


@dataclass(frozen=True)
class Scorer:
    """A probe with a threshold for each class.

    Attributes:
        weight: ``[classes, dim]``.
        bias: ``[classes]``.
        threshold: ``[classes]``, probabilities; above 1 for a class that is left out.
        is_exclusive: The probabilities of a window are the softmax of its scores; otherwise the probability of each
            class is the logistic function of its score.
    """

    weight: Floats32
    bias: Floats32
    threshold: Floats32
    is_exclusive: bool

    def find_hits(self, vectors: Floats32) -> Hits:
        """Return the windows that reach a threshold.

        Args:
            vectors: ``[windows, dim]``.
        """
        parts = [
            self._find_in_chunk(vectors[first : first + CHUNK_ROWS], first)
            for first in range(0, len(vectors), CHUNK_ROWS)
        ]
        if not parts:
            return Hits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        return Hits(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _find_in_chunk(self, vectors: Floats32, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats32]:
        logits = vectors @ self.weight.T
        logits += self.bias
        # Few scores reach a threshold: comparing logits leaves most of the exponentials out.
        if self.is_exclusive:
            logits -= logits.max(axis=1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            least = np.where(self.threshold > 1, np.inf, np.log(np.maximum(self.threshold, np.float32(1e-38))))
        else:
            least = np.where(self.threshold > 1, np.inf, logit(np.minimum(self.threshold, 1)))
        least = np.where(self.threshold <= 0, -np.inf, least).astype(np.float32)
        window, label = np.nonzero(logits >= least)
        hit = logits[window, label]
        score = np.exp(hit) if self.is_exclusive else expit(hit)
        return window + first, label, score.astype(np.float32)
