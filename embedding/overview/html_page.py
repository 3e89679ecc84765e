"""The overview as one HTML file that needs nothing else: template, style, program, Plotly and data are in it.

Whatever is a name (files, columns and their values, messages) is hostile text. In HTML Jinja escapes it, in the data
its ``tojson`` does; the page's own program makes text of it, never HTML.
"""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from embedding.overview.build import Overview
from embedding.overview.drawn_sample import N_NEAREST, Drawn
from embedding.overview.page_text import Output, everything
from embedding.overview.png_files import charts, maps
from embedding.overview.point_colours import MOST_COLUMNS, Values


def page(output: Output, overview: Overview) -> str:
    """The whole file."""
    environment = Environment(
        loader=PackageLoader("embedding.overview"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = charts(overview) | maps(overview.drawn, overview.drawn.colourings[0])
    data = {
        "figures": {name: json.loads(str(figure.to_json())) for name, figure in pictures.items()},
        **_sample(overview.drawn),
    }
    return environment.get_template("page.html").render(
        everything(output, overview), figures=data["figures"], data=data, plotly_js=get_plotlyjs()
    )


def _sample(drawn: Drawn) -> dict[str, Any]:
    """Return the data of the points for page.js, by their numbers."""
    points, columns = drawn.points, list(drawn.points.columns.items())[:MOST_COLUMNS]
    return {
        "points": {
            "file": _distinct(points.file),
            "time": points.time,
            "recorded_at": points.recorded_at,
            "columns": [{"name": name, **_distinct(values)} for name, values in columns],
        },
        "colourings": [
            {
                "name": colouring.name,
                "groups": [{"name": name, "colour": colour, "points": n} for name, colour, n in colouring.groups],
                "group": colouring.group.tolist(),
                **_distinct(colouring.values),
            }
            for colouring in drawn.colourings
        ],
        "nearest": [
            {"index": index[:N_NEAREST].tolist(), "similarity": cosine[:N_NEAREST].round(4).tolist()}
            for index, cosine in zip(drawn.nearest.index, drawn.nearest.cosine, strict=True)
        ],
    }


def _distinct(values: Values) -> dict[str, Any]:
    """Each value once, and for each point which of them it has: a page is sent by mail."""
    distinct = {value: at for at, value in enumerate(dict.fromkeys(values))}
    return {"distinct": list(distinct), "which": [distinct[value] for value in values]}
