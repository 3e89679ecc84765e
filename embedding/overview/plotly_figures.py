"""The pictures as Plotly figures, for the page and for PNG files; the page sets its own colours of text and lines."""

import math

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from embedding.overview.point_colours import HUES, ColourScheme
from embedding.overview.weighted_values import UsualRange, WeightedValues

# Colours of hours and norms. The scale goes from faint to full, so that it is visible on white and on black.
USUAL_COLOUR, OUTLIER_COLOUR = HUES[0], HUES[5]
FAINT_TO_FULL = [[0, "rgba(63,144,218,0.12)"], [1, "rgba(63,144,218,1)"]]
GRID, TEXT = "rgba(128,128,128,0.22)", "#333333"

# Columns of the figure of hours: the finest unit of dates with at most MOST_COLUMNS. A short time has margins that make
# room for LEAST_COLUMNS. Each unit with its format in hover texts.
MOST_COLUMNS, LEAST_COLUMNS = 200, 14
UNITS = {"D": "%-d %b %Y", "W": "week around %-d %b %Y", "M": "%B %Y", "Y": "%Y"}
# Units of audio in seconds; the figure uses the largest unit that its fullest cell reaches.
AUDIO_UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}

# Range of the histogram of norms, in deviations from the median, and number of its bars.
SHOWN_DEVIATIONS = 8
N_BARS = 64


def make_figure(*traces: go.Scatter | go.Bar | go.Heatmap, **layout: object) -> go.Figure:
    """Return a figure without Plotly's own template: every style is set here."""
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


def hours_figure(by_hour: WeightedValues) -> go.Figure:
    """Return a heat map of audio over date and time of day.

    Args:
        by_hour: Seconds of audio by hours since 1970; there must be an hour.
    """
    day, hour = np.divmod(by_hour.values, 24)
    edges, unit = columns_of(day)
    audio_s = np.zeros((24, len(edges) - 1))
    np.add.at(audio_s, (hour, np.searchsorted(edges, day, "right") - 1), by_hour.weights)
    name, length_s = next(item for item in AUDIO_UNITS.items() if audio_s.max() >= item[1] or item[1] == 1)
    margin = max(0, LEAST_COLUMNS - len(edges) + 1) * (edges[-1] - edges[0]) / (len(edges) - 1) / 2
    date_range = np.array([edges[0] - margin, edges[-1] + margin])
    heat = go.Heatmap(
        x=as_dates(edges),
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
    return make_figure(
        heat,
        xaxis={"type": "date", "range": as_dates(date_range), "showgrid": False},
        yaxis={"range": [23.5, -0.5], "title": {"text": "time of day"}, **times},
    )


def columns_of(day: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """Return the edges of at most MOST_COLUMNS columns of dates, and their unit.

    Args:
        day: Days since 1970, in order.
    """
    unit = next((unit for unit in UNITS if len(_edges(day, unit)) <= MOST_COLUMNS + 1), "Y")
    return _edges(day, unit), unit


def _edges(day: NDArray[np.int64], unit: str) -> NDArray[np.int64]:
    """Return the edges of columns that cover ``day``, in days since 1970."""
    days = np.arange(day[0], day[-1] + 367)  # a year beyond, for the end of the last column
    if unit == "W":
        begins = (days + 3) // 7 * 7 - 3  # on Mondays; 1970 began with a Thursday
    else:
        begins = days.astype("datetime64[D]").astype(f"datetime64[{unit}]").astype("datetime64[D]").astype(np.int64)
    edges = np.unique(begins)
    return edges[: np.searchsorted(edges, day[-1], "right") + 1]


def as_dates(days: NDArray[np.number]) -> list[str]:
    """Return days since 1970 as texts for an axis of dates."""
    return days.round().astype("datetime64[D]").astype(str).tolist()


def norms_figure(norms: WeightedValues, usual: UsualRange) -> go.Figure:
    """Return a histogram of norms, in which outliers have another colour.

    Args:
        norms: The norms of all windows; at least one norm must not be zero.
        usual: The range of usual norms.
    """
    low, high = norms.values[[0, -1]].astype(np.float64)
    if usual.deviation:
        low = max(low, usual.median - SHOWN_DEVIATIONS * usual.deviation)
        high = min(high, usual.median + SHOWN_DEVIATIONS * usual.deviation)
    if high - low < usual.deviation:
        low, high = low - usual.deviation, high + usual.deviation
    edges = np.linspace(low, high, N_BARS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    is_usual = (centres >= usual.low) & (centres <= usual.high)
    bars = go.Bar(
        x=centres,
        y=norms.binned(edges),
        width=np.diff(edges),
        marker={"color": np.where(is_usual, USUAL_COLOUR, OUTLIER_COLOUR).tolist(), "line": {"width": 0}},
        hovertemplate="%{x:.4~g}: %{y:,} windows<extra></extra>",
    )
    figure = make_figure(
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
    for limit in (usual.low, usual.high):
        if low < limit < high:
            figure.add_vline(limit, line={"dash": "dot", "width": 1, "color": OUTLIER_COLOUR})
    return figure


def map_figure(xy: NDArray[np.floating], titles: tuple[str, str], scheme: ColourScheme, *, ticks: bool) -> go.Figure:
    """Return a map of windows as points, and two empty traces for the clicked window and its neighbours.

    Args:
        xy: The points, ``[n, 2]``.
        titles: Titles of the axes.
        scheme: Colours and groups of the points.
        ticks: Show the numbers of the axes, where they mean something.
    """
    points = go.Scatter(
        x=_rounded(xy[:, 0]),
        y=_rounded(xy[:, 1]),
        mode="markers",
        marker={
            "size": 8 if len(xy) < 500 else 6 if len(xy) < 2500 else 5,
            "color": scheme.colours,
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
    return make_figure(
        points,
        *rings,
        hovermode="closest",
        xaxis={"title": {"text": titles[0]}, **axis},
        yaxis={"title": {"text": titles[1]}, **axis},
    )


def _rounded(values: NDArray[np.floating]) -> list[float]:
    """Return coordinates rounded to the digits that a screen can show: coordinates are most of the page's data."""
    extent = float(np.ptp(values)) or 1.0
    return values.astype(np.float64).round(4 - math.floor(math.log10(extent))).tolist()


def with_legend(figure: go.Figure, scheme: ColourScheme) -> go.Figure:
    """Return a map with a legend, for a file of its own; the page has a legend beside the maps."""
    entries = [
        go.Scatter(
            x=[None],
            y=[None],
            name=f"{literal(name)} ({n:,})",
            mode="markers",
            marker={"size": 9, "color": colour},
            showlegend=True,
        )
        for name, colour, n in scheme.groups
    ]
    legend = {"title": {"text": literal(scheme.name)}, "itemsizing": "constant"}
    return go.Figure([*figure.data, *entries], figure.layout).update_layout(showlegend=True, legend=legend)


def literal(text: str) -> str:
    """Return a text with ``&``, ``<`` and ``>`` escaped: Plotly interprets some HTML in texts."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
