"""Detections in all windows of an output, exactly once for each recording.

1. read the probe, or find the labels that the model predicts
2. choose the thresholds
3. refuse detections of other settings under the same name
4. score the windows, and merge them to detections
5. with --top, choose the best of each label
6. add when and where each recording was made, count, and write summary.json
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedding import storage
from embedding.cli.arguments import folder_name
from embedding.cli.terminal import Terminal
from embedding.config import RANDOM_CHECKPOINT
from embedding.derived.derive import Outcome, derive
from embedding.derived.derived_output import DerivedOutput
from embedding.detecting.activity import Activity
from embedding.detecting.detection_files import (
    SUMMARY,
    add_when_and_where,
    choose_top,
    delete_detections,
    derived_output,
    detections_folder,
)
from embedding.detecting.detections import LABELS, SCORES, Merging, PredictionDetection, ProbeDetection
from embedding.detecting.scoring import Scorer
from embedding.detecting.thresholds import (
    DEFAULT_THRESHOLD,
    LEFT_OUT,
    Thresholds,
    choose_thresholds,
    measure_thresholds,
    read_thresholds,
    thresholds_of,
    unmeasured_thresholds,
)
from embedding.errors import RequestError, storage_failure
from embedding.output.recordings_table import RecordingsById, read_recordings
from embedding.output.shard_reading import list_shards, open_shard
from embedding.output.store import Store, encode_json
from embedding.probing.stored_probe import StoredProbe, read_probe
from embedding.where import choose_recordings

PREDICTIONS = "predictions"
# Classes in the table; summary.json has all classes.
MAX_CLASSES_SHOWN = 40


@dataclass(frozen=True)
class DetectOptions:
    """Options of a detection.

    Attributes:
        root: Directory or prefix of the output.
        probe: Name of a probe, or a .npz; None for the labels that the model predicts.
        name: Name of the detections; None for that of the probe.
        threshold: Least probability of a detection; None if it is not given.
        threshold_file: URI of a CSV with thresholds by label.
        min_precision: Least precision on the windows of the probe's test, from which thresholds are chosen.
        top: Keep so many detections of each label.
        merge_gap_s: Windows of a label merge over gaps of up to so many seconds.
        replace: Replace detections of other settings.
        where: An SQL condition over ``recordings.parquet``; windows of other recordings are not scored.
    """

    root: str
    probe: str | None
    name: str | None = None
    threshold: float | None = None
    threshold_file: str | None = None
    min_precision: float | None = None
    top: int | None = None
    merge_gap_s: float = 0.0
    replace: bool = False
    where: str | None = None

    @property
    def merging(self) -> Merging:
        """The merging of hits; with ``--top`` alone windows stay apart, because no threshold ends a detection."""
        has_threshold = (self.threshold, self.threshold_file, self.min_precision) != (None, None, None)
        return Merging(self.merge_gap_s if has_threshold or self.top is None else -1.0, self.top)

    @property
    def otherwise(self) -> float:
        """The threshold of labels that have none of their own."""
        if self.threshold is not None:
            return self.threshold
        return DEFAULT_THRESHOLD if self.top is None or self.threshold_file is not None else 0.0


@dataclass(frozen=True)
class Detections:
    """The detections of a run.

    Attributes:
        folder: Folder of their files.
        activity: The counts of each label.
        outcome: What was scored.
    """

    folder: str
    activity: dict[str, Activity]
    outcome: Outcome


@dataclass(frozen=True)
class VectorColumn:
    """A column of vectors.

    Attributes:
        name: Its name.
        dim: Length of a vector.
        settings: The settings of the vectors.
    """

    name: str
    dim: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The plan of detections.

    Attributes:
        name: Their name.
        derivation: The computation.
        settings: Everything that determines their rows.
        classes: Thresholds and figures of each class.
    """

    name: str
    derivation: ProbeDetection | PredictionDetection
    settings: dict[str, Any]
    classes: list[dict[str, Any]]

    def output(self, options: DetectOptions) -> DerivedOutput:
        """Return the derived output of the detections."""
        text = json.dumps(self.settings, sort_keys=True)
        return derived_output(options.root, self.name, text, has_candidates=options.top is not None)


