"""Which pictures an overview has, and the same as PNG files."""

import re
from contextlib import ExitStack
from pathlib import Path

import kaleido
import plotly.graph_objects as go
from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError, KaleidoError

from embedding import storage
from embedding.errors import RequestError, RunError
from embedding.overview import plotly_figures
from embedding.overview.build import Overview
from embedding.overview.drawn_sample import Drawn
from embedding.overview.point_colours import Colouring

# In pixels of the figure; the file has twice as many.
WIDTH, HEIGHT, MARGIN, SCALE = 1000, 640, 24, 2
# Of a file's name, which may be 255 bytes long.
STEM_CHARACTERS = 50
# What a name may have in it as it is.
_PLAIN = re.compile(r"[^\w.-]+")


def charts(overview: Overview) -> dict[str, go.Figure]:
    """Those of all windows, by name: ``hours`` and ``norms``, without the one that has nothing to show."""
    sums, fence = overview.sums, overview.fence
    found = {}
    if len(sums.by_hour.values):
        found["hours"] = plotly_figures.hours(sums.by_hour)
    if fence is not None and sums.norms.values[-1]:
        found["norms"] = plotly_figures.norms(sums.norms, fence)
    return found


def maps(drawn: Drawn, colouring: Colouring) -> dict[str, go.Figure]:
    """Those of the sample, ``umap`` and ``pca``, likewise."""
    found = {}
    if drawn.umap is not None:
        found["umap"] = plotly_figures.scatter(drawn.umap, ("UMAP 1", "UMAP 2"), colouring, ticks=False)
    if not drawn.all_equal:
        first, second = (f"PC {at} ({share:.1%} of the variance)" for at, share in enumerate(drawn.explained, 1))
        found["pca"] = plotly_figures.scatter(drawn.pca, (first, second), colouring, ticks=True)
    return found


def refuse_without_browser() -> None:
    """Raises RequestError where there is none that could draw a PNG."""
    try:
        kaleido.Kaleido()
    except ChromeNotFoundError as error:
        raise RequestError(
            "--png needs a Chrome or Chromium, and there is none: apt-get install chromium, or kaleido_get_chrome"
        ) from error


def write_png(overview: Overview, folder: Path) -> list[Path]:
    """Every picture, the maps once for each colouring; returns the files.

    Raises:
        OSError: they cannot be written.
        RunError: the browser that draws them failed.
    """
    pictures = charts(overview)
    for stem, colouring in zip(stems(overview.drawn.colourings), overview.drawn.colourings, strict=True):
        for name, figure in maps(overview.drawn, colouring).items():
            pictures[f"{name}-{stem}"] = plotly_figures.with_legend(figure, colouring)
    on_paper = {"paper_bgcolor": "white", "margin": dict.fromkeys("lrtb", MARGIN)}
    size = {"format": "png", "width": WIDTH, "height": HEIGHT, "scale": SCALE}
    files = {folder / f"{name}.png": figure.update_layout(on_paper) for name, figure in pictures.items()}
    try:
        with ExitStack() as stack:
            specifications = [
                {"fig": figure, "path": stack.enter_context(storage.replacing(path)), "opts": size}
                for path, figure in files.items()
            ]
            # Plotly's own write_images leaves MathJax in, which kaleido fetches from the internet each time.
            kaleido.write_fig_from_object_sync(specifications, kopts={"mathjax": False})
    except (BrowserFailedError, BrowserClosedError, KaleidoError) as error:
        raise RunError(f"--png: the browser failed: {error.args[0] if error.args else error!r}") from error
    return list(files)


def stems(colourings: list[Colouring]) -> list[str]:
    """Part of a file's name for each, all different."""
    stems: list[str] = []
    for colouring in colourings:
        stem = _PLAIN.sub("-", colouring.name)[:STEM_CHARACTERS]
        stems.append(f"{stem}-{len(stems)}" if stem in stems else stem)
    return stems
