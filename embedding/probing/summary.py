"""The result of a probe as lines for the user."""

import shlex
import sys

import numpy as np

from embedding.cli.terminal import Terminal
from embedding.config import RANDOM_CHECKPOINT
from embedding.probing.labels import Booleans
from embedding.probing.logistic_regression import MAX_ITERATIONS
from embedding.probing.probe_files import describe_calibration, probe_folder
from embedding.probing.probe_result import ProbeResult

# Classes in the table, and names in a warning; probe.json has all classes.
MAX_CLASSES_SHOWN = 40
MAX_NAMES_SHOWN = 10


def print_summary(result: ProbeResult, terminal: Terminal) -> None:
    """Print the metrics of a probe, and warnings about them."""
    _print_means(result, terminal)
    _print_classes(result, terminal)
    _print_calibration(result, terminal)
    options = result.options
    terminal.say(f"  {probe_folder(options.root, options.name)}: probe.json, weights.npz, predictions.parquet")
    command = (sys.executable, "-m", "jobs.detect", options.root, "--probe", options.name)
    terminal.say(f"  in all windows: {shlex.join(command)}")
    if result.settings.get("checkpoint") == RANDOM_CHECKPOINT:
        terminal.warn("RANDOM WEIGHTS: these vectors mean nothing, and so does this probe (--checkpoint random)")
    if not result.probe.has_converged:
        terminal.warn(f"the fit did not converge in {MAX_ITERATIONS:,} iterations")
    for subset, purpose in ((result.train, "for training"), (result.test, "for the test")):
        if subset.n_windows > options.max_windows:
            terminal.say(f"{len(subset.windows):,} of {subset.n_windows:,} windows {purpose} are used: --max-windows")
    is_measured = ~np.isnan(result.window_metrics.average_precision)
    _warn_of_classes(result, ~result.is_learnt, "not learnt", "for training", terminal)
    _warn_of_classes(
        result, result.is_learnt & ~is_measured, "not measured, and left out of the means", "for the test", terminal
    )


def _print_calibration(result: ProbeResult, terminal: Terminal) -> None:
    """Print the mean distance of probabilities from the share of windows with the label, before and after."""
    calibration = describe_calibration(result)
    before, after = (calibration[which]["expected_calibration_error"] for which in ("before", "after"))
    terminal.say(f"{'calibration error':<28}{after:>9.3f}  (without calibration {before:.3f})")


def _print_means(result: ProbeResult, terminal: Terminal) -> None:
    windows, recordings = result.window_metrics, result.recording_metrics
    columns = (windows.means(), windows.chance(), recordings.means(), recordings.chance())
    widths = (9, 11, 12, 11)
    terminal.say(f"{'':<28}{'windows':>9}{'by chance':>11}{'recordings':>12}{'by chance':>11}")
    for name, title in {
        "accuracy": "accuracy" if result.probe.is_exclusive else "accuracy (all labels right)",
        "mean_average_precision": "mean average precision",
        "roc_auc": "ROC AUC",
    }.items():
        values = [column[name] for column in columns]
        terminal.say(f"{title:<28}" + "".join(map(_format_number, values, widths)))


def _print_classes(result: ProbeResult, terminal: Terminal) -> None:
    """Print a table of the classes, the most frequent first."""
    classes, metrics = result.labels.classes, result.window_metrics
    n_train, n_test = (subset.truth.sum(axis=0) for subset in (result.train, result.test))
    order = np.argsort(-(n_train + n_test), kind="stable")[:MAX_CLASSES_SHOWN]
    width = max([len("class"), *(len(classes[at]) for at in order)])
    terminal.say(f"{'class':<{width}}{'train':>9}{'test':>9}{'AP':>8}{'AUC':>8}")
    for at in order:
        values = (metrics.average_precision[at], metrics.roc_auc[at])
        terminal.say(
            f"{classes[at]:<{width}}{n_train[at]:>9,}{n_test[at]:>9,}"
            + "".join(_format_number(None if np.isnan(value) else float(value), 8) for value in values)
        )
    if len(classes) > len(order):
        terminal.say(f"… and {len(classes) - len(order):,} more in probe.json")


def _warn_of_classes(result: ProbeResult, selected: Booleans, state: str, purpose: str, terminal: Terminal) -> None:
    """Name the selected classes, whose state comes from the windows for training or for the test."""
    names = result.labels.classes[selected].tolist()
    if names:
        more = f" and {len(names) - MAX_NAMES_SHOWN:,} more" if len(names) > MAX_NAMES_SHOWN else ""
        shown = ", ".join(names[:MAX_NAMES_SHOWN])
        terminal.warn(f"{state} (no window {purpose} has the class, or all of them have it): {shown}{more}")


def _format_number(value: float | None, width: int) -> str:
    return f"{'–' if value is None else f'{value:.3f}':>{width}}"
