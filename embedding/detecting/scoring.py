"""Scores of windows: which windows reach the threshold of a class. Arrays only."""

from collections.abc import Iterator, Sequence
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
    threshold: NDArray[np.float64]
    is_exclusive: bool

    def find_hits(self, vectors: Floats32) -> Hits:
        """Return the windows that reach a threshold.

        Args:
            vectors: ``[windows, dim]``.
        """
        return _join([self._find_in_chunk(chunk, first) for first, chunk in _chunks(vectors)])

    def find_best(self, vectors: Floats32, n: int) -> Hits:
        """Return at least the ``n`` windows of each class with the highest scores, whatever its threshold.

        Args:
            vectors: ``[windows, dim]``.
            n: Number of windows.
        """
        parts = []
        for first, chunk in _chunks(vectors):
            logits = self.logits(chunk)
            best = np.argpartition(-logits, min(n, len(chunk)) - 1, axis=0)[:n]
            window, label = best.T.ravel(), np.repeat(np.arange(logits.shape[1]), len(best))
            parts.append((window + first, label, self._probability(logits[window, label])))
        return _join(parts)

    def _find_in_chunk(self, vectors: Floats32, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats32]:
        logits = self.logits(vectors)
        # Few scores reach a threshold: comparing logits leaves most of the exponentials out.
        if self.is_exclusive:
            least = np.where(self.threshold > 1, np.inf, np.log(np.maximum(self.threshold, 1e-38)))
        else:
            least = np.where(self.threshold > 1, np.inf, logit(np.minimum(self.threshold, 1)))
        least = np.where(self.threshold <= 0, -np.inf, least).astype(np.float32)
        window, label = np.nonzero(logits >= least)
        return window + first, label, self._probability(logits[window, label])

    def logits(self, vectors: Floats32) -> Floats32:
        """Return logits, ``[windows, classes]``; of exclusive classes the logarithms of their probabilities."""
        logits = vectors @ self.weight.T
        logits += self.bias
        if self.is_exclusive:
            logits -= logits.max(axis=1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits

    def _probability(self, logits: Floats32) -> Floats32:
        return (np.exp(logits) if self.is_exclusive else expit(logits)).astype(np.float32)


def _chunks(vectors: Floats32) -> Iterator[tuple[int, Floats32]]:
    for first in range(0, len(vectors), CHUNK_ROWS):
        yield first, vectors[first : first + CHUNK_ROWS]


def _join(parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], Floats32]]) -> Hits:
    if not parts:
        return Hits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    return Hits(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
