"""The whole flow.

    manifest ─▶ labels ─▶ split by recording ─▶ windows, a sample ─▶ vectors ─▶ probe ─▶ metrics ─▶ OUTPUT/probes/NAME/

On one machine and without Ray: of the vectors only those are read that are learnt from or tested.
"""

import numpy as np

from embedding.cli.terminal import Terminal
from embedding.errors import RequestError, storage_failure
from embedding.output import run_report
from embedding.output.shard_reading import list_shards, no_embeddings_error
from embedding.output.store import Store
from embedding.probing import probe_files
from embedding.probing.label_manifest import Manifest, read_labels
from embedding.probing.labelled_windows import draw, first_file, once, places, vectors_of, which_are_stored
from embedding.probing.labels import Floats, Labels, Truth
from embedding.probing.logistic_regression import Probe, fit
from embedding.probing.metrics import Metrics, measure, to_recordings
from embedding.probing.probe_result import Result, Side, Wanted
from embedding.probing.stratified_sample import Sample
from embedding.probing.train_test_split import is_test
from embedding.text import plural


def probe(wanted: Wanted, terminal: Terminal) -> Result:
    """Learn, measure, store.

    Raises:
        RequestError: there is nothing to learn from, or nothing to measure on.
        RunError: the storage failed, or a shard is damaged.
    """
    manifest = read_labels(wanted.labels, wanted.column, wanted.group)
    store = Store(wanted.root, "")
    settings = store.stored_settings()
    if settings is None:
        raise no_embeddings_error(wanted.root)
    if not run_report.is_settled(store):
        terminal.warn("a run of jobs.embed is going on, or died: windows may be missing, or be of former versions")
    try:
        if not wanted.replace:
            probe_files.refuse_existing(wanted.root, wanted.name)
        shards = list_shards(wanted.root)
        vectors = store.column_of(wanted.layer)
        labels = _of_stored(manifest.labels, shards, wanted)
        for_test = is_test(labels, wanted.test_share, wanted.seed)
        _refuse_leaks(labels, for_test)
        to_learn, to_test = draw(labels, for_test, shards, wanted.max_windows, wanted.seed)
        train, test = _side(labels, to_learn, ~for_test), _side(labels, to_test, for_test)
        is_learnt = _learnable(labels, train, test)
        _tell(manifest, labels, train, test, terminal)
        is_exclusive = all((side.truth.sum(axis=1) == 1).all() for side in (train, test))
        learnt = fit(vectors_of(train.windows, shards, vectors), train.truth[:, is_learnt], is_exclusive=is_exclusive)
        scores = learnt.scores(vectors_of(test.windows, shards, vectors))
        of_windows, of_recordings = _measured(learnt, scores, train, test, is_learnt)
        result = Result(
            wanted=wanted,
            settings=settings,
            manifest=manifest,
            labels=labels,
            is_test=for_test,
            train=train,
            test=test,
            is_learnt=is_learnt,
            probe=learnt,
            scores=scores,
            of_windows=of_windows,
            of_recordings=of_recordings,
        )
        probe_files.write(result)
    except OSError as error:
        raise storage_failure(error) from error
    return result


def _of_stored(labels: Labels, shards: list[str], wanted: Wanted) -> Labels:
    """Return the labels of recordings that are stored."""
    if not len(labels.files):
        raise RequestError(f"--labels: manifest {wanted.labels} has no row with a label to use")
    stored = labels.only(which_are_stored(labels.files, shards))
    if not len(stored.files):
        raise RequestError(
            f"--labels: none of the {plural(len(labels.files), 'recording')} in {wanted.labels} is stored in "
            f"{wanted.root}: the manifest names {labels.files[0]}, the output {first_file(shards[0])}"
        )
    return stored


def _refuse_leaks(labels: Labels, for_test: Truth) -> None:
    both = np.intersect1d(labels.groups[for_test], labels.groups[~for_test])
    if len(both):
        raise RequestError(f"--group: by the manifest's column 'split', {both[0]} is on both sides")


def _side(labels: Labels, sample: Sample, is_own: Truth) -> Side:
    windows = once(sample.rows())
    return Side(int(is_own.sum()), sample.n_seen, windows, labels.of_windows(*places(windows)))


def _learnable(labels: Labels, train: Side, test: Side) -> Truth:
    """``[classes]``: which can be learnt.

    Raises:
        RequestError: none, or none of them can be measured.
    """
    for side, what in ((train, "to learn from"), (test, "for the test")):
        if not len(side.windows):
            listed = plural(len(labels.files), "recording")
            raise RequestError(f"--labels: of {listed} none is left {what}: a class takes two, or two groups")
    has, measurable = train.truth.any(axis=0), test.truth.any(axis=0) & ~test.truth.all(axis=0)
    is_learnt = np.logical_and(has, ~train.truth.all(axis=0))
    if not is_learnt.any():
        what = f"are all {labels.classes[has][0]!r}" if has.any() else "have no label"
        raise RequestError(f"--column: the windows to learn from {what}: there is nothing to tell apart")
    if not (is_learnt & measurable).any():
        raise RequestError(
            f"--column: nothing can be measured, as none of {len(labels.classes):,} classes is on both sides of the "
            "split: a class takes two recordings, or two groups"
        )
    return is_learnt


def _measured(probe: Probe, scores: Floats, train: Side, test: Side, is_learnt: Truth) -> tuple[Metrics, Metrics]:
    """Return the measures over windows, and over recordings."""
    probabilities = np.zeros(test.truth.shape)
    probabilities[:, is_learnt] = probe.probabilities(scores)
    of_windows = measure(probabilities, test.truth, train.truth, is_learnt, is_exclusive=probe.is_exclusive)
    means, truth = to_recordings(test.recording, probabilities, test.truth)
    _, before = to_recordings(train.recording, train.truth, train.truth)
    is_exclusive = all((has.sum(axis=1) == 1).all() for has in (before, truth))
    return of_windows, measure(means, truth, before, is_learnt, is_exclusive=is_exclusive)


def _tell(manifest: Manifest, labels: Labels, train: Side, test: Side, terminal: Terminal) -> None:
    """Print the numbers of recordings and windows, before learning takes its time."""
    listed = plural(len(manifest.labels.files), "labelled recording")
    terminal.say(f"{len(labels.files):,} of {listed} stored · {len(labels.classes):,} classes")
    for n, what in ((manifest.n_without_label, "without a label"), (manifest.n_of_other_splits, "of another split")):
        if n:
            terminal.say(f"  left out: {plural(n, 'row')} of the manifest {what}")
    terminal.say(
        " · ".join(
            f"{plural(side.n_recordings, 'recording')}, {plural(side.n_windows, 'window')} {what}"
            for side, what in ((train, "to learn from"), (test, "for the test"))
        )
    )
