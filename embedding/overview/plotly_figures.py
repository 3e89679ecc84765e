"""The pictures, as Plotly figures: for the page, which gives them its own colours of text and lines, and for PNG."""

import math

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from embedding.overview.point_colours import HUES, Colouring
from embedding.overview.weighted_values import Fence, Weighted

# Of hours and norms; from faint to full, so that it shows on white and on black.
USUAL, UNUSUAL = HUES[0], HUES[5]
FAINT_TO_FULL = [[0, "rgba(63,144,218,0.12)"], [1, "rgba(63,144,218,1)"]]
GRID, TEXT = "rgba(128,128,128,0.22)", "#333333"

# Dates are drawn in the finest of these that has no more columns, and never as fewer; how hover says one of them.
MOST_COLUMNS, LEAST_COLUMNS = 200, 14
UNITS = {"D": "%-d %b %Y", "W": "week around %-d %b %Y", "M": "%B %Y", "Y": "%Y"}
# The largest of these that the fullest cell reaches.
AUDIO_UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}

# Spreads from the median that the histogram of norms shows, and its bars.
SHOWN_SPREADS = 8
N_BARS = 64


def _figure(*traces: go.Scatter | go.Bar | go.Heatmap, **layout: object) -> go.Figure:
    """Without Plotly's own template: nothing is drawn that is not asked for here."""
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True, "title": {"standoff": 8}}
    plain = {
        "template": go.layout.Template(layout={"xaxis": axis, "yaxis": axis}),
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 8, "t": 12, "b": 8},
        "showlegend": False,
        "hoverlabel": {"align": "left"},
    }
    return go.Figure(traces, plain | layout)


def hours(by_hour: Weighted) -> go.Figure:
    """Audio over date and time of day, from seconds by hours since 1970; there has to be some."""
    day, hour = np.divmod(by_hour.values, 24)
    unit = next((unit for unit in UNITS if len(_edges(day, unit)) <= MOST_COLUMNS + 1), "Y")
    edges = _edges(day, unit)
    audio_s = np.zeros((24, len(edges) - 1))
    np.add.at(audio_s, (hour, np.searchsorted(edges, day, "right") - 1), by_hour.weights)
    name, length_s = next(each for each in AUDIO_UNITS.items() if audio_s.max() >= each[1] or each[1] == 1)
    margin = max(0, LEAST_COLUMNS - len(edges) + 1) * (edges[-1] - edges[0]) / (len(edges) - 1) / 2
    shown = np.array([edges[0] - margin, edges[-1] + margin])
    heat = go.Heatmap(
        x=_dates(edges),
        y=np.arange(24),
        z=np.where(audio_s > 0, audio_s / length_s, np.nan),
        zmin=0,
        zmax=audio_s.max() / length_s,
        colorscale=FAINT_TO_FULL,
        colorbar={"title": {"text": name, "side": "right"}, "thickness": 12, "outlinewidth": 0},
        xgap=1 if len(edges) < 100 else 0,
        ygap=1,
        hovertemplate=f"%{{x|{UNITS[unit]}}} · %{{y:02d}}:00–%{{y:02d}}:59<br>%{{z:.3~g}} {name}<extra></extra>",
    )
    times = {"tickvals": [-0.5, 5.5, 11.5, 17.5, 23.5], "ticktext": ["0:00", "6:00", "12:00", "18:00", "24:00"]}
    return _figure(
        heat,
        xaxis={"type": "date", "range": _dates(shown), "showgrid": False},
        yaxis={"range": [23.5, -0.5], "title": {"text": "time of day"}, **times},
    )


def _edges(day: NDArray[np.int64], unit: str) -> NDArray[np.int64]:
    """Return the edges of columns that cover ``day``, in days since 1970."""
    days = np.arange(day[0], day[-1] + 367)  # of a year beyond
    if unit == "W":
        begins = (days + 3) // 7 * 7 - 3  # on Mondays; 1970 began with a Thursday
    else:
        begins = days.astype("datetime64[D]").astype(f"datetime64[{unit}]").astype("datetime64[D]").astype(np.int64)
    edges = np.unique(begins)
    return edges[: np.searchsorted(edges, day[-1], "right") + 1]


