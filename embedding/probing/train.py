"""Training of a probe, on one machine and without Ray.

    1. read the labels of the manifest, and the settings of the output
    2. keep the labels of recordings that are stored, and split the recordings
    3. draw windows for training and for the test
    4. learn the probe
    5. measure the probe, and calibrate its scores
    6. store the probe in OUTPUT/probes/NAME/

Only the vectors of the drawn windows are read.
"""

import numpy as np

from embedding.cli.terminal import Terminal
from embedding.errors import RequestError, storage_failure
from embedding.labelling.annotations import MAX_NAMES_SHOWN
from embedding.labelling.label_tables import read_label_table
from embedding.output import run_report
from embedding.output.shard_reading import list_shards, no_embeddings_error
from embedding.output.store import Store
from embedding.probing import probe_files
from embedding.probing.calibration import calibrate
from embedding.probing.label_manifest import LabelManifest, read_labels
from embedding.probing.labelled_windows import (
    drop_repeated,
    find_stored,
    first_file,
    read_vectors,
    recording_and_times,
    sample_windows,
    stored_files,
)
from embedding.probing.labels import Booleans, Floats, Labels
from embedding.probing.logistic_regression import Probe, fit
from embedding.probing.metrics import Metrics, measure, pool_by_recording
from embedding.probing.probe_result import ProbeOptions, ProbeResult, Subset
from embedding.probing.stratified_sample import StratifiedSample
from embedding.probing.train_test_split import split_recordings
from embedding.text import plural


def train_probe(options: ProbeOptions, terminal: Terminal) -> ProbeResult:
    """Learn, measure and store a probe.

    Args:
        options: The options.
        terminal: Prints what is learnt from, and warnings.

    Raises:
        RequestError: There is nothing to learn from or to measure on, a shard is damaged, or the probe exists.
        RunError: The storage failed.
    """
    try:
        result = learn_probe(options, terminal)
        probe_files.write_probe(result)  # step 6
    except OSError as error:
        raise storage_failure(error) from error
    return result


def learn_probe(options: ProbeOptions, terminal: Terminal) -> ProbeResult:
    """Learn and measure a probe, without storing it.

    Args:
        options: The options.
        terminal: Prints what is learnt from, and warnings.

    Raises:
        RequestError: There is nothing to learn from or to measure on, a shard is damaged, or the probe exists.
        OSError: The storage failed.
    """
    # 1. Read the labels and the settings.
    source = read_label_table(
        options.labels, options.column, options.label_format, lambda: stored_files(list_shards(options.root))
    )
    manifest = read_labels(source, options.labels, options.group)
    store = Store(options.root, "")
    settings = store.stored_settings()
    if settings is None:
        raise no_embeddings_error(options.root)
    if not run_report.is_settled(store):
        terminal.warn("a run of jobs.embed is in progress or has died: windows may be missing or outdated")
    if not options.replace:
        probe_files.refuse_existing(options.root, options.name)
    shards = list_shards(options.root)
    column = store.column_of(options.layer)

    # 2. Keep the labels of stored recordings, and split the recordings.
    labels = _restrict_to_stored(manifest.labels, shards, options)
    is_test = split_recordings(labels, options.test_share, options.seed)
    _refuse_leaks(labels, is_test)

    # 3. Draw windows.
    train_sample, test_sample = sample_windows(labels, is_test, shards, options.max_windows, options.seed)
    train, test = _make_subset(labels, train_sample, ~is_test), _make_subset(labels, test_sample, is_test)
    is_learnt = _choose_classes(labels, train, test)
    _print_numbers(manifest, labels, train, test, terminal)

    # 4. Learn.
    is_exclusive = all((subset.truth.sum(axis=1) == 1).all() for subset in (train, test))
    probe = fit(read_vectors(train.windows, shards, column), train.truth[:, is_learnt], is_exclusive=is_exclusive)

    # 5. Measure and calibrate.
    scores = probe.scores(read_vectors(test.windows, shards, column))
    window_metrics, recording_metrics = _measure(probe, scores, train, test, is_learnt)
    calibration = calibrate(scores, test.truth[:, is_learnt], is_exclusive=probe.is_exclusive)
    return ProbeResult(
        options=options,
        settings=settings,
        manifest=manifest,
        labels=labels,
        is_test=is_test,
        train=train,
        test=test,
        is_learnt=is_learnt,
        probe=probe,
        calibration=calibration,
        scores=scores,
        window_metrics=window_metrics,
        recording_metrics=recording_metrics,
    )