def detect(options: DetectOptions, terminal: Terminal, *, verbose: bool = False) -> Detections:
    """Score every stored window, and store the detections; recordings that are scored already are not scored again.

    Args:
        options: The options.
        terminal: Prints progress and counts.
        verbose: Print the log lines of Ray.

    Raises:
        RequestError: There is no such probe, it does not fit the output, or the name has detections of other settings.
        RunError: The storage or the cluster failed; what is stored stays valid.
    """
    try:
        # 1 and 2. Read the probe, and choose the thresholds.
        store = Store(options.root, "")
        settings, shard = store.stored_settings(), list_shards(options.root)[0]
        assert settings is not None, "there are shards"
        if options.probe is None:
            plan = _plan_predictions(options, settings, shard, terminal)
        else:
            probe = read_probe(options.root, options.probe)
            column = store.column_of(probe.layer)
            with open_shard(shard, vectors=column) as file:
                dim = file.schema_arrow.field(column).type.list_size
            plan = plan_probe(options, probe, VectorColumn(column, dim, settings), terminal)

        # 3. Refuse detections of other settings.
        folder_name("--name", plan.name)
        output = plan.output(options)
        refuse_others(options, plan)

        # 4. Score.
        def claim_name() -> None:  # another run may have written since
            if refuse_others(options, plan):
                delete_detections(options.root, plan.name)
                terminal.say(f"detections of other settings in detections/{plan.name} are replaced")

        chosen = choose_recordings(options.root, options.where)
        outcome = derive(
            options.root, output, plan.derivation, terminal, chosen=chosen, on_claimed=claim_name, verbose=verbose
        )

        # 5. Choose the best.
        folder = detections_folder(options.root, plan.name)
        if options.top is not None:
            choose_top(output, folder, options.merging)

        # 6. Add when and where, and count.
        activity = add_when_and_where(folder, RecordingsById(read_recordings(Store(options.root, ""))))
        known = {row["label"] for row in plan.classes}
        others = [{"label": label} for label in activity if label not in known]
        described = [row | activity.get(row["label"], Activity()).describe() for row in [*plan.classes, *others]]
        summary = {"name": plan.name, "recordings": outcome.n_done, "classes": described, "of": plan.settings}
        storage.write_bytes(storage.join(folder, SUMMARY), encode_json(summary))
    except OSError as error:
        raise storage_failure(error) from error
    _print_counts(activity, folder, terminal)
    if settings.get("checkpoint") == RANDOM_CHECKPOINT:
        terminal.warn("RANDOM WEIGHTS: these vectors mean nothing, and so do these detections (--checkpoint random)")
    return Detections(folder, activity, outcome)


def plan_probe(options: DetectOptions, probe: StoredProbe, vectors: VectorColumn, terminal: Terminal) -> Plan:
    """Plan the detections of a probe.

    Args:
        options: The options.
        probe: The probe.
        vectors: The vectors that the probe scores.
        terminal: Shows the thresholds.

    Raises:
        RequestError: The probe does not fit the vectors, or the thresholds do not fit the probe.
    """
    _refuse_unfit(probe, vectors)
    thresholds = _choose(options, probe)
    _print_thresholds(options, probe, thresholds, terminal)
    scorer = Scorer(
        probe.weight.astype(np.float32),
        probe.bias.astype(np.float32),
        thresholds.threshold,
        probe.is_exclusive,
    )
    merging = options.merging
    classes = [
        {
            "label": label,
            "threshold": None if threshold == LEFT_OUT else float(threshold),
            "precision_in_test": None if np.isnan(precision) else float(precision),
            "recall_in_test": None if np.isnan(recall) else float(recall),
        }
        for label, threshold, precision, recall in zip(
            probe.classes, thresholds.threshold, thresholds.precision, thresholds.recall, strict=True
        )
    ]
    return Plan(
        name=options.name or probe.name,
        derivation=ProbeDetection(scorer, tuple(probe.classes), vectors.name, merging),
        settings=_settings(
            options, vectors.settings, {row["label"]: row["threshold"] for row in classes}, probe.digest
        ),
        classes=classes,
    )


def _plan_predictions(options: DetectOptions, settings: dict[str, Any], shard: str, terminal: Terminal) -> Plan:
    """Plan the detections of the model's own labels.

    Raises:
        RequestError: The output has no predicted labels.
    """
    with open_shard(shard) as file:
        has_predictions = {LABELS, SCORES} <= set(file.schema_arrow.names)
    if not has_predictions:
        raise RequestError(
            f"--probe: {options.root} has no predicted labels (jobs.embed --predict K stores them): name a probe"
        )
    if options.min_precision is not None:
        raise RequestError("--min-precision: predicted labels have no test to choose from: use --threshold")
    chosen = {} if options.threshold_file is None else read_thresholds(options.threshold_file)
    terminal.say(f"labels predicted by the model · threshold {options.otherwise:g}")
    return Plan(
        name=options.name or PREDICTIONS,
        derivation=PredictionDetection(chosen, options.otherwise, options.merging),
        settings=_settings(options, settings, chosen | {"": options.otherwise}, PREDICTIONS),
        classes=[{"label": label, "threshold": threshold} for label, threshold in chosen.items()],
    )


def _settings(
    options: DetectOptions, settings: dict[str, Any], thresholds: dict[str, Any], digest: str
) -> dict[str, Any]:
    return {
        "probe": digest,
        "thresholds": thresholds,
        "merge_gap_s": options.merging.gap_s,
        "top": options.top,
        "embeddings": settings,
    } | ({} if options.where is None else {"where": options.where})


