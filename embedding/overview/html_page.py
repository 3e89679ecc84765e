"""The overview as one HTML file, which holds style, program, Plotly and data.

Names, values of columns and messages are hostile text. Jinja escapes them in HTML, and its ``tojson`` escapes them in
the data; the program of the page inserts them as text, never as HTML.
"""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from embedding.overview.build import Overview
from embedding.overview.drawn_sample import N_LISTED_NEIGHBOURS, DrawnSample
from embedding.overview.page_text import OutputFacts, template_values
from embedding.overview.png_files import chart_figures, map_figures, result_figures
from embedding.overview.point_colours import MOST_COLUMNS, Values
from embedding.overview.stored_results import StoredResults


def render_page(output: OutputFacts, overview: Overview) -> str:
    """Return the page of an output as HTML."""
    environment = Environment(
        loader=PackageLoader("embedding.overview"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = _result_sections(output.results)
    pictures = chart_figures(overview) | map_figures(overview.sample, overview.sample.colour_schemes[0])
    pictures |= {each["id"]: each["figure"] for section in sections for each in section["figures"]}
    data = {
        "figures": {name: json.loads(str(figure.to_json())) for name, figure in pictures.items()},
        **_sample_data(overview.sample),
    }
    return environment.get_template("page.html").render(
        template_values(output, overview),
        results=sections,
        figures=data["figures"],
        data=data,
        plotly_js=get_plotlyjs(),
    )


# Captions of the figures of detections and probes, by the first part of their names.
_CAPTIONS = {
    "activity-by-hour": "Detections by time of day; each row goes from none to its own maximum",
    "activity-by-date": "Detections by date",
    "density": "Windows with a call, estimated from judged windows",
    "precision": "Precision over recall, on windows of recordings that the probe did not learn from",
    "confusions": "The class with the highest score, in windows of each class",
}


def _result_sections(results: StoredResults) -> list[dict[str, Any]]:
    """Return the sections of detections and probes: a title, and the figures with ids and captions."""
    figures = result_figures(results)
    sections = []
    for title, names, kinds in (
        ("Detections", results.detections, ("activity-by-hour", "activity-by-date", "density")),
        ("Probe", results.probes, ("precision", "confusions")),
    ):
        for number, name in enumerate(names):
            shown = [
                {"id": f"{kind}-{number}", "caption": _CAPTIONS[kind], "figure": figures[f"{kind}-{name}"]}
                for kind in kinds
                if f"{kind}-{name}" in figures
            ]
            if shown:
                sections.append({"title": f"{title}: {name}", "figures": shown})
    return sections


def _sample_data(sample: DrawnSample) -> dict[str, Any]:
    """Return the data of the sample for page.js; a point is known by its position in the lists."""
    details, columns = sample.details, list(sample.details.columns.items())[:MOST_COLUMNS]
    return {
        "points": {
            "file": _encode_distinct(details.file),
            "time": details.time,
            "recorded_at": details.recorded_at,
            "columns": [{"name": name, **_encode_distinct(values)} for name, values in columns],
        },
        "colour_schemes": [
            {
                "name": scheme.name,
                "groups": [{"name": name, "colour": colour, "points": n} for name, colour, n in scheme.groups],
                "group": scheme.group.tolist(),
                **_encode_distinct(scheme.values),
            }
            for scheme in sample.colour_schemes
        ],
        "neighbours": [
            {
                "index": index[:N_LISTED_NEIGHBOURS].tolist(),
                "similarity": cosine[:N_LISTED_NEIGHBOURS].round(4).tolist(),
            }
            for index, cosine in zip(sample.neighbours.index, sample.neighbours.cosine, strict=True)
        ],
    }


def _encode_distinct(values: Values) -> dict[str, Any]:
    """Return the distinct values, and the number of each point's value: pages are sent by mail and must be small."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return {"distinct": list(numbers), "which": [numbers[value] for value in values]}