def _dates(days: NDArray[np.number]) -> list[str]:
    return days.round().astype("datetime64[D]").astype(str).tolist()


def norms(lengths: Weighted, fence: Fence) -> go.Figure:
    """The histogram of lengths of vectors; those outside the fence in another colour. Not all may be zero."""
    low, high = lengths.values[[0, -1]].astype(np.float64)
    if fence.spread:
        low = max(low, fence.median - SHOWN_SPREADS * fence.spread)
        high = min(high, fence.median + SHOWN_SPREADS * fence.spread)
    if high - low < fence.spread:
        low, high = low - fence.spread, high + fence.spread
    edges = np.linspace(low, high, N_BARS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    is_usual = (centres >= fence.low) & (centres <= fence.high)
    bars = go.Bar(
        x=centres,
        y=lengths.binned(edges),
        width=np.diff(edges),
        marker={"color": np.where(is_usual, USUAL, UNUSUAL).tolist(), "line": {"width": 0}},
        hovertemplate="%{x:.4~g}: %{y:,} windows<extra></extra>",
    )
    figure = _figure(
        bars,
        bargap=0,
        xaxis={
            "title": {"text": "norm"},
            "range": [low, high],
            "showgrid": False,
            "exponentformat": "power",
        },
        yaxis={"title": {"text": "windows"}, "tickformat": ",", "rangemode": "tozero"},
    )
    for at in (fence.low, fence.high):
        if low < at < high:
            figure.add_vline(at, line={"dash": "dot", "width": 1, "color": UNUSUAL})
    return figure


def scatter(xy: NDArray[np.floating], titles: tuple[str, str], colouring: Colouring, *, ticks: bool) -> go.Figure:
    """Return points in the colours of their groups, and two empty traces for the clicked and the nearest windows.

    Args:
        xy: the points, ``[n, 2]``.
        titles: titles of the axes.
        colouring: colours and groups of the points.
        ticks: show the numbers of the axes, where they mean something.
    """
    points = go.Scatter(
        x=_short(xy[:, 0]),
        y=_short(xy[:, 1]),
        mode="markers",
        marker={
            "size": 8 if len(xy) < 500 else 6 if len(xy) < 2500 else 5,
            "color": colouring.colours,
            "opacity": 0.75,
            "line": {"width": 0},
        },
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    rings = [
        go.Scatter(
            x=[],
            y=[],
            mode="markers",
            hoverinfo="skip",
            showlegend=False,
            marker={"symbol": symbol, "size": size, "line": {"width": 1.5}},
        )
        for symbol, size in (("circle-open", 12), ("cross-thin-open", 22))
    ]
    axis = {"showticklabels": ticks, "zeroline": False, "nticks": 6, "exponentformat": "power"}
    return _figure(
        points,
        *rings,
        hovermode="closest",
        xaxis={"title": {"text": titles[0]}, **axis},
        yaxis={"title": {"text": titles[1]}, **axis},
    )


def _short(values: NDArray[np.floating]) -> list[float]:
    """With as many digits as a screen shows, whatever the size of the numbers: they are most of the page's data."""
    extent = float(np.ptp(values)) or 1.0
    return values.astype(np.float64).round(4 - math.floor(math.log10(extent))).tolist()


def with_legend(figure: go.Figure, colouring: Colouring) -> go.Figure:
    """A scatter as it stands by itself, outside the page."""
    names = [
        go.Scatter(
            x=[None],
            y=[None],
            name=f"{_literal(name)} ({n:,})",
            mode="markers",
            marker={"size": 9, "color": colour},
            showlegend=True,
        )
        for name, colour, n in colouring.groups
    ]
    legend = {"title": {"text": _literal(colouring.name)}, "itemsizing": "constant"}
    return go.Figure([*figure.data, *names], figure.layout).update_layout(showlegend=True, legend=legend)


def _literal(text: str) -> str:
    """``text`` for Plotly, which takes some HTML in it for what it means."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