def _restrict_to_stored(labels: Labels, shards: list[str], options: ProbeOptions) -> Labels:
    """Return the labels of recordings that are stored.

    Raises:
        RequestError: There are none.
    """
    if not len(labels.files):
        raise RequestError(f"--labels: manifest {options.labels} has no row with a label to use")
    stored = labels.restrict_to(find_stored(labels.files, shards))
    if not len(stored.files):
        raise RequestError(
            f"--labels: none of the {plural(len(labels.files), 'recording')} in {options.labels} is stored in "
            f"{options.root}: the manifest names {labels.files[0]}, the output {first_file(shards[0])}"
        )
    return stored


def _refuse_leaks(labels: Labels, is_test: Booleans) -> None:
    """Refuse a split of the manifest that divides a group."""
    divided = np.intersect1d(labels.groups[is_test], labels.groups[~is_test])
    if len(divided):
        raise RequestError(f"--group: the manifest's column 'split' puts {divided[0]} into both train and test")


def _make_subset(labels: Labels, sample: StratifiedSample, selected: Booleans) -> Subset:
    windows = drop_repeated(sample.rows())
    truth = labels.label_windows(*recording_and_times(windows))
    return Subset(int(selected.sum()), sample.n_added, windows, truth)


def _choose_classes(labels: Labels, train: Subset, test: Subset) -> Booleans:
    """Return the classes that can be learnt, as ``[classes]``.

    Raises:
        RequestError: No class can be learnt, or no such class can be measured.
    """
    for subset, purpose in ((train, "for training"), (test, "for the test")):
        if not len(subset.windows):
            stored = plural(len(labels.files), "recording")
            raise RequestError(
                f"--labels: none of the {stored} is left {purpose}: a class needs two recordings, or two groups"
            )
    has_examples = train.truth.any(axis=0)
    is_learnt = np.logical_and(has_examples, ~train.truth.all(axis=0))
    is_measurable = test.truth.any(axis=0) & ~test.truth.all(axis=0)
    if not is_learnt.any():
        state = f"are all {labels.classes[has_examples][0]!r}" if has_examples.any() else "have no label"
        raise RequestError(f"--column: the windows for training {state}: there is nothing to tell apart")
    if not (is_learnt & is_measurable).any():
        raise RequestError(
            f"--column: nothing can be measured, as none of {len(labels.classes):,} classes is both in train and in "
            "test: a class needs two recordings, or two groups"
        )
    return is_learnt


def _measure(probe: Probe, scores: Floats, train: Subset, test: Subset, is_learnt: Booleans) -> tuple[Metrics, Metrics]:
    """Return the metrics over windows, and over recordings."""
    probabilities = np.zeros(test.truth.shape)
    probabilities[:, is_learnt] = probe.probabilities(scores)
    window_metrics = measure(probabilities, test.truth, train.truth, is_learnt, is_exclusive=probe.is_exclusive)
    means, truth = pool_by_recording(test.recording, probabilities, test.truth)
    _, train_truth = pool_by_recording(train.recording, train.truth, train.truth)
    is_exclusive = all((labels.sum(axis=1) == 1).all() for labels in (train_truth, truth))
    return window_metrics, measure(means, truth, train_truth, is_learnt, is_exclusive=is_exclusive)


def _print_numbers(manifest: LabelManifest, labels: Labels, train: Subset, test: Subset, terminal: Terminal) -> None:
    """Print the numbers of recordings and windows, because learning takes its time."""
    labelled = plural(len(manifest.labels.files), "labelled recording")
    terminal.say(f"{len(labels.files):,} of {labelled} stored · {len(labels.classes):,} classes")
    if manifest.unmatched.n_annotations:
        terminal.warn(f"left out: {manifest.unmatched}")
    if missing := np.setdiff1d(manifest.labels.files, labels.files).tolist():
        more = f" and {len(missing) - MAX_NAMES_SHOWN:,} more" if len(missing) > MAX_NAMES_SHOWN else ""
        terminal.warn(f"left out, as the output does not hold them: {', '.join(missing[:MAX_NAMES_SHOWN])}{more}")
    for n, kind in ((manifest.n_without_label, "without a label"), (manifest.n_other_splits, "with another split")):
        if n:
            terminal.say(f"  left out: {plural(n, 'row')} of the manifest {kind}")
    terminal.say(
        " · ".join(
            f"{plural(subset.n_recordings, 'recording')}, {plural(subset.n_windows, 'window')} {purpose}"
            for subset, purpose in ((train, "for training"), (test, "for the test"))
        )
    )
