"""Texts of the page, section by section: numbers of an output and of its overview as sentences and rows.

Where a picture has no data, a sentence says so.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pyarrow as pa

from embedding.config import RANDOM_CHECKPOINT
from embedding.output.consistency import ConsistencyReport
from embedding.overview import projections
from embedding.overview.build import Overview
from embedding.overview.point_colours import format_start
from embedding.overview.sample_choice import SEED
from embedding.overview.stored_results import StoredResults
from embedding.overview.weighted_values import USUAL_DEVIATIONS
from embedding.redact import redact, redact_all
from embedding.text import audio_length, clock, describe_agreement, duration, plural

# Rows of tables that could be as long as the output.
MOST_FAILURES = 1000
MOST_RUNS = 20


@dataclass(frozen=True)
class OutputFacts:
    """Facts about an output, from its files.

    Attributes:
        root: The output.
        consistency: Counts of the output, its runs, and disagreements between its files.
        settings: Settings of run.json, else of the shards.
        agreement: Agreement of the vectors with fp32, of run.json; None where it was not measured.
        recordings: Balance of the last run, of report.json.
        failures: Failures of the output (failures.FAILURES).
        manifests: Names of the manifests with further columns.
        warnings: Warnings to show.
        results: Results of other jobs.
    """

    root: str
    consistency: ConsistencyReport
    settings: dict[str, Any]
    agreement: dict[str, float] | None
    recordings: dict[str, Any]
    failures: pa.Table
    manifests: list[str]
    warnings: list[str]
    results: StoredResults


def template_values(output: OutputFacts, overview: Overview) -> dict[str, Any]:
    """Return the values for the template, except for the figures."""
    return (
        _header(output)
        | _counts(output)
        | _failures(output)
        | _times(overview)
        | _norms(overview)
        | _map(overview)
        | {"method": _method(output, overview)}
    )


def _header(output: OutputFacts) -> dict[str, Any]:
    settings, writer = output.settings, output.consistency.writer
    formats = {
        "window_s": "window {:g} s",
        "hop_s": "hop {:g} s",
        "speed": "speed {:g}",
        "precision": "{}",
        "pooling": "{} pooling",
        "embedding_size": "vectors of {:,} numbers",
    }
    subtitle = [text.format(settings[name]) for name, text in formats.items() if settings.get(name) is not None]
    if subtitle and output.agreement:
        subtitle.append(describe_agreement(output.agreement))
    warnings = [*output.consistency.disagreements, *output.warnings]
    if writer is not None:
        warnings.insert(0, f"A run is writing to this output now ({writer}), so this page is incomplete.")
    return {
        "title": settings.get("model", "Embeddings"),
        "subtitle": " · ".join(subtitle) or "There is no run.json, so the model of these vectors is not known.",
        "root": redact(output.root),
        "random_weights": settings.get("checkpoint") == RANDOM_CHECKPOINT,
        "warnings": redact_all(warnings),
    }


def _counts(output: OutputFacts) -> dict[str, Any]:
    counts, last = output.consistency.output, output.recordings
    tiles = [_tile(counts["recordings"], "recording", " embedded"), _tile(counts["failed"], "recording", " failed")]
    if counts["incomplete"]:
        tiles.append(_tile(counts["incomplete"], "recording", " half-done"))
    tiles += [
        _tile(counts["windows"], "window"),
        (audio_length(counts["audio_s"]), "of audio"),
        _tile(counts["shards"], "shard"),
    ]
    balance = ""
    if "balanced" in last:
        balance = (
            f"The last run listed {plural(last['listed'], 'recording')}: {last['already_done']:,} already done + "
            f"{last['embedded']:,} embedded + {last['failed']:,} failed. "
            + ("Every recording is accounted for." if last["balanced"] else "Not every recording is accounted for.")
        )
    runs = output.consistency.runs
    return {
        "tiles": tiles,
        "balance": balance,
        "runs": [_run(run) for run in reversed(runs[-MOST_RUNS:])],
        "n_more_runs": max(0, len(runs) - MOST_RUNS),
    }


def _tile(n: float, noun: str, suffix: str = "") -> tuple[str, str]:
    """Return a number, and its noun in singular or plural."""
    number, _, noun = plural(int(n), noun).partition(" ")
    return number, noun + suffix


def _run(run: dict[str, Any]) -> dict[str, str]:
    return {
        "started": f"{datetime.fromisoformat(run['started']).astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "state": run["state"],
        "duration": duration(run["wall_s"]),
        "recordings": f"{run['recordings_finished']:,}",
        "failed": f"{run['recordings_failed']:,}",
        "windows": f"{run['windows_written']:,}",
        "speed": f"{run['times_real_time']:,} × real time" if run["times_real_time"] else "–",
    }


def _failures(output: OutputFacts) -> dict[str, Any]:
    n = len(output.failures)
    rows = output.failures.slice(0, MOST_FAILURES).select(["file", "kind", "message"]).to_pylist()
    first_rows = f"The first {MOST_FAILURES:,} of {n:,} failures; all are in failures/*.parquet"
    return {
        "kinds": [
            {"name": kind, "recordings": plural(failed["recordings"], "recording"), "examples": failed["examples"]}
            for kind, failed in output.consistency.failures.items()
        ],
        "failures": rows,
        "failures_shown": first_rows if n > MOST_FAILURES else "All failures",
        "no_failures": "No recording failed."
        if output.consistency.output["windows"]
        else "No recording failed, but there are no embeddings.",
    }


def _times(overview: Overview) -> dict[str, Any]:
    n_timed, n_untimed = overview.sums.n_timed, overview.sums.n_untimed
    untimed = plural(n_untimed, "recording")
    if not n_timed + n_untimed:
        return {"times": "There are no embeddings."}
    if not n_timed:
        return {
            "times": f"The start time of {untimed} is not known. A start time is read from a column of a manifest, or "
            "from a file name like 20250503_031300.WAV."
        }
    text = f"Audio of {plural(n_timed, 'recording')} by date and time of day, as the clock of the recorder showed them."
    not_shown = f" Not shown: {untimed} without a start time in the file name or in a manifest."
    return {"times": text + (not_shown if n_untimed else "")}


def _norms(overview: Overview) -> dict[str, Any]:
    sums, usual = overview.sums, overview.usual_norms
    n_nonfinite = sums.n_nonfinite
    nonfinite = f" {plural(n_nonfinite, 'vector')} {'is' if n_nonfinite == 1 else 'are'} not finite."
    suffix = nonfinite if n_nonfinite else ""
    if usual is None:
        return {"norms": f"There are no finite vectors.{suffix}", "outliers": []}
    n, n_outliers = round(sums.norms.total), overview.n_outliers
    if not sums.norms.values[-1]:
        return {"norms": f"{plural(n, 'vector')}, all zero.{suffix}", "outliers": []}
    text = (
        f"The norm of a vector is its length. The median norm of {plural(n, 'window')} is {usual.median:.4g}. Norms "
        f"from {max(0, usual.low):.4g} to {usual.high:.4g} are usual: within {USUAL_DEVIATIONS:g} deviations of the "
        "median, where a deviation is 1.4826 × the median absolute deviation (an estimate of the standard deviation), "
        f"and at least 1 % of the median. {plural(n_outliers, 'window')} {'is' if n_outliers == 1 else 'are'} outside "
        f"this range.{suffix}"
    )
    outliers = overview.outliers().to_pylist()
    is_selection = len(outliers) < n_outliers
    root = overview.sample.details.root
    return {
        "norms": text,
        "outliers_shown": f"The {len(outliers)} norms furthest from the median" if is_selection else "Outliers",
        "outliers": [
            {
                "norm": f"{row['norm']:.4g}",
                "file": row["file"].removeprefix(root),
                "time": f"{clock(row['start_time'])}–{clock(row['end_time'])}",
                "recorded_at": format_start(overview.manifest_columns.recorded_at(row["file"]), row["start_time"]),
            }
            for row in outliers
        ],
    }


def _map(overview: Overview) -> dict[str, Any]:
    n, n_all = len(overview.sample.details.file), round(overview.sums.norms.total)
    if not n:
        return {"sample": "There are no windows to draw."}
    if n == 1:
        return {"sample": "There is only one window, so there is nothing to compare it with."}
    windows = f"All {n:,} windows" if n == n_all else f"A random sample of {n:,} from {n_all:,} windows"
    if overview.sample.all_equal:
        return {"sample": f"{windows}. All vectors are equal, so there is no map."}
    return {
        "sample": f"{windows}. Each point is a window; windows with similar vectors are close together.",
        "no_umap": f"UMAP needs at least {projections.LEAST_WINDOWS} windows; there are {n}.",
    }


def _method(output: OutputFacts, overview: Overview) -> list[str]:
    n, n_all = len(overview.sample.details.file), round(overview.sums.norms.total)
    lines = [
        f"Sample: {n:,} of {n_all:,} windows, those with the smallest hashes of their keys (seed {SEED}). Every window "
        "has the same chance, and the same output always has the same sample.",
        f"UMAP {metadata.version('umap-learn')}: n_neighbors {projections.N_NEIGHBOURS}, min_dist "
        f"{projections.MIN_DIST:g}, cosine, seed {SEED}, from exact neighbours.",
        "Clusters: HDBSCAN on the points of the UMAP map. Clusters are a way to look at the map; they are not species.",
        f"PCA: of the vectors of the sample, without scaling. Nearest windows: by cosine similarity of all "
        f"{overview.sums.dim:,} numbers, within the sample.",
        "Times: as the clock of the recorder showed them, from file names or the manifest. No time zone is assumed.",
    ]
    if overview.sample.details.root:
        lines.append(f"File names: shown without {overview.sample.details.root}")
    if output.manifests:
        lines.append(f"Columns: from {', '.join(output.manifests)}.")
    return redact_all([*lines, f"avex-batch {metadata.version('avex-batch')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."])
