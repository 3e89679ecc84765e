"""Validation of a probe's scores by people: call density from what they have judged, and a sample for them to judge.

1. count the scores of all windows, find those of the judged windows, and draw the sample, with Ray Data
2. estimate the density of each class: in all windows, by hour and by site
3. write the sample
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit

from embedding.cli.terminal import Terminal
from embedding.detecting.density import Density, bins_of, estimate, fine_bin, merge_unjudged
from embedding.detecting.detections import ProbeDetection
from embedding.detecting.judgements import Judgements
from embedding.detecting.score_counts import UNKNOWN_HOUR, Places, ScoreCounts, choose_smallest, count_scores
from embedding.errors import RequestError
from embedding.labelling.annotations import UNSURE

# Judged windows of a class below which its density is not estimated.
LEAST_JUDGED = 5
# Windows of the sample, of each class and bin.
SAMPLED_PER_BIN = 10
SAMPLE_COLUMNS = ("file", "start_time", "end_time", "label", "verdict", "score")


def count_all_scores(
    detection: ProbeDetection,
    shards: list[str],
    places: Places,
    judged: pa.Array,
    terminal: Terminal,
    *,
    has_sample: bool,
    verbose: bool = False,
) -> ScoreCounts:
    """Count the scores of all windows.

    Args:
        detection: The probe, as it detects.
        shards: URIs of the shards.
        places: When and where recordings were made; windows of other recordings do not count.
        judged: Names of the recordings in which windows are judged.
        terminal: Prints progress.
        has_sample: Find candidates for a sample, too.
        verbose: Print the log lines of Ray.

    Raises:
        OSError: The storage failed.
        RequestError: A shard is damaged.
    """
    from embedding.ray_runtime.session import session  # Ray takes seconds to import
    from embedding.ray_runtime.worker_errors import raise_worker_errors

    n_sampled = SAMPLED_PER_BIN if has_sample else 0
    counts = ScoreCounts.empty(len(detection.classes), places.n_sites)
    with session(verbose=verbose), raise_worker_errors():
        from embedding.ray_runtime.datasets import stream

        tasks = pa.table({"uri": shards})
        with terminal.counting("shards", len(tasks)) as count:
            for result in stream(count_scores, tasks, detection, places, judged, n_sampled, verbose=verbose):
                counts = counts.plus(result, n_sampled)
                count(sum(result["n_shards"].to_pylist()))
    return counts


def estimate_densities(
    judgements: Judgements, counts: ScoreCounts, classes: tuple[str, ...], sites: list[str], terminal: Terminal
) -> dict[str, dict[str, Any]]:
    """Estimate the call density of each class.

    Args:
        judgements: What people have judged.
        counts: The scores of all windows.
        classes: The classes.
        sites: Names of the sites in ``counts``.
        terminal: Prints the figures.

    Returns:
        For each class that was judged, the fields of its density in ``summary.json``.

    Raises:
        RequestError: No class was judged in enough windows.
    """
    densities = {}
    for number, name in enumerate(classes):
        rows, has_class = judgements.of_class(name, counts.windows)
        if len(rows) >= LEAST_JUDGED:
            densities[name] = _describe(counts, number, rows, has_class, sites)
    if judgements.source.unmatched.files:
        terminal.warn(str(judgements.source.unmatched))
    if not densities:
        raise RequestError(
            f"--validate: {judgements.uri} judges {LEAST_JUDGED} windows of none of the probe's classes: "
            f"{', '.join(classes[:20])}{' …' if len(classes) > 20 else ''}"
        )
    _print(densities, terminal)
    return densities


def write_sample(path: Path, counts: ScoreCounts, classes: tuple[str, ...]) -> int:
    """Write windows of each class to judge, stratified by score, as a manifest for ``--validate``.

    Each row says ``unsure`` until somebody has listened, and unsure windows are not used.

    Args:
        path: The CSV.
        counts: The scores of all windows, with candidates.
        classes: The classes.

    Returns:
        The number of windows.
    """
    candidates = counts.candidates
    bins = np.stack([bins_of(of_class) for of_class in counts.by_hour.sum(axis=0)])
    number, fine = candidates["class"].to_numpy(), candidates["bin"].to_numpy()
    position = candidates.column_names.index("bin")
    chosen = choose_smallest(candidates.set_column(position, "bin", pa.array(bins[number, fine])), SAMPLED_PER_BIN)
    # In the order of the hashes, so that the order says nothing about the scores.
    rows = chosen.sort_by([("class", "ascending"), ("hash", "ascending")]).to_pylist()  # type: ignore[arg-type]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(SAMPLE_COLUMNS)
        for row in rows:
            times, label = (row["start_time"], row["end_time"]), classes[row["class"]]
            writer.writerow([row["file"], *times, label, UNSURE, f"{expit(row['logit']):.6f}"])
    return len(rows)


def _describe(
    counts: ScoreCounts, number: int, rows: NDArray[np.int64], has_class: NDArray[np.bool_], sites: list[str]
) -> dict[str, Any]:
    """Return the fields of the density of a class."""
    by_hour, by_site = counts.by_hour[:, number], counts.by_site[:, number]
    fine = fine_bin(counts.logits[rows, number])
    bins = bins_of(by_hour.sum(axis=0))
    bins = merge_unjudged(bins, np.bincount(bins[fine], minlength=bins[-1] + 1))
    groups = np.concatenate([by_hour.sum(axis=0, keepdims=True), by_hour[:UNKNOWN_HOUR], by_site[: len(sites)]])
    in_bins = np.zeros((len(groups), bins[-1] + 1))
    np.add.at(in_bins.T, bins, groups.T)
    total = in_bins.sum(axis=1)
    value, low, high = estimate(bins[fine], has_class, in_bins / np.maximum(total, 1)[:, None])
    described = [
        Density(int(n), *map(float, figures)).describe() for n, *figures in zip(total, value, low, high, strict=True)
    ]
    hours, places = described[1 : 1 + UNKNOWN_HOUR], described[1 + UNKNOWN_HOUR :]
    return described[0] | {
        "judged": len(rows),
        "judged_with_call": int(has_class.sum()),
        "by_hour": [hour if hour["windows"] else None for hour in hours],
        "by_site": dict(zip(sites, places, strict=True)),
    }


def _print(densities: dict[str, dict[str, Any]], terminal: Terminal) -> None:
    width = max(len("label"), *map(len, densities))
    terminal.say(f"{'label':<{width}}{'judged':>8}{'windows with a call':>21}  (95 % interval)")
    for name, density in densities.items():
        n, low, high = (density[f"windows_with_call{end}"] for end in ("", "_low", "_high"))
        share = f"{density['density']:.2%} of {density['windows']:,}"
        terminal.say(f"{name:<{width}}{density['judged']:>8,}{n:>21,.0f}  ({low:,.0f} to {high:,.0f}; {share})")
