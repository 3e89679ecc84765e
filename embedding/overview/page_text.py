"""Texts of the page, section by section: numbers of an output and of its overview as sentences and rows.

Where a picture has nothing to show, the words say so.
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
from embedding.overview.point_colours import at_time, below
from embedding.overview.sample_choice import SEED
from embedding.overview.weighted_values import OUTLIER_SPREADS
from embedding.redact import redact, redact_all
from embedding.text import audio_length, clock, duration, plural

# Rows of tables that could be as long as the output.
MOST_FAILURES = 1000
MOST_RUNS = 20


@dataclass(frozen=True)
class Output:
    """Facts about an output."""

    root: str
    audit: ConsistencyReport
    settings: dict[str, Any]  # of run.json, else of its shards
    recordings: dict[str, Any]  # of report.json: the balance of the last run
    failures: pa.Table  # store.FAILURES
    manifests: list[str]  # that columns are from
    warnings: list[str]


def everything(output: Output, overview: Overview) -> dict[str, Any]:
    """Return the values for the template, except for the figures."""
    return (
        _header(output)
        | _books(output)
        | _failures(output)
        | _times(overview)
        | _norms(overview)
        | _map(overview)
        | {"method": _method(output, overview)}
    )


def _header(output: Output) -> dict[str, Any]:
    settings, writer = output.settings, output.audit.writer
    said = {
        "window_s": "window {:g} s",
        "hop_s": "hop {:g} s",
        "precision": "{}",
        "pooling": "pooled by {}",
        "embedding_size": "{:,} numbers a window",
    }
    warnings = [*output.audit.disagreements, *output.warnings]
    if writer is not None:
        warnings.insert(0, f"A run is writing just now ({writer}): what is here is not all.")
    return {
        "title": settings.get("model", "Embeddings"),
        "subtitle": " · ".join(text.format(settings[name]) for name, text in said.items() if name in settings)
        or "There is no run.json, so nothing says which model these are of.",
        "root": redact(output.root),
        "random_weights": settings.get("checkpoint") == RANDOM_CHECKPOINT,
        "warnings": redact_all(warnings),
    }


def _books(output: Output) -> dict[str, Any]:
    counts, last = output.audit.output, output.recordings
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
            f"The last run listed {last['listed']:,} = {last['already_done']:,} already done + {last['embedded']:,} "
            f"embedded + {last['failed']:,} failed. The books {'' if last['balanced'] else 'do not '}balance."
        )
    runs = output.audit.runs
    return {
        "tiles": tiles,
        "balance": balance,
        "runs": [_run(run) for run in reversed(runs[-MOST_RUNS:])],
        "n_more_runs": max(0, len(runs) - MOST_RUNS),
    }


def _tile(n: float, noun: str, more: str = "") -> tuple[str, str]:
    """A number, and of what."""
    number, _, noun = plural(int(n), noun).partition(" ")
    return number, noun + more


def _run(run: dict[str, Any]) -> dict[str, str]:
    return {
        "run of": f"{datetime.fromisoformat(run['started']).astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "state": run["state"],
        "took": duration(run["wall_s"]),
        "recordings": f"{run['recordings_finished']:,}",
        "failed": f"{run['recordings_failed']:,}",
        "windows": f"{run['windows_written']:,}",
        "speed": f"{run['times_real_time']:,} × real time" if run["times_real_time"] else "–",
    }


def _failures(output: Output) -> dict[str, Any]:
    n = len(output.failures)
    rows = output.failures.slice(0, MOST_FAILURES).select(["file", "kind", "message"]).to_pylist()
    the_first = f"The first {MOST_FAILURES:,} of {n:,}; all are in failures/*.parquet"
    return {
        "kinds": [
            {"name": kind, "recordings": plural(failed["recordings"], "recording"), "examples": failed["examples"]}
            for kind, failed in output.audit.failures.items()
        ],
        "failures": rows,
        "failures_shown": the_first if n > MOST_FAILURES else "All of them",
        "no_failures": "None." if output.audit.output["windows"] else "None; and nothing is embedded.",
    }


def _times(overview: Overview) -> dict[str, Any]:
    timed, untimed = overview.sums.n_timed, overview.sums.n_untimed
    if not timed + untimed:
        return {"timed": "Nothing is embedded."}
    if not timed:
        told = plural(untimed, "recording")
        return {"timed": f"Of {told} none says when it began: names like 20250503_031300.WAV would, or a manifest."}
    told = f"Audio of {plural(timed, 'recording')} by date and time of day, on the recorder's own clock."
    left_out = f" Left out: {plural(untimed, 'recording')} of which neither name nor manifest says it."
    return {"timed": told + (left_out if untimed else "")}


def _norms(overview: Overview) -> dict[str, Any]:
    sums, fence = overview.sums, overview.fence
    not_finite = f" {plural(sums.n_nonfinite, 'vector')} not finite." if sums.n_nonfinite else ""
    if fence is None:
        return {"norms": f"There are no vectors.{not_finite}", "outliers": []}
    n, n_outliers = round(sums.norms.total), overview.n_outliers
    if not sums.norms.values[-1]:
        return {"norms": f"{plural(n, 'vector')}, and every one is zero.{not_finite}", "outliers": []}
    usual = (
        f"The length of each vector, of {plural(n, 'window')}: the median is {fence.median:.4g}. Usual is "
        f"{max(0, fence.low):.4g} to {fence.high:.4g}, within {OUTLIER_SPREADS:g} spreads (1.4826 × the median "
        "absolute deviation) of it"
    )
    outliers = overview.outliers().to_pylist()
    outside = f"; {n_outliers:,} lie{'s' * (n_outliers == 1)} outside." if n_outliers else "; none lies outside."
    more = len(outliers) < n_outliers
    root = overview.drawn.points.root
    return {
        "norms": usual + outside + not_finite,
        "outliers_shown": f"The {len(outliers)} furthest from the median" if more else "Outliers",
        "outliers": [
            {
                "norm": f"{row['norm']:.4g}",
                "file": below(root, row["file"]),
                "time": f"{clock(row['start_time'])}–{clock(row['end_time'])}",
                "recorded_at": at_time(overview.known.recorded_at(row["file"]), row["start_time"]),
            }
            for row in outliers
        ],
    }


def _map(overview: Overview) -> dict[str, Any]:
    n, n_all = len(overview.drawn.points.file), round(overview.sums.norms.total)
    if not n:
        return {"drawn": "There are no windows to draw."}
    if n == 1:
        return {"drawn": "There is one window: nothing to compare it with."}
    what = f"All {n:,} windows" if n == n_all else f"{n:,} of {n_all:,} windows, drawn at random"
    if overview.drawn.all_equal:
        return {"drawn": f"{what}: their vectors are all the same, so there is nothing to tell apart."}
    return {
        "drawn": f"{what}, each a point. Points that lie together sound alike to the model.",
        "no_umap": f"There are {n} windows; below {projections.LEAST_WINDOWS} UMAP has nothing to go by.",
    }


def _method(output: Output, overview: Overview) -> list[str]:
    n, n_all = len(overview.drawn.points.file), round(overview.sums.norms.total)
    lines = [
        f"Sample: {n:,} of {n_all:,} windows, those whose keys hash to the smallest numbers with seed {SEED}: each has "
        "the same chance, and the same output gives the same sample.",
        f"UMAP {metadata.version('umap-learn')}: n_neighbors {projections.N_NEIGHBOURS}, min_dist "
        f"{projections.MIN_DIST:g}, cosine, seed {SEED}, from exact neighbours.",
        "Clusters: HDBSCAN on the plane of the UMAP picture. They are a way to look at it, not species.",
        f"PCA: of the vectors of the sample as they are. Nearest: cosine over all {overview.sums.dim:,} numbers, "
        "within the sample.",
        "Times are those of the recorder's own clock, from names or the manifest; no time zone is assumed.",
    ]
    if overview.drawn.points.root:
        lines.append(f"Names are shown without {overview.drawn.points.root}")
    if output.manifests:
        lines.append(f"Columns are those of {', '.join(output.manifests)}.")
    return redact_all([*lines, f"avex-batch {metadata.version('avex-batch')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."])
