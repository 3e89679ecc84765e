"""Detections in all windows of an output, exactly once for each recording.

1. read the probe, or find the labels that the model predicts
2. choose the thresholds
3. refuse detections of other settings under the same name
4. score the windows, and merge them to detections
5. with --top, choose the best of each label
6. add when and where each recording was made, and count
7. estimate call density from judged windows, and draw a sample of windows to judge
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embedding import storage
from embedding.cli.arguments import folder_name
from embedding.cli.terminal import Terminal
from embedding.config import RANDOM_CHECKPOINT
from embedding.derived.derive import Outcome, derive
from embedding.detecting.activity import Activity
from embedding.detecting.detection_files import (
    SUMMARY,
    add_when_and_where,
    choose_top,
    delete_detections,
    detections_folder,
)
from embedding.detecting.detections import ProbeDetection
from embedding.detecting.judgements import Judgements
from embedding.detecting.plan import (
    MAX_CLASSES_SHOWN,
    DetectOptions,
    VectorColumn,
    plan_predictions,
    plan_probe,
    refuse_others,
)
from embedding.detecting.score_counts import Places
from embedding.detecting.validate import count_all_scores, estimate_densities, write_sample
from embedding.errors import RequestError, storage_failure
from embedding.output.recordings_table import RecordingsById, read_recordings
from embedding.output.shard_reading import list_shards, open_shard
from embedding.output.store import Store, encode_json
from embedding.probing.stored_probe import read_probe
from embedding.where import choose_recordings


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
            plan = plan_predictions(options, settings, shard, terminal)
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
        judgements = None
        if options.probe is None and options.needs_scores:
            raise RequestError("--validate, --sample: predicted labels are stored where they are likely: name a probe")
        if options.validate is not None:
            judgements = Judgements.read(options.validate, options.label_format, list_shards(options.root))

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
        recordings = read_recordings(store)
        activity = add_when_and_where(folder, RecordingsById(recordings))
        known = {row["label"] for row in plan.classes}
        others = [{"label": label} for label in activity if label not in known]
        described = [row | activity.get(row["label"], Activity()).describe() for row in [*plan.classes, *others]]

        # 7. Estimate call density, and draw a sample.
        if isinstance(plan.derivation, ProbeDetection) and options.needs_scores:
            if chosen is not None:
                recordings = recordings.filter(pa.array(np.isin(recordings["file_id"].to_numpy(), chosen)))
            densities = _validate(options, plan.derivation, judgements, recordings, terminal, verbose=verbose)
            described = [
                row | ({"density": densities[row["label"]]} if row["label"] in densities else {}) for row in described
            ]
        summary = {"name": plan.name, "recordings": outcome.n_done, "classes": described, "of": plan.settings}
        storage.write_bytes(storage.join(folder, SUMMARY), encode_json(summary))
    except OSError as error:
        raise storage_failure(error) from error
    _print_counts(activity, folder, terminal)
    if settings.get("checkpoint") == RANDOM_CHECKPOINT:
        terminal.warn("RANDOM WEIGHTS: these vectors mean nothing, and so do these detections (--checkpoint random)")
    return Detections(folder, activity, outcome)


def _validate(
    options: DetectOptions,
    detection: ProbeDetection,
    judgements: Judgements | None,
    recordings: pa.Table,
    terminal: Terminal,
    *,
    verbose: bool,
) -> dict[str, dict[str, Any]]:
    """Return the densities of the judged classes, and write the sample."""
    sites = sorted({site for site in recordings["site"].to_pylist() if site is not None})
    counts = count_all_scores(
        detection,
        list_shards(options.root),
        Places.of(recordings, sites),
        pa.array([], pa.string()) if judgements is None else judgements.files,
        terminal,
        has_sample=options.sample is not None,
        verbose=verbose,
    )
    if options.sample is not None:
        n = write_sample(options.sample, counts, detection.classes)
        terminal.say(
            f"{n:,} windows to judge in {options.sample}: set verdict to present or absent, then --validate it"
        )
    if judgements is None:
        return {}
    return estimate_densities(judgements, counts, detection.classes, sites, terminal)


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
