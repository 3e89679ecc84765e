"""The result of a probe as lines for the user."""

import numpy as np

from embedding.cli.terminal import Terminal
from embedding.config import RANDOM_CHECKPOINT
from embedding.probing.labels import Truth
from embedding.probing.logistic_regression import MOST_ITERATIONS
from embedding.probing.probe_files import folder
from embedding.probing.probe_result import Result

# Shown; probe.json has all of them.
MOST_CLASSES = 40
MOST_NAMES = 10


def tell(result: Result, terminal: Terminal) -> None:
    """Print the measures of a probe, and warnings about them."""
    is_exclusive = result.probe.is_exclusive
    windows, recordings = result.of_windows, result.of_recordings
    terminal.say(f"{'':<28}{'windows':>9}{'by chance':>11}{'recordings':>12}{'by chance':>11}")
    for name, title in {
        "accuracy": "accuracy" if is_exclusive else "accuracy (all labels right)",
        "mean_average_precision": "mean average precision",
        "roc_auc": "ROC AUC",
    }.items():
        values = [each()[name] for each in (windows.means, windows.chance, recordings.means, recordings.chance)]
        terminal.say(f"{title:<28}" + "".join(map(_number, values, (9, 11, 12, 11))))
    _tell_classes(result, terminal)
    terminal.say(f"  {folder(result.wanted.root, result.wanted.name)}: probe.json, weights.npz, predictions.parquet")
    if result.settings.get("checkpoint") == RANDOM_CHECKPOINT:
        terminal.warn("RANDOM WEIGHTS: these vectors mean nothing, and so does this probe (--checkpoint random)")
    if not result.probe.has_converged:
        terminal.warn(f"the fit did not converge in {MOST_ITERATIONS:,} iterations")
    for side, what in ((result.train, "to learn from"), (result.test, "for the test")):
        if side.n_windows > result.wanted.max_windows:
            terminal.say(f"{len(side.windows):,} of {side.n_windows:,} windows {what} are used: --max-windows")
    is_measured = ~np.isnan(windows.average_precision)
    _warn_of(result, ~result.is_learnt, "not learnt", "to learn from", terminal)
    _warn_of(
        result, result.is_learnt & ~is_measured, "not measured, and left out of the means", "for the test", terminal
    )


def _warn_of(result: Result, is_one: Truth, what: str, where: str, terminal: Terminal) -> None:
    """Name the classes that are ``what`` because of the windows ``where``."""
    names = result.labels.classes[is_one].tolist()
    if names:
        more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
        shown = ", ".join(names[:MOST_NAMES])
        terminal.warn(f"{what} (of the windows {where} none has it, or every one): {shown}{more}")


def _number(value: float | None, width: int) -> str:
    return f"{'–' if value is None else f'{value:.3f}':>{width}}"


def _tell_classes(result: Result, terminal: Terminal) -> None:
    """A table, the most frequent first."""
    classes, metrics = result.labels.classes, result.of_windows
    n_train, n_test = (side.truth.sum(axis=0) for side in (result.train, result.test))
    order = np.argsort(-(n_train + n_test), kind="stable")[:MOST_CLASSES]
    width = max([len("class"), *(len(classes[at]) for at in order)])
    terminal.say(f"{'class':<{width}}{'train':>9}{'test':>9}{'AP':>8}{'AUC':>8}")
    for at in order:
        measured = (metrics.average_precision[at], metrics.roc_auc[at])
        terminal.say(
            f"{classes[at]:<{width}}{n_train[at]:>9,}{n_test[at]:>9,}"
            + "".join(_number(None if np.isnan(value) else float(value), 8) for value in measured)
        )
    if len(classes) > len(order):
        terminal.say(f"… and {len(classes) - len(order):,} more in probe.json")
