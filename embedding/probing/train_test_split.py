"""The split of labelled recordings into recordings for training and for the test: arrays only."""

import numpy as np

from embedding.probing.labels import TEST, Booleans, Labels


def split_recordings(labels: Labels, test_share: float, seed: int) -> Booleans:
    """Choose the recordings for the test: those of the manifest's split, or a random draw of groups.

    Args:
        labels: The labels.
        test_share: Share of each class for the test, for a draw.
        seed: Seed of the random numbers.

    Returns:
        ``[recordings]``, true for the test.
    """
    if labels.splits is not None:
        return labels.splits == TEST
    groups, group = np.unique(labels.groups, return_inverse=True)
    has_class = np.zeros((len(groups), len(labels.classes)), bool)
    has_class[group[labels.recording], labels.label] = True
    return split_groups(has_class, test_share, seed)[group]


def split_groups(has_class: Booleans, test_share: float, seed: int) -> Booleans:
    """Draw the groups for the test, about ``test_share`` of each class.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011) in two parts: the class with the fewest groups left is
    distributed first, each of its groups to the part that lacks more of the class. Where groups have one class each, a
    class with two groups or more is in both parts.

    Args:
        has_class: ``[groups, classes]``; groups without a class form a class of their own.
        test_share: Share of the groups for the test.
        seed: Seed of the random numbers.

    Returns:
        ``[groups]``, true for the test.
    """
    rng = np.random.default_rng(seed)
    has_class = np.column_stack([has_class, ~has_class.any(axis=1)])
    n = has_class.sum(axis=0)
    n_test = np.where(n > 1, np.clip(test_share * n, 1, np.maximum(1, n - 1)), test_share * n)
    lacking = np.stack([n - n_test, n_test])  # [train and test, classes]
    lacking_groups = len(has_class) * np.array([1 - test_share, test_share])
    part = np.full(len(has_class), -1)
    while (part < 0).any():
        n_left = has_class[part < 0].sum(axis=0)
        rarest = np.argmin(np.where(n_left > 0, n_left, len(has_class) + 1))
        for group in rng.permutation(np.flatnonzero(has_class[:, rarest] & (part < 0))):
            part[group] = max((0, 1), key=lambda which: (lacking[which, rarest], lacking_groups[which]))
            lacking[part[group]] -= has_class[group]
            lacking_groups[part[group]] -= 1
    return part == 1