def _refuse_unfit(probe: StoredProbe, vectors: VectorColumn) -> None:
    dim, settings = vectors.dim, vectors.settings
    if probe.weight.shape[1] != dim:
        raise RequestError(
            f"--probe: {probe.name} scores vectors of {probe.weight.shape[1]:,} numbers, but this output has {dim:,}"
        )
    differing = sorted(
        name for name, value in (probe.settings or settings).items() if settings.get(name, value) != value
    )
    if differing:
        name = differing[0]
        raise RequestError(
            f"--probe: {probe.name} was learnt from other vectors: {name} was {(probe.settings or {})[name]}, is "
            f"{settings[name]}; learn it again with jobs.probe --replace"
        )


def _choose(options: DetectOptions, probe: StoredProbe) -> Thresholds:
    held_out = probe.held_out
    if options.min_precision is not None:
        if held_out is None:
            raise RequestError(f"--min-precision: {options.probe} has no test to choose from: use --threshold")
        return choose_thresholds(held_out.probability, held_out.truth, options.min_precision)
    chosen = {} if options.threshold_file is None else read_thresholds(options.threshold_file)
    threshold = thresholds_of(probe.classes, chosen, options.otherwise)
    if held_out is None:
        return unmeasured_thresholds(threshold)
    return measure_thresholds(threshold, held_out.probability, held_out.truth)


def _print_thresholds(options: DetectOptions, probe: StoredProbe, thresholds: Thresholds, terminal: Terminal) -> None:
    """Print the thresholds, and what they mean on the windows of the test."""
    terminal.say(f"probe {probe.name!r} · {len(probe.classes):,} classes")
    if options.min_precision is None and options.threshold_file is None:
        terminal.say(f"  threshold {options.otherwise:g}" if options.otherwise else "  the best windows of each class")
        return
    is_out = thresholds.threshold == LEFT_OUT
    width = max([len("class"), *map(len, probe.classes)])
    terminal.say(f"{'class':<{width}}{'threshold':>11}{'precision':>11}{'recall':>9}  (windows of the probe's test)")
    rows = zip(probe.classes, thresholds.threshold, thresholds.precision, thresholds.recall, strict=True)
    for label, threshold, precision, recall in list(rows)[:MAX_CLASSES_SHOWN]:
        if threshold != LEFT_OUT:
            numbers = f"{threshold:>11.3f}{precision:>11.3f}{recall:>9.3f}"
            terminal.say(f"{label:<{width}}{numbers.replace('nan', '  –')}")
    if is_out.any():
        names = ", ".join(np.array(probe.classes, object)[is_out][:MAX_CLASSES_SHOWN])
        terminal.warn(f"left out, as they never reach precision {options.min_precision:g} in the test: {names}")
    if is_out.all():
        raise RequestError(f"--min-precision: no class reaches {options.min_precision:g}: choose a lower one")


def refuse_others(options: DetectOptions, plan: Plan) -> bool:
    """Refuse to mix detections of other settings under the same name; return whether they are to be replaced.

    Raises:
        RequestError: There are such detections.
    """
    text = json.dumps(plan.settings, sort_keys=True)
    others = [
        derived_output(options.root, plan.name, text, has_candidates=has_candidates).other_settings()
        for has_candidates in (False, True)
    ]
    found = next((other for other in others if other is not None), None)
    if found is None or options.replace:
        return found is not None
    try:
        stored = json.loads(found)
        differing = [name for name, value in plan.settings.items() if stored.get(name) != value]
    except (ValueError, AttributeError):
        differing = []
    what = f" (another {differing[0].replace('_', '-')})" if differing else ""
    raise RequestError(
        f"--name: {storage.join(options.root, 'detections', plan.name)} holds detections of other settings{what}: add "
        "--replace, or choose another --name"
    )


def _print_counts(activity: dict[str, Activity], folder: str, terminal: Terminal) -> None:
    """Print the number of detections of each label, the most frequent first."""
    n = sum(counts.detections for counts in activity.values())
    terminal.say(f"{n:,} detections of {len(activity):,} labels")
    width = max([len("label"), *map(len, activity)], default=5)
    if activity:
        terminal.say(f"{'label':<{width}}{'detections':>12}{'recordings':>12}  most at")
    ordered = sorted(activity.items(), key=lambda item: (-item[1].detections, item[0]))
    for label, counts in ordered[:MAX_CLASSES_SHOWN]:
        hour = f"  {counts.by_hour.index(max(counts.by_hour)):02}:00" if any(counts.by_hour) else ""
        terminal.say(f"{label:<{width}}{counts.detections:>12,}{counts.recordings:>12,}{hour}")
    if len(ordered) > MAX_CLASSES_SHOWN:
        terminal.say(f"… and {len(ordered) - MAX_CLASSES_SHOWN:,} more in summary.json")
    terminal.say(f"  {folder}: *.parquet, summary.json")
