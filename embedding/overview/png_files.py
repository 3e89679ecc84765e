"""The pictures of an overview, as figures and as PNG files."""

import re
from contextlib import ExitStack
from pathlib import Path

import kaleido
import plotly.graph_objects as go
from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError, KaleidoError

from embedding import storage
from embedding.errors import RequestError, RunError
from embedding.overview import label_figures, plotly_figures
from embedding.overview.build import Overview
from embedding.overview.drawn_sample import DrawnSample
from embedding.overview.point_colours import ColourScheme
from embedding.overview.stored_results import StoredResults

# Pixels of a figure. The file has SCALE times as many in each direction.
WIDTH, HEIGHT, MARGIN, SCALE = 1000, 640, 24, 2
# Characters of a colour scheme in the name of a file, which may be 255 bytes long.
STEM_CHARACTERS = 50
# Characters that are replaced in the names of files.
_REPLACED = re.compile(r"[^\w.-]+")


def chart_figures(overview: Overview) -> dict[str, go.Figure]:
    """Return the figures of all windows by name, ``hours`` and ``norms``; a figure without data is left out."""
    sums, usual = overview.sums, overview.usual_norms
    figures = {}
    if len(sums.by_hour.values):
        figures["hours"] = plotly_figures.hours_figure(sums.by_hour)
    if usual is not None and sums.norms.values[-1]:
        figures["norms"] = plotly_figures.norms_figure(sums.norms, usual)
    return figures


def result_figures(results: StoredResults) -> dict[str, go.Figure]:
    """Return the figures of detections and probes by name; a figure without data is left out."""
    figures: dict[str, go.Figure | None] = {}
    for name, summary in results.detections.items():
        figures[f"activity-by-hour-{name}"] = label_figures.activity_by_hour_figure(summary.classes)
        figures[f"activity-by-date-{name}"] = label_figures.activity_by_date_figure(summary.classes)
        figures[f"density-{name}"] = label_figures.density_figure(summary.classes)
    for name, probe in results.probes.items():
        figures[f"precision-{name}"] = label_figures.precision_over_recall_figure(probe)
        figures[f"confusions-{name}"] = label_figures.confusions_figure(probe)
    return {name: figure for name, figure in figures.items() if figure is not None}


def map_figures(sample: DrawnSample, scheme: ColourScheme) -> dict[str, go.Figure]:
    """Return the figures of the sample by name, ``umap`` and ``pca``; a figure without data is left out."""
    figures = {}
    if sample.umap is not None:
        figures["umap"] = plotly_figures.map_figure(sample.umap, ("UMAP 1", "UMAP 2"), scheme, ticks=False)
    if not sample.all_equal:
        first, second = (
            f"PC {number} ({share:.1%} of the variance)" for number, share in enumerate(sample.explained, 1)
        )
        figures["pca"] = plotly_figures.map_figure(sample.pca, (first, second), scheme, ticks=True)
    return figures


def refuse_without_browser() -> None:
    """Check that there is a browser to draw PNG files.

    Raises:
        RequestError: There is no browser.
    """
    try:
        kaleido.Kaleido()
    except ChromeNotFoundError as error:
        raise RequestError(
            "--png needs Chrome or Chromium, and none was found: apt-get install chromium, or kaleido_get_chrome"
        ) from error


def write_png(overview: Overview, results: StoredResults, folder: Path) -> list[Path]:
    """Write every picture as a PNG file, the maps once for each colour scheme.

    Args:
        overview: The overview of an output.
        results: Results of other jobs.
        folder: The folder for the files.

    Returns:
        The files.

    Raises:
        OSError: A file cannot be written.
        RunError: The browser that draws the pictures failed.
    """
    named = result_figures(results)
    stems = _distinct_stems(list(named))
    pictures = chart_figures(overview) | dict(zip(stems, named.values(), strict=True))
    schemes = overview.sample.colour_schemes
    for stem, scheme in zip(file_stems(schemes), schemes, strict=True):
        for name, figure in map_figures(overview.sample, scheme).items():
            pictures[f"{name}-{stem}"] = plotly_figures.with_legend(figure, scheme)
    paper = {"paper_bgcolor": "white", "margin": dict.fromkeys("lrtb", MARGIN)}
    size = {"format": "png", "width": WIDTH, "height": HEIGHT, "scale": SCALE}
    files = {folder / f"{name}.png": figure.update_layout(paper) for name, figure in pictures.items()}
    try:
        with ExitStack() as stack:
            specifications = [
                {"fig": figure, "path": stack.enter_context(storage.replacing(path)), "opts": size}
                for path, figure in files.items()
            ]
            # Not Plotly's write_images, with which kaleido fetches MathJax from the internet each time.
            kaleido.write_fig_from_object_sync(specifications, kopts={"mathjax": False})
    except (BrowserFailedError, BrowserClosedError, KaleidoError) as error:
        raise RunError(f"--png: the browser failed: {error.args[0] if error.args else error!r}") from error
    return list(files)


def file_stems(schemes: list[ColourScheme]) -> list[str]:
    """Return a part of a file name for each colour scheme; the parts differ."""
    return _distinct_stems([scheme.name for scheme in schemes])


def _distinct_stems(names: list[str]) -> list[str]:
    stems: list[str] = []
    for name in names:
        stem = _REPLACED.sub("-", name)[:STEM_CHARACTERS]
        stems.append(f"{stem}-{len(stems)}" if stem in stems else stem)
    return stems
