"""The plan of detections: options, the probe and its thresholds, and the settings that tell them from others."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedding import storage
from embedding.cli.terminal import Terminal
from embedding.derived.derived_output import DerivedOutput
from embedding.detecting.detection_files import (
    derived_output,
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
from embedding.errors import RequestError
from embedding.output.shard_reading import open_shard
from embedding.probing.stored_probe import StoredProbe

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
        validate: URI of judgements, from which call density is estimated.
        sample: A CSV on this machine, for windows to judge.
        label_format: A format of crowsetta, in which the judgements are written; None: the format is recognised.
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
    validate: str | None = None
    sample: Path | None = None
    label_format: str | None = None

    @property
    def needs_scores(self) -> bool:
        """The scores of all windows are needed, not of detections alone."""
        return (self.validate, self.sample) != (None, None)

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


def plan_predictions(options: DetectOptions, settings: dict[str, Any], shard: str, terminal: Terminal) -> Plan:
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
