"""Pictures of detections and probes as Plotly figures: activity, call density, precision over recall, confusions."""

from collections.abc import Sequence
from datetime import date

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from embedding.overview.plotly_figures import FAINT_TO_FULL, UNITS, as_dates, columns_of, literal, make_figure
from embedding.overview.point_colours import HUES
from embedding.overview.stored_results import DetectedClass, ProbeFigures

# Classes in a picture, those with the most detections.
MOST_CLASSES = 20
# Curves in a picture.
MOST_CURVES = 10
# Curves up to which there is a legend, which on a phone leaves more of them no room; pointing at a curve names it.
MOST_IN_LEGEND = 5

_CLASS_AXIS = {"autorange": "reversed", "showgrid": False, "type": "category"}


def most_frequent(classes: Sequence[DetectedClass]) -> list[DetectedClass]:
    """Return the classes with the most detections, the most frequent first."""
    return sorted((each for each in classes if each.detections), key=lambda each: -each.detections)[:MOST_CLASSES]


def activity_by_hour_figure(classes: Sequence[DetectedClass]) -> go.Figure | None:
    """Return a heat map of detections over the hour of the day, a row for each class; None where no time is known.

    The colours of each row go from none to its own maximum, so that rare classes have a pattern, too.
    """
    shown = [each for each in most_frequent(classes) if any(each.by_hour)]
    if not shown:
        return None
    counts = np.array([each.by_hour for each in shown])
    heat = _heat_of_classes(np.arange(24), shown, counts, "%{x:02d}:00–%{x:02d}:59")
    heat.update(xgap=1)
    hours = {"tickvals": [-0.5, 5.5, 11.5, 17.5, 23.5], "ticktext": ["0:00", "6:00", "12:00", "18:00", "24:00"]}
    return make_figure(
        heat,
        xaxis={"range": [-0.5, 23.5], "showgrid": False, "title": {"text": "time of day"}, **hours},
        yaxis=_CLASS_AXIS,
    )


def activity_by_date_figure(classes: Sequence[DetectedClass]) -> go.Figure | None:
    """Return a heat map of detections over the date; None where fewer than two dates are known."""
    shown = [each for each in most_frequent(classes) if each.by_date]
    days = {text: _day(text) for each in shown for text in each.by_date}
    known = np.unique([day for day in days.values() if day is not None])
    if len(known) < 2:
        return None
    edges, unit = columns_of(known)
    counts = np.zeros((len(shown), len(edges) - 1), np.int64)
    for row, each in enumerate(shown):
        for text, n in each.by_date.items():
            if (day := days[text]) is not None:
                counts[row, np.searchsorted(edges, day, "right") - 1] += n
    return make_figure(
        _heat_of_classes(as_dates(edges), shown, counts, f"%{{x|{UNITS[unit]}}}"),
        xaxis={"type": "date", "showgrid": False},
        yaxis=_CLASS_AXIS,
    )


def _heat_of_classes(
    x: Sequence[str] | NDArray[np.int64], classes: Sequence[DetectedClass], counts: NDArray[np.int64], when: str
) -> go.Heatmap:
    """Return detections as a row for each class, in which colours go from none to the row's maximum.

    Args:
        x: The columns.
        classes: The classes.
        counts: ``[classes, columns]``.
        when: The time of a column, for hover texts.
    """
    share = counts / np.maximum(counts.max(axis=1, keepdims=True), 1)
    return go.Heatmap(
        x=x,
        y=[literal(each.label) for each in classes],
        z=np.where(counts > 0, share, np.nan),
        customdata=counts,
        zmin=0,
        zmax=1,
        colorscale=FAINT_TO_FULL,
        showscale=False,
        ygap=2,
        hovertemplate=f"%{{y}} · {when}<br>%{{customdata:,}} detections<extra></extra>",
    )


def density_figure(classes: Sequence[DetectedClass]) -> go.Figure | None:
    """Return the windows with a call of each judged class, with intervals; None where no class was judged."""
    judged = [(each.label, each.density) for each in classes if each.density is not None][:MOST_CLASSES]
    if not judged:
        return None
    values = np.array(
        [
            (density.windows_with_call, density.windows_with_call_low, density.windows_with_call_high)
            for _, density in judged
        ]
    )
    points = go.Scatter(
        x=values[:, 0],
        y=[literal(label) for label, _ in judged],
        error_x={"type": "data", "array": values[:, 2] - values[:, 0], "arrayminus": values[:, 0] - values[:, 1]},
        mode="markers",
        marker={"color": HUES[0], "size": 9},
        hovertemplate="%{y}: %{x:,.0f} windows with a call<extra></extra>",
    )
    return make_figure(
        points,
        xaxis={"title": {"text": "windows with a call (interval of 95 %)"}, "rangemode": "tozero", "tickformat": ","},
        yaxis={"autorange": "reversed", "type": "category"},
    )


def precision_over_recall_figure(probe: ProbeFigures) -> go.Figure | None:
    """Return precision over recall on the windows of a probe's test; None where the probe has no curves."""
    curves = {name: points for name, points in probe.curves.items() if points}
    if not curves:
        return None
    lines = [
        go.Scatter(
            x=[recall for recall, _ in points],
            y=[precision for _, precision in points],
            name=literal(name),
            mode="lines",
            line={"color": HUES[number % len(HUES)], "width": 2},
            hovertemplate="recall %{x:.2f}, precision %{y:.2f}<extra>%{fullData.name}</extra>",
        )
        for number, (name, points) in enumerate(list(curves.items())[:MOST_CURVES])
    ]
    return make_figure(
        *lines,
        showlegend=len(lines) <= MOST_IN_LEGEND,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": {"text": "recall"}, "range": [0, 1.02]},
        yaxis={"title": {"text": "precision"}, "range": [0, 1.02]},
    )


def confusions_figure(probe: ProbeFigures) -> go.Figure | None:
    """Return which class has the highest score in windows of each class; None where the probe has no counts."""
    if not probe.has_confusions or not any(map(any, probe.confusions)):
        return None
    counts = np.array(probe.confusions)
    chosen = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:MOST_CLASSES])
    counts = counts[np.ix_(chosen, chosen)]
    names = [literal(probe.classes[number]) for number in chosen]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    heat = go.Heatmap(
        x=names,
        y=names,
        z=np.where(counts > 0, share, np.nan),
        text=np.where(counts > 0, counts.astype(str), ""),
        texttemplate="%{text}",
        zmin=0,
        zmax=1,
        colorscale=FAINT_TO_FULL,
        showscale=False,
        xgap=1,
        ygap=1,
        hovertemplate="windows of %{y}: highest score for %{x} in %{text}<extra></extra>",
    )
    return make_figure(
        heat,
        xaxis={"title": {"text": "highest score"}, "showgrid": False, "type": "category"},
        yaxis={"title": {"text": "label"}, "autorange": "reversed", "showgrid": False, "type": "category"},
    )


def _day(text: str) -> int | None:
    """Return a date as days since 1970; None for other texts."""
    try:
        return (date.fromisoformat(text) - date(1970, 1, 1)).days
    except ValueError:
        return None
