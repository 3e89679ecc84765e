"""Which recordings a probe learns from, and which it is measured on: arrays only."""

import numpy as np

from embedding.probing.labels import TEST, Labels, Truth


def is_test(labels: Labels, test_share: float, seed: int) -> Truth:
    """``[recordings]``: which are for the test, as the manifest says or else by a draw among groups."""
    if labels.sides is not None:
        return labels.sides == TEST
    groups, group = np.unique(labels.groups, return_inverse=True)
    has = np.zeros((len(groups), len(labels.classes)), bool)
    has[group[labels.recording], labels.label] = True
    return draw(has, test_share, seed)[group]


def draw(has: Truth, test_share: float, seed: int) -> Truth:
    """Draw the groups for the test, about ``test_share`` of each class.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011) in two parts: the class with the fewest groups left is
    distributed first, each of its groups to the part that lacks more of the class. Where groups have one class each, a
    class with two groups or more is in both parts.

    Args:
        has: ``[groups, classes]``, the classes of each group; groups without a class form a class of their own.
        test_share: share of the groups for the test.
        seed: of the random numbers.

    Returns:
        ``[groups]``, true for the test.
    """
    rng = np.random.default_rng(seed)
    has = np.column_stack([has, ~has.any(axis=1)])
    n = has.sum(axis=0)
    wanted = np.where(n > 1, np.clip(test_share * n, 1, np.maximum(1, n - 1)), test_share * n)
    lacking = np.stack([n - wanted, wanted])  # [train and test, classes]
    lacking_groups = len(has) * np.array([1 - test_share, test_share])
    part = np.full(len(has), -1)
    while (part < 0).any():
        n_left = has[part < 0].sum(axis=0)
        rarest = np.argmin(np.where(n_left > 0, n_left, len(has) + 1))
        for group in rng.permutation(np.flatnonzero(has[:, rarest] & (part < 0))):
            part[group] = max((0, 1), key=lambda side: (lacking[side, rarest], lacking_groups[side]))
            lacking[part[group]] -= has[group]
            lacking_groups[part[group]] -= 1
    return part == 1
